"""The definitions in use, by name, with formula and who uses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loratlas.loss_audit.definitions import REFERENCE, Definition, LossEvidence
from loratlas.loss_audit.token_table import COUNTED, PARTS

BATCH_SIZES = (8,)
"""Batch sizes whose mean is always listed: the default of transformers' Trainer."""


def token_mean() -> Definition:
    """The loss of loratlas, from which every other definition is explained."""
    return Definition(
        name="token_mean",
        formula="Σ L_i / Σ n_i",
        used_by="loratlas; torch.nn.CrossEntropyLoss over all tokens of a split at once",
    )


def catalogue(
    evidence: LossEvidence,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    smoothing: Sequence[float] = (0.1,),
    regularisers: Mapping[str, float] | None = None,
    caps: Sequence[float] = (20.0,),
    world_sizes: Sequence[int] = (),
) -> list[Definition]:
    """Every definition that the evidence can answer.

    Args:
        evidence: its reference table says which parts are there, its other tables which conditions, its texts
            whether units of text are.
        batch_sizes: of trainers.
        smoothing: ε's; listed where the table has ū.
        regularisers: name → λR, nats (`loratlas.loss_audit.regularisers`).
        caps: losses above are printed as this; listed only where it changes the loss.
        world_sizes: processes of a distributed sampler that repeats examples to fill its last round.

    Returns:
        Definitions of unlike names, `token_mean` first.
    """
    every = [*_means(), *_batches(batch_sizes), *_units(evidence)]
    table = evidence.tables[REFERENCE]
    present = {PARTS[code] for code in set(table.part.tolist())}
    every += _covers(present)
    if table.uniform is not None:
        every += [
            Definition(
                name=f"smoothed_{e:g}",
                formula="Σ ((1 − ε) ℓ + ε ū) / n",
                used_by=f"transformers Trainer with label_smoothing_factor={e:g}, which smooths eval_loss too",
                smoothing=e,
            )
            for e in smoothing
        ]
    every += [
        Definition(
            name=f"{name}_included",
            formula="token mean + λR",
            used_by="PEFT AdaLoRA (orthogonality), mixture-of-experts models with output_router_logits",
            regulariser=size,
        )
        for name, size in (regularisers or {}).items()
    ]
    counted = table.covered(COUNTED)
    if counted.any():
        loss = float(table.nll[counted].sum() / table.tokens[counted].sum())
        every += [
            Definition(
                name=f"capped_{cap:g}",
                formula="min(Σ L / Σ n, c)",
                used_by="Megatron-LM: perplexity = exp(min(20, loss))",
                cap=cap,
            )
            for cap in caps
            if loss > cap
        ]
    every += _worlds(world_sizes, evidence)
    every += [
        Definition(
            name=name,
            formula="Σ L′ / Σ n′ under that condition",
            used_by=other.condition or "a pass of its own",
            table=name,
            covers=COUNTED,
        )
        for name, other in evidence.tables.items()
        if name != REFERENCE
    ]
    every += [
        Definition(
            name=f"{name}_{words}_included",
            formula="Σ over covered tokens of ℓ / n",
            used_by=f"labels = input_ids of padded batches ({other.condition or name})",
            table=name,
            covers=covers,
        )
        for name, other in evidence.tables.items()
        if name != REFERENCE and (other.part == PARTS.index("padding")).any()
        for words, covers in (("padding", (*COUNTED, "padding")), ("padding_and_prompt", PARTS))
    ]
    return every


def _means() -> list[Definition]:
    return [
        token_mean(),
        Definition(
            name="perplexity",
            formula="exp(Σ L_i / Σ n_i)",
            used_by="loratlas; transformers' guide to perplexity",
            exponential=True,
        ),
        Definition(
            name="example_mean",
            formula="(1/N) Σ ℓ̄_i",
            used_by="Trainer at per_device_eval_batch_size=1; scripts that append one loss per row",
            aggregate="example",
        ),
        Definition(
            name="example_mean_perplexity",
            formula="exp((1/N) Σ ℓ̄_i)",
            used_by="exp(eval_loss) at batch size 1",
            aggregate="example",
            exponential=True,
        ),
        Definition(name="median", formula="median ℓ̄_i", used_by="dashboards", aggregate="median"),
        Definition(
            name="median_perplexity",
            formula="exp(median ℓ̄_i)",
            used_by="dashboards",
            aggregate="median",
            exponential=True,
        ),
        Definition(
            name="mean_example_perplexity",
            formula="(1/N) Σ exp ℓ̄_i",
            used_by="LLaMA-Factory's cal_ppl; the perplexity metric of `evaluate`",
            aggregate="log_mean_exp",
            exponential=True,
        ),
        Definition(
            name="sum",
            formula="Σ L_i",
            used_by="lm-evaluation-harness (loglikelihood, with the other sign)",
            unit="sum",
        ),
        Definition(
            name="example_sum",
            formula="Σ L_i / N",
            used_by="losses of whole sequences; its exponential: lm-evaluation-harness (perplexity of LAMBADA)",
            unit="nats_per_example",
        ),
    ]


