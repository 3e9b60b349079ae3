"""Photograph a report: ``python tools/screenshot.py study.json docs/images/report.png``.

Needs playwright (in the ``dev`` extra) and a Chromium on the path. Without ``--full`` only the first screens
are taken, as the README shows them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from loratlas.report import build

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
QUIET += ["--disable-sync", "--no-first-run", "--disable-quic"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path, help="findings.json of a study, or a page that is made already")
    parser.add_argument("out", type=Path, help="the PNG to write")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=1180)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--full", action="store_true", help="the whole page instead of the first screens")
    parser.add_argument("--at", help="begin at this section, e.g. maps")
    options = parser.parse_args()

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        parser.error("no Chromium on the path")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_path = options.study
        if page_path.suffix == ".json":
            study = json.loads(page_path.read_text(encoding="utf-8"))
            page_path = build(study, Path(folder) / "report.html")
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        page = browser.new_page(
            viewport={"width": options.width, "height": options.height},
            color_scheme="dark" if options.dark else "light",
        )
        page.goto(page_path.resolve().as_uri())
        page.wait_for_selector("html[data-drawn]")
        if options.at:
            page.evaluate(
                "id => document.getElementById(id).scrollIntoView({behavior: 'instant'})", options.at
            )
        page.wait_for_timeout(400)
        page.screenshot(path=options.out, full_page=options.full)
        browser.close()


if __name__ == "__main__":
    main()
