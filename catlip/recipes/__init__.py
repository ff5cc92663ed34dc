"""Complete runs as functions of their own; this file only knows their names, and imports nothing heavy."""

from importlib import import_module
from pathlib import Path
from typing import Any

from catlip.errors import UsageError, near

_IN = {
    "flickr8k_cpu": "flickr8k_cpu flickr8k_softmax flickr8k_asymmetric flickr8k_subwords flickr8k_clip flickr8k_siglip "
    "flickr8k_clip_lite flickr8k_superclip flickr8k_siglip_synsets",
    "catlip_paper": "cc3m_b16 datacomp_b16 datacomp_l16 datacomp_h16",
    "budget": "budget_b16",
}
RECIPES = {name: f"catlip.recipes.{module}" for module, names in _IN.items() for name in names.split()}
FINETUNING: dict[str, str] = dict.fromkeys(
    ("imagenet_224", "imagenet_512", "places365_224", "places365_512", "coco_multilabel"), "catlip.recipes.transfer"
)


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
