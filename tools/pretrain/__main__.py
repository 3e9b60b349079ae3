"""Train one of the small bases on plain text, on a processor, in the background.

    python tools/pretrain gpt2-mini --corpus ../shared/corpus --out bases/gpt2-mini

The folder gets weights, tokenizer and card at the end. Killed anywhere, the same command goes on from its last
checkpoint (every 100 steps) and ends with the same weights. ``--corpus`` holds ``train-*.txt.gz`` and
``heldout.txt.gz``, documents separated by a line ``<|doc|>``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bases import BASES


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python tools/pretrain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("base", choices=list(BASES))
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--steps", type=int, default=2300, help="of 6,144 tokens; default 2300 (14.1 M tokens)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hidden", type=int, help="instead of 256, for a trial")
    parser.add_argument("--layers", type=int, help="instead of the base's own number, for a trial")
    parser.add_argument("--checkpoint-every", type=int, default=100, help="steps")
    parser.add_argument(
        "--stop-after", type=int, help="this step, with a checkpoint; the same command goes on"
    )
    arguments = parser.parse_args()
    import torch
    from card import write
    from train import Run

    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(
        True
    )  # numbers that small change nothing, and take a processor many times as long
    small = {name: value for name in ("hidden", "layers") if (value := getattr(arguments, name)) is not None}
    run = Run(
        BASES[arguments.base],
        corpus=arguments.corpus,
        out=arguments.out,
        steps=arguments.steps,
        small=small,
        seed=arguments.seed,
    )
    run.train(every=arguments.checkpoint_every, until=arguments.stop_after)
    if not run.stopped:
        write(run)


if __name__ == "__main__":
    main()
