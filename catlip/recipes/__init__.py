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
FINETUNING = {
    "imagenet_224": "catlip.recipes.transfer",
    "imagenet_512": "catlip.recipes.transfer",
    "places365_224": "catlip.recipes.transfer",
    "places365_512": "catlip.recipes.transfer",
    "coco_multilabel": "catlip.recipes.transfer",
}


def load_recipe(name: str, among: dict[str, str] = RECIPES) -> Any:
    """Settings of a recipe: a name, or path/to/file.py:function. Raises UsageError for one that does not exist.

    among: of pre-training (RECIPES) or of FINETUNING.
    """
    file, _, function = name.rpartition(":")
    if file.endswith(".py"):
        if not Path(file).is_file():
            raise UsageError(f"no such recipe file: {file}")
        from runpy import run_path

        found = run_path(file).get(function)
        if found is None:
            raise UsageError(f"{file} has no function {function!r}")
        return found()
    if name not in among:
        raise UsageError(f"there is no recipe {name!r}{near(name, among)}; there are {', '.join(among)}")
    return getattr(import_module(among[name]), name)()
