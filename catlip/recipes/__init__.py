"""Complete runs as functions of their own; this file only knows their names, and imports nothing heavy."""

from importlib import import_module
from pathlib import Path
from typing import Any

from catlip.errors import UsageError, near

_IN = {
    "pretrain": {
        "flickr8k_cpu": "flickr8k_cpu flickr8k_softmax flickr8k_asymmetric flickr8k_subwords flickr8k_clip "
        "flickr8k_siglip flickr8k_clip_lite flickr8k_superclip flickr8k_siglip_synsets",
        "catlip_paper": "cc3m_b16 datacomp_b16 datacomp_l16 datacomp_h16",
        "budget": "budget_b16",
    },
    "finetune": {"transfer": "imagenet_224 imagenet_512 places365_224 places365_512 coco_multilabel"},
    "detect": {"mask_rcnn": "mask_rcnn_b16 mask_rcnn_l16 mask_rcnn_h16"},
    "segment": {"ade20k": "ade20k_b16 ade20k_l16 ade20k_h16"},
}
RECIPES = {
    verb: {name: f"catlip.recipes.{module}" for module, names in files.items() for name in names.split()}
    for verb, files in _IN.items()
}  # verb -> name of a recipe -> module


def check_recipe(name: str, verb: str = "pretrain") -> None:
    """Raises UsageError for a name or a file that does not exist; nothing is imported for it."""
    file, _, _ = name.rpartition(":")
    if file.endswith(".py"):
        if not Path(file).is_file():
            raise UsageError(f"no such recipe file: {file}")
    elif name not in (among := RECIPES[verb]):
        raise UsageError(f"there is no recipe {name!r}{near(name, among)}; there are {', '.join(among)}")


def load_recipe(name: str, verb: str = "pretrain") -> Any:
    """Settings of a recipe: a name, or path/to/file.py:function. Raises UsageError for one that does not exist."""
    check_recipe(name, verb)
    file, _, function = name.rpartition(":")
    if file.endswith(".py"):
        from runpy import run_path

        found = run_path(file).get(function)
        if found is None:
            raise UsageError(f"{file} has no function {function!r}")
        return found()
    return getattr(import_module(RECIPES[verb][name]), name)()