def _batches(sizes: Sequence[int]) -> list[Definition]:
    made = []
    for b in dict.fromkeys(sizes):
        made += [
            Definition(
                name=f"batch_mean_{b}{suffix}",
                formula="exp(Σ b_k L_k / Σ b_k)" if suffix else "Σ b_k L_k / Σ b_k",
                used_by=f"transformers Trainer, per_device_eval_batch_size={b}"
                + (": exp(eval_loss)" if suffix else ": eval_loss"),
                aggregate="batch",
                batch_size=b,
                exponential=bool(suffix),
            )
            for suffix in ("", "_perplexity")
        ]
    return made


def _units(evidence: LossEvidence) -> list[Definition]:
    made = [
        Definition(
            name="bits", formula="Σ L / (Σ n · ln 2)", used_by="fairseq (loss, to base 2)", unit="bits"
        ),
        Definition(
            name="digits",
            formula="Σ L / (Σ n · ln 10)",
            used_by="logarithm to base 10 (SRILM, KenLM)",
            unit="digits",
        ),
    ]
    if evidence.texts is not None:
        made += [
            Definition(
                name="bits_per_byte",
                formula="Σ L / (Σ bytes · ln 2)",
                used_by="lm-evaluation-harness (bits_per_byte); comparable between tokenizers",
                unit="bits_per_byte",
            ),
            Definition(
                name="bits_per_character",
                formula="Σ L / (Σ characters · ln 2)",
                used_by="character-level benchmarks; comparable between tokenizers",
                unit="bits_per_character",
            ),
            Definition(
                name="nats_per_word",
                formula="Σ L / Σ words",
                used_by="its exponential: lm-evaluation-harness",
                unit="nats_per_word",
            ),
            Definition(
                name="word_perplexity",
                formula="exp(Σ L / Σ words)",
                used_by="lm-evaluation-harness (word_perplexity)",
                unit="nats_per_word",
                exponential=True,
            ),
        ]
    return made


def _covers(present: set[str]) -> list[Definition]:
    known = [
        ("prompt_included", (*COUNTED, "prompt", "tail"), "trainers without a mask on prompts; mLoRA, train_on_prompt"),
        ("tail_included", (*COUNTED, "tail"), "TRL: what the template writes behind the end token is counted"),
        ("special_included", (*COUNTED, "special"), "scorers that count begin tokens"),
        ("everything_included", (*COUNTED, "prompt", "special", "tail"), "labels = input_ids"),
        ("padding_included", (*COUNTED, "padding"), "labels = input_ids without a mask on padding"),
        ("padding_and_prompt_included", PARTS, "labels = input_ids of padded batches"),
        ("end_excluded", ("answer",), "pad = eos: the mask on padding hits the end token"),
        ("end_excluded_prompt_included", ("answer", "prompt", "tail"), "language-modelling collator with pad = eos"),
    ]  # fmt: skip
    chosen = []
    for name, covers, used_by in known:
        added, taken = set(covers) - set(COUNTED), set(COUNTED) - set(covers)
        if "prompt" in covers:
            added -= {"tail"}  # a template need not write one
        if added <= present and taken <= present and (added or taken):
            chosen.append(
                Definition(
                    name=name, formula="Σ over covered tokens of ℓ / n", used_by=used_by, covers=covers
                )
            )
    return chosen


def _worlds(sizes: Sequence[int], evidence: LossEvidence) -> list[Definition]:
    examples = sorted(set(evidence.tables[REFERENCE].example.tolist()))
    made = []
    for world in sizes:
        missing = -len(examples) % world
        if missing:
            made.append(
                Definition(
                    name=f"sampler_{world}",
                    formula="Σ over examples, the first repeated, of L / n",
                    used_by=f"torch DistributedSampler with {world} processes",
                    times=tuple((e, 2) for e in examples[:missing]),
                )
            )
    return made
