"""The reader that tries it out: does a change at one token reach the others?

A small instance with random weights runs once on random tokens, and what every module was called with is kept.
Then one module after the other is run again with one token of *every* tensor that it is given changed, early and
late in the text. Where the output changes at another position, the module mixes tokens; where it does not, it
works on each token alone. No name is looked at, no operation is known.

A matrix is judged by the smallest module around it that mixes by what it does itself: what the modules inside it
that do so return is let through at the changed token only. If another token of what it returns, or of what it hands
to those modules, then still moves, the matrix is part of that. If none does, the matrix is part of the mixing only
where it reads nothing but the result, without the stream (the output projection beside the core of an attention);
otherwise the next larger module is looked at. A matrix that took no part in the pass is not judged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from loratlas.anatomy.probe.token_mixing import Mixing
from loratlas.anatomy.role_table import MIXES, POINTWISE
from loratlas.models.meta import model_class
from loratlas.models.quiet import quiet

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from loratlas.anatomy.structure import Matrix


def instance(config: PretrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """A model with random weights on the CPU, in which no parameter is zero, one or left unset by chance.

    Args:
        config: small (see :mod:`loratlas.anatomy.tiny_config`).
        seed: of the weights.
    """
    chosen = model_class(config)
    assert chosen is not None, config.model_type
    with quiet(), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = chosen[0]._from_config(chosen[1], dtype=torch.float32).eval()
        for parameter in model.parameters():
            if parameter.dtype.is_floating_point:
                parameter.nan_to_num_(0.0, 0.0, 0.0).clamp_(-4, 4)
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.requires_grad_(False)


def probe(model: PreTrainedModel, matrices: list[Matrix]) -> dict[str, str]:
    """Try every module that holds a matrix.

    Args:
        model: small, with weights, in eval mode.
        matrices: its matrices.

    Returns:
        Path → `MIXES` or `POINTWISE` of the role table, of every matrix in a block that ran.

    Raises:
        Exception: what the model raised on tokens alone.
    """
    with quiet(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        tried = Mixing(model, matrices)
        said: dict[str, str] = {}
        for matrix in matrices:
            verdict = _verdict(tried, matrix)
            if verdict is not None:
                said[matrix.path] = verdict
    return said


def _verdict(tried: Mixing, matrix: Matrix) -> str | None:
    if matrix.block is None:
        return None
    twin, held = tried.twins[matrix.block], len(matrix.block)
    module, path = twin + matrix.module[held:], twin + matrix.path[held:]
    chain = [twin + name[held:] for name in tried.chains[matrix.path]]
    known = False
    for name in chain:
        inner = tried.mixers(name, owner=chain[0], but=module)
        mixes = tried.mixes(name, inner)
        if mixes is None:
            continue
        if not known and name != chain[0] and not tried.takes_part(name, path):
            return None  # its owner did not run, or not as one module
        known = True
        cores = inner - tried.bare
        if mixes or (cores and tried.mixes(name) and tried.reads_result(name, module, cores)):
            return MIXES
    return POINTWISE if known else None
