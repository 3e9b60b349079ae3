"""The calibration of the whole protocol: one world alone takes its place among the others, and the page has all."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks.calibration.__main__ import FILE, RESULTS, main
from benchmarks.calibration.worlds import limits, worlds

PAGE = Path(__file__).parents[2] / "docs/method/statistics.md"


def test_one_world_alone_takes_its_place_among_the_kept_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copy(RESULTS / FILE, tmp_path)
    words = ["calibration", "--studies", "20", "--only", "diverge", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    main()
    before, after = (
        json.loads((folder / FILE).read_text(encoding="utf-8")) for folder in (RESULTS, tmp_path)
    )
    assert [row["name"] for row in after["worlds"]] == [world.name for world in worlds()]
    assert [row["name"] for row in after["beyond"]] == [world.name for world in limits()]
    changed = [row for row, kept in zip(after["worlds"], before["worlds"], strict=True) if row != kept]
    assert [(row["name"][:18], row["studies"]) for row in changed] == [("steep, runs diverg", 20)]
    # What the others were run with stays, and the added one says what it was run with.
    assert (after["command"], after["revision"]) == (before["command"], before["revision"])
    assert after["added"][-1]["command"].endswith(" ".join(words[1:]))
    rows = json.loads((tmp_path / "protocol.json").read_text(encoding="utf-8"))["worlds"]
    assert [row["studies"] for row in rows] == [row["studies"] for row in after["worlds"]]
    monkeypatch.setattr(sys, "argv", ["calibration", "--only", "no such world", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()


def test_runs_diverge_above_the_cliff_and_nowhere_without_one():
    random = np.random.default_rng(0)
    cliff, flat = worlds()[-1], worlds()[0]
    distance = np.array([[0.0, cliff.cliff - 0.02, cliff.cliff + 0.5]])
    often = cliff.diverged(random, distance, 1000).mean(axis=-1)[0]
    assert (often[0], often[2]) == (0.0, 1.0)
    assert 0.2 < often[1] < 0.5  # runs differ in the rate at which they diverge
    state = random.bit_generator.state
    assert not flat.diverged(random, distance + 9, 5).any()
    assert random.bit_generator.state == state


def test_the_page_has_every_world_as_it_was_simulated():
    kept = json.loads((RESULTS / "protocol.json").read_text(encoding="utf-8"))["worlds"]
    rows = [
        line.split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")
    ]
    written = {cells[0].removeprefix("| "): cells[1:] for cells in rows if len(cells) == 4}
    for world in kept:
        shares = [float(cell.strip("*|% ")) / 100 for cell in written[world["name"]]]
        for key, share, digits in zip(
            ("familywise_first_edition", "familywise", "power"), shares, (0.001, 0.001, 0.01), strict=True
        ):
            assert share == pytest.approx(world[key], abs=0.51 * digits), (world["name"], key)
