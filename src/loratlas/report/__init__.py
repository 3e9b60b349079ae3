"""The page of a study: facts first, then drawings, then one HTML file that opens offline.

    quotes.py      a number in the report always names its place in the study
    sentences.py   the findings in words; captions.py: the figures in words
    tables.py      the rows of every table, with side_tables.py and scan_section.py
    figures.py     plotly figures, with model_maps.py; forest_plot.py: the small interval drawings
    sections.py    what each section shows; templates/ and assets/: how it looks
    page.py        the self-contained file

>>> from loratlas.report import build
"""

from loratlas.report.page import build

__all__ = ["build"]
