"""Every option's name, type and help, once; commands only pick.

An option that means the same thing has the same name in every command.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Loss(StrEnum):
    """Which tokens the loss counts."""

    answer = "answer"
    all = "all"


class TaskName(StrEnum):
    """What a model is trained to do, or judged by."""

    causal = "causal"
    seq2seq = "seq2seq"
    classification = "classification"


class Dtype(StrEnum):
    """The type the base computes in; adapters are kept in float32 either way."""

    auto = "auto"
    bfloat16 = "bfloat16"
    float32 = "float32"

    @property
    def chosen(self) -> str:
        """The type's name; for ``auto`` the one that this machine multiplies faster."""
        from loratlas.models.load import native_dtype

        return native_dtype() if self is Dtype.auto else self.value


class LearningRateSchedule(StrEnum):
    """How the learning rate goes on after the warm-up."""

    cosine = "cosine"
    constant = "constant"


class Compile(StrEnum):
    """Whether layers go through torch.compile."""

    auto = "auto"
    on = "on"
    off = "off"


class Quantize(StrEnum):
    """How the base's weights are stored."""

    four = "4bit"


class Target(StrEnum):
    """What `export` writes."""

    peft = "peft"
    vllm = "vllm"
    sglang = "sglang"
    tgi = "tgi"
    lorax = "lorax"
    tensorrt_llm = "tensorrt-llm"
    llama_cpp = "llama.cpp"
    ollama = "ollama"
    mlx = "mlx"
    merged = "merged"
    gguf = "gguf"


PLACEMENT, DATA, TRAIN, OUTPUT = "Placement", "Data", "Training", "Output"

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A Hub id, a local directory, a .gguf file, an adapter's folder (for its base), or demo:llama-mini.",
        show_default=False,
    ),
]
ModelOrConfig = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A Hub id, a local directory, a config.json (no weights are needed), a .gguf file, an adapter's folder "
        "(for its base), or demo:llama-mini.",
        show_default=False,
    ),
]
Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A JSON, JSONL(.gz), CSV or Parquet file, a Hub id, or an embedded task such as demo:facts-300.",
        show_default=False,
    ),
]

Placement = Annotated[
    str,
    typer.Option(
        "--placement",
        metavar="TEXT",
        help='Where the adapters go: "attention:16", "all@top/2", "q,v:8 + feedforward.down:4".',
        show_default=False,
        rich_help_panel=PLACEMENT,
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="TEXT",
        help="What the placement may use: params=2M or params=0.5%; like=attention:16 (as many parameters); "
        "time=1.2 (times a step of all:16) or memory=6GB (peak of a step), both also as much as a placement, "
        "time=attention:16.",
        rich_help_panel=PLACEMENT,
    ),
]
Scores = Annotated[
    Path | None,
    typer.Option(
        "--scores",
        metavar="FILE",
        help="With --placement auto: the folder of `loratlas scan --out`, or what --json printed; no new scan.",
        show_default=False,
        rich_help_panel=PLACEMENT,
    ),
]
By = Annotated[
    str | None,
    typer.Option(
        "--by",
        metavar="COLUMN",
        help="The score that decides, e.g. gradient, alignment, spectrum; probe_energy unless given, or the "
        "one that --scores were scanned by.",
        show_default=False,
        rich_help_panel=PLACEMENT,
    ),
]
MinRank = Annotated[
    int,
    typer.Option(
        "--min-rank", metavar="N", min=0, help="Lowest rank of every site.", rich_help_panel=PLACEMENT
    ),
]
MaxRank = Annotated[
    int | None,
    typer.Option("--max-rank", metavar="N", min=1, help="Highest rank of a site.", rich_help_panel=PLACEMENT),
]
Multiple = Annotated[
    int,
    typer.Option(
        "--multiple",
        metavar="N",
        min=1,
        help="Ranks are multiples of N; 8 for fast kernels.",
        rich_help_panel=PLACEMENT,
    ),
]
WholeLayers = Annotated[
    bool,
    typer.Option("--whole-layers", help="All sites of a layer get the same rank.", rich_help_panel=PLACEMENT),
]
TopLayers = Annotated[
    int | None,
    typer.Option(
        "--top-layers",
        metavar="N",
        min=1,
        help="Only the N layers nearest the output, so that the backward pass ends early.",
        rich_help_panel=PLACEMENT,
    ),
]
Alpha = Annotated[
    float | None,
    typer.Option(
        "--alpha",
        metavar="NUMBER",
        help="LoRA's α at every site; twice the rank unless given.",
        rich_help_panel=PLACEMENT,
    ),
]
RsLora = Annotated[
    bool,
    typer.Option("--rslora", help="Scale by α/√r instead of α/r.", rich_help_panel=PLACEMENT),
]
Dora = Annotated[
    bool,
    typer.Option(
        "--dora",
        help="DoRA: each row of an adapted matrix trains its length as well.",
        rich_help_panel=PLACEMENT,
    ),
]
RoundRanks = Annotated[
    bool,
    typer.Option(
        "--round-ranks",
        help="Round ranks down to 1, 2, 3, 4, 6, 8, 12, 16, 24, …, for a short LoraConfig.",
        rich_help_panel=PLACEMENT,
    ),
]
AllowUnresolved = Annotated[
    bool,
    typer.Option(
        "--allow-unresolved",
        help="Continue where the placement may include unidentified matrices; they are not adapted.",
        rich_help_panel=PLACEMENT,
    ),
]

