"""What each base is: its configuration, its tokenizer, its objective and the rates that trained it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

VOCABULARY = 8192
HIDDEN = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """One base to be trained.

    Args:
        name: of its folder.
        title: architecture and shape, as the card says it.
        tokenizer: ``bpe`` (the embedded base's, so that losses per token can be laid side by side),
            ``wordpiece`` or ``unigram``, both trained on the corpus.
        objective: ``causal``, ``masked`` or ``spans``.
        lengths: tokens of a row, in turn from step to step.
        whole: share of the steps, from the first, in which missing spans are answered by the whole text.
        muon: learning rate of the matrices, scaled to AdamW's size of update.
        adamw: of all else.
        config: makes the configuration, given the ids of the tokenizer's special tokens.
    """

    name: str
    title: str
    tokenizer: str
    objective: str
    lengths: tuple[int, ...]
    muon: float
    adamw: float
    config: Callable[[dict[str, int], dict[str, int]], Any]
    whole: float = 0.0


def _gpt2(special: dict[str, int], small: dict[str, int]) -> Any:
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=small.get("hidden", HIDDEN),
        n_layer=small.get("layers", 8),
        n_head=4,
        n_positions=256,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=special["eos"],
        eos_token_id=special["eos"],
        pad_token_id=special["pad"],
    )


def _bert(special: dict[str, int], small: dict[str, int]) -> Any:
    from transformers import BertConfig

    hidden = small.get("hidden", HIDDEN)
    return BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=small.get("layers", 8),
        num_attention_heads=4,
        intermediate_size=4 * hidden,
        max_position_embeddings=256,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=special["pad"],
    )


def _t5(special: dict[str, int], small: dict[str, int]) -> Any:
    from transformers import T5Config

    hidden = small.get("hidden", HIDDEN)
    return T5Config(
        vocab_size=VOCABULARY,
        d_model=hidden,
        d_kv=hidden // 4,
        d_ff=3 * hidden,
        num_layers=small.get("layers", 4),
        num_decoder_layers=small.get("layers", 4),
        num_heads=4,
        feed_forward_proj="gated-gelu_pytorch_tanh",  # the tanh form in one kernel
        dropout_rate=0.0,
        decoder_start_token_id=special["pad"],
        pad_token_id=special["pad"],
        eos_token_id=special["eos"],
    )


BASES = {
    base.name: base
    for base in (
        Base(
            name="gpt2-mini",
            title="GPT-2 architecture (Conv1D, fused query-key-value, learned positions), "
            "hidden 256, 8 layers, 4 heads of 64, feed-forward 1,024, tied embeddings, context 256",
            tokenizer="bpe",
            objective="causal",
            lengths=(256,),
            muon=5e-3,
            adamw=3e-3,
            config=_gpt2,
        ),
        Base(
            name="bert-mini",
            title="BERT architecture (post-norm encoder), hidden 256, 8 layers, 4 heads of 64, "
            "feed-forward 1,024, tied embeddings, context 256, uncased",
            tokenizer="wordpiece",
            objective="masked",
            lengths=(64, 64, 64, 256),
            muon=3e-3,
            adamw=2e-3,
            config=_bert,
        ),
        Base(
            name="t5-mini",
            title="T5 1.1 architecture (gated-GELU), hidden 256, 4 encoder and 4 decoder layers, "
            "4 heads of 64, feed-forward 768, tied embeddings",
            tokenizer="unigram",
            objective="spans",
            lengths=(128,),
            muon=5e-3,
            adamw=1e-2,  # its table begins at a deviation of 1, those of the others at 0.02
            config=_t5,
            whole=0.25,
        ),
    )
}
