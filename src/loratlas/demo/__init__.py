"""The embedded base and its tasks: everything a study needs, without a download.

``demo:llama-mini`` names the base wherever a MODEL is asked for, ``demo:facts-300`` a task wherever DATA is,
and ``demo:facts`` a study's file wherever SPEC is.

>>> from loratlas import demo
>>> sorted(demo.TASKS)
['facts-1000', 'facts-300', 'facts-3000', 'format', 'retrieval', 'rules']
>>> (demo.base_path() / "config.json").exists()
True
"""

from loratlas.demo.base_files import BASES, base_path
from loratlas.demo.demonstration import RECIPES, recipe_path, study
from loratlas.demo.generate_rows import TASKS, generate

PREFIX = "demo:"

__all__ = ["BASES", "PREFIX", "RECIPES", "TASKS", "base_path", "generate", "recipe_path", "study"]
