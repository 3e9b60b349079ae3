"""The page of a single run that placed its adapters itself: where they were, step by step."""

from __future__ import annotations

from pathlib import Path

from loratlas.adapters.stored.run_files import RUN, read_run_json
from loratlas.errors import OutputError
from loratlas.files import read_json, write_text
from loratlas.report.placement_figure import placement_figure

PLAN = "plan.json"


def is_run(folder: Path) -> bool:
    """Whether a folder is one that a finished `loratlas train` has left."""
    return (folder / RUN).is_file()


def run_page(folder: Path, page: Path) -> Path:
    """Write the map of a run's placement: sites down, steps across, rank as colour, moves marked.

    Args:
        folder: of the run, of which `is_run` holds. page: the file to write.

    Returns:
        The page.

    Raises:
        OutputError: adapters stayed where they were.
        ModelError: a file of the run is not what was written.
        StorageError: the page cannot be written.
    """
    numbers = read_run_json(folder)
    if numbers is None or not (folder / PLAN).is_file():
        raise OutputError(
            given=f"loratlas report {folder}",
            found="a run whose adapters stayed where they were",
            instead=f"loratlas show {folder} --figure map.html, or the folder of a study",
        )
    ranks = {site["path"]: site["rank"] for site in read_json(folder / PLAN)["sites"]}
    write_text(
        page, placement_figure(ranks, numbers["moves"], numbers["steps"]).to_html(include_plotlyjs=True)
    )
    return page