Split = Annotated[
    str | None,
    typer.Option(
        "--split",
        metavar="NAME",
        help="Which split of DATA, e.g. test or train[:1000].",
        rich_help_panel=DATA,
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="FIELD=COLUMN",
        help="Read a field from another column, e.g. --map prompt=question; may be repeated.",
        rich_help_panel=DATA,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit", metavar="ROWS", min=1, help="Read only the first so many rows.", rich_help_panel=DATA
    ),
]
LossOver = Annotated[
    Loss,
    typer.Option("--loss", help="Count the answer's tokens only, or all of them.", rich_help_panel=DATA),
]
Samples = Annotated[
    int,
    typer.Option(
        "--samples",
        metavar="N",
        min=0,
        help="Generate answers to the first N evaluated rows, without and with the adapter, and count exact matches.",
        rich_help_panel=DATA,
    ),
]
Rouge = Annotated[
    bool,
    typer.Option(
        "--rouge",
        help="Also score those answers by ROUGE-L (needs rouge-score).",
        rich_help_panel=DATA,
    ),
]
Forgetting = Annotated[
    str | None,
    typer.Option(
        "--forgetting",
        metavar="DATA",
        help="Rows of another kind: also their loss without and with the adapter, and the difference.",
        show_default=False,
        rich_help_panel=DATA,
    ),
]
TaskOption = Annotated[
    TaskName | None,
    typer.Option(
        "--task",
        help="What the rows are for; recognised from their fields and the architecture unless given.",
        show_default=False,
        rich_help_panel=DATA,
    ),
]
MaxLength = Annotated[
    int,
    typer.Option(
        "--max-length",
        metavar="TOKENS",
        min=2,
        help="Longer rows lose the left end of their prompt (a classified text and a source their right end).",
        rich_help_panel=DATA,
    ),
]

Steps = Annotated[
    int | None,
    typer.Option("--steps", metavar="N", help="Optimizer steps; or give --epochs.", rich_help_panel=TRAIN),
]
Epochs = Annotated[
    float | None,
    typer.Option("--epochs", metavar="N", help="Passes over DATA; or give --steps.", rich_help_panel=TRAIN),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed",
        metavar="N",
        help="Decides the initialisation, the order of the rows and dropout.",
        rich_help_panel=TRAIN,
    ),
]
BatchSize = Annotated[
    int,
    typer.Option("--batch-size", metavar="N", help="Examples per step.", rich_help_panel=TRAIN),
]
DtypeOption = Annotated[
    Dtype,
    typer.Option(
        "--dtype",
        help="The type the base computes in; auto: bfloat16 where the processor multiplies it, else float32.",
        rich_help_panel=TRAIN,
    ),
]
QuantizeOption = Annotated[
    Quantize | None,
    typer.Option(
        "--quantize",
        help="Store the base in 4 bits (needs bitsandbytes).",
        show_default=False,
        rich_help_panel=TRAIN,
    ),
]

CompileOption = Annotated[
    Compile,
    typer.Option(
        "--compile",
        help="torch.compile for the base's layers; auto: where it saves time in the steps left, as measured here.",
        rich_help_panel=TRAIN,
    ),
]

Out = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Folder to write to.",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue what was stopped in --out; where nothing was saved yet, begin at the beginning.",
        rich_help_panel=OUTPUT,
    ),
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Also say how steps were computed and why.", rich_help_panel=OUTPUT),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON object on standard output and nothing else there.",
        rich_help_panel=OUTPUT,
    ),
]
