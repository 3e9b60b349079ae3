"""The page of a study: facts first, then drawings, then one HTML file that opens offline.

    ledger.py    quoting: a number in the report always names its place in the study
    facts.py     the findings in words
    tables.py    the rows of every table
    figures.py   plotly figures; forest.py: the small interval drawings
    page.py      the self-contained file; style.py and script.py are what is inlined in it

>>> from loratlas.report import build
"""

from loratlas.report.page import build

__all__ = ["build"]
