"""What an export computes, beside the adapter that it was made from: both loaded anew by PEFT and transformers alone.

Runs as a process of its own, so that nothing that loading or exporting did to a model in memory can hide a difference::

    python -m loratlas.adapters.export.check_export < request.json

The request says which base, which adapter and which export (see `Request`); the answer is one JSON object on standard
output with ``check``, the largest absolute difference of the logits on fixed tokens, null where one is not finite.
"""

from __future__ import annotations

import gc
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

TOKENS, ROWS, TARGETS = 24, 2, 12

_WORDS = {"CausalLM": "CAUSAL_LM", "Seq2SeqLM": "SEQ_2_SEQ_LM", "SequenceClassification": "SEQ_CLS"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One comparison.

    Args:
        base: of the adapter; a directory or a Hub id.
        kind: transformers' word for its class: ``CausalLM``, ``Seq2SeqLM``, ``SequenceClassification``.
        options: further arguments of ``from_pretrained`` for the base: labels and filling token of a classifier.
        dtype: numbers of the base.
        adapter: folder of the adapter that was exported.
        exported: folder of what was written.
        merged: whether that is a whole model; otherwise it is an adapter.
        tokens: token ids that must be among those that are tried.
    """

    base: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str
    adapter: str
    exported: str
    merged: bool
    tokens: tuple[int, ...] = ()


def difference(request: Request) -> float:
    """Largest absolute difference of the logits; NaN where one is not finite."""
    wanted = fixed_logits(load_with_peft(request, request.adapter), request)
    gc.collect()
    got = fixed_logits(load_export(request), request)
    return float((got - wanted).abs().max()) if got.shape == wanted.shape else math.nan


def in_fresh_process(requests: Sequence[Request]) -> list[float]:
    """:func:`difference` of each, computed by one new Python process.

    Raises:
        ModelError: what was written does not load, or the process was ended.
    """
    import subprocess

    from loratlas.child_process import child_environment, module_command
    from loratlas.errors import ModelError

    done = subprocess.run(
        module_command("loratlas.adapters.export.check_export"),
        input=json.dumps([asdict(request) for request in requests]),
        capture_output=True,
        text=True,
        env=child_environment({"TOKENIZERS_PARALLELISM": "false"}),
        check=False,
    )
    try:
        answers = json.loads(done.stdout)
        return [math.nan if answer["check"] is None else float(answer["check"]) for answer in answers]
    except (ValueError, KeyError, TypeError) as error:
        last = [line for line in done.stderr.strip().splitlines() if line.strip()] or ["no message"]
        raise ModelError(
            given=requests[0].exported,
            found=f"it was written, and does not load in a fresh process (exit {done.returncode}): {last[-1][:300]}",
            instead="a report of this as a bug; do not use what was written",
        ) from error


def load_export(request: Request) -> Any:
    """What was written, as PEFT and transformers load it."""
    if request.merged:
        return load_with_transformers(request, request.exported, {})
    return load_with_peft(request, request.exported)


def load_with_transformers(request: Request, source: str, options: dict[str, Any]) -> Any:
    """A model as transformers alone loads it, in eval mode."""
    import torch
    import transformers

    from loratlas.models.config import own_layers

    load = getattr(transformers, f"AutoModelFor{request.kind}").from_pretrained
    dtype = getattr(torch, request.dtype)
    pair: Any = transformers.AutoConfig.from_pretrained(
        source, trust_remote_code=False, return_unused_kwargs=True, **options
    )
    config, unused = pair
    return load(source, config=own_layers(config), dtype=dtype, trust_remote_code=False, **unused).eval()


def load_with_peft(request: Request, adapter: str) -> Any:
    """The base with an adapter on it, as PEFT alone loads both, in eval mode."""
    from peft import PeftConfig, PeftModel

    # A head that is not in the weights is drawn; the adapter brings its own.
    options = {**request.options, "ignore_mismatched_sizes": True} if request.options else {}
    base = load_with_transformers(request, request.base, options)
    config = None
    if adapter == request.adapter:
        # With another word for its task PEFT would refuse some models. The export's own is taken as it is.
        config = PeftConfig.from_pretrained(adapter)
        config.task_type = config.task_type and _WORDS[request.kind]
    return PeftModel.from_pretrained(base, adapter, config=config).eval().get_base_model()


def fixed_logits(model: Any, request: Request) -> Any:
    """Logits for fixed rows of tokens, float32."""
    import torch

    config = model.config.get_text_config(decoder=True)
    generator = torch.Generator().manual_seed(0)
    longest = getattr(config, "max_position_embeddings", None)
    length = min(TOKENS, longest - 4) if isinstance(longest, int) else TOKENS
    tokens = torch.randint(0, config.vocab_size, (ROWS, length), generator=generator)
    for index, token in enumerate(request.tokens):
        tokens[:, index % length] = token
    with torch.no_grad():
        if request.kind == "SequenceClassification":
            # One row at a time, ended once: what a classifier reads is then the same whatever fills rows.
            end = config.eos_token_id
            if isinstance(end, int):
                tokens = tokens.where(tokens != end, (tokens + 1) % config.vocab_size)
                tokens = torch.cat([tokens, torch.full((ROWS, 1), end)], dim=1)
            return torch.cat([model(input_ids=row[None]).logits.float() for row in tokens])
        if config.is_encoder_decoder:
            return model(input_ids=tokens, decoder_input_ids=tokens[:, :TARGETS]).logits.float()
        return model(input_ids=tokens, use_cache=False).logits.float()


def main() -> None:
    """Answer the requests on standard input."""
    import warnings

    from transformers.utils import logging

    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    requests = [Request(**{**fields, "tokens": tuple(fields["tokens"])}) for fields in json.load(sys.stdin)]
    answers = []
    for request in requests:
        check = difference(request)
        answers.append({"check": check if math.isfinite(check) else None})
    sys.stdout.write(json.dumps(answers))


if __name__ == "__main__":
    main()
