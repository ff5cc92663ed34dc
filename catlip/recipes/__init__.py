"""Complete runs as functions of their own; this file only knows their names, and imports nothing heavy."""

from importlib import import_module
from pathlib import Path
from typing import Any

from catlip.errors import UsageError, near

RECIPES = {
    "flickr8k_cpu": "catlip.recipes.flickr8k_cpu",
    "cc3m_b16": "catlip.recipes.catlip_paper",
    "datacomp_b16": "catlip.recipes.catlip_paper",
    "datacomp_l16": "catlip.recipes.catlip_paper",
    "datacomp_h16": "catlip.recipes.catlip_paper",
    "budget_b16": "catlip.recipes.budget",
}


def load_recipe(name: str) -> Any:
    """Settings of a recipe: a name, or path/to/file.py:function. Raises UsageError for one that does not exist."""
    file, _, function = name.rpartition(":")
    if file.endswith(".py"):
        if not Path(file).is_file():
            raise UsageError(f"no such recipe file: {file}")
        from runpy import run_path

        found = run_path(file).get(function)
        if found is None:
            raise UsageError(f"{file} has no function {function!r}")
        return found()
    if name not in RECIPES:
        raise UsageError(f"there is no recipe {name!r}{near(name, RECIPES)}; there are {', '.join(RECIPES)}")
    return getattr(import_module(RECIPES[name]), name)()
