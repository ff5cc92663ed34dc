"""Captioned pictures in, a vision encoder out. Importing catlip imports neither torch nor timm.

>>> import catlip
>>> data = catlip.open([("dog.jpg", "a brown dog on a lawn"), ("cat.jpg", "two cats and a lemon")])
>>> catlip.Vocabulary.count(data, min_count=1).names[:2]
['cat', 'dog']
"""

from typing import TYPE_CHECKING, Any

__all__ = [
    "Dataset",
    "Encoder",
    "Labeler",
    "Run",
    "Sample",
    "Task",
    "TrainConfig",
    "Vocabulary",
    "adapt",
    "align",
    "atlas",
    "bias",
    "convert",
    "detect",
    "embed",
    "export",
    "finetune",
    "ground",
    "head",
    "load",
    "load_detector",
    "load_segmenter",
    "mix",
    "open",
    "pack",
    "predict",
    "pretrain",
    "probe",
    "retrieve",
    "segment",
    "subset",
    "train",
    "with_classes",
    "zero_shot",
]

if TYPE_CHECKING:
    __version__: str
    from catlip.data.dataset import Dataset, Sample
    from catlip.data.open import open_dataset as open
    from catlip.data.pack import pack
    from catlip.data.subsets import mix, subset, with_classes
    from catlip.evaluation.bias import bias
    from catlip.evaluation.grounding import ground
    from catlip.evaluation.probe import probe
    from catlip.evaluation.retrieval import retrieve
    from catlip.evaluation.zero_shot import zero_shot
    from catlip.export.convert import convert
    from catlip.export.embed import embed
    from catlip.export.export import export
    from catlip.export.predict import predict
    from catlip.labels.labeler import Labeler
    from catlip.labels.vocabulary import Vocabulary
    from catlip.models.detector import load_detector
    from catlip.models.encoder import Encoder
    from catlip.models.segmenter import load_segmenter
    from catlip.models.weights import load
    from catlip.recipes.curves import finetune
    from catlip.report.atlas import atlas
    from catlip.tasks.adapt import adapt
    from catlip.tasks.align import align
    from catlip.tasks.detect import detect
    from catlip.tasks.head import head
    from catlip.tasks.pretrain import pretrain
    from catlip.tasks.segment import segment
    from catlip.training.run import Run
    from catlip.training.task import Task
    from catlip.training.train import TrainConfig, train

_HOMES = {  # public name -> module, and the name there if it is another one
    "open": "data.open:open_dataset",
    "Dataset": "data.dataset",
    "Sample": "data.dataset",
    "subset": "data.subsets",
    "with_classes": "data.subsets",
    "mix": "data.subsets",
    "pack": "data.pack",
    "Labeler": "labels.labeler",
    "Vocabulary": "labels.vocabulary",
    "pretrain": "tasks.pretrain",
    "finetune": "recipes.curves",
    "detect": "tasks.detect",
    "segment": "tasks.segment",
    "align": "tasks.align",
    "head": "tasks.head",
    "adapt": "tasks.adapt",
    "train": "training.train",
    "TrainConfig": "training.train",
    "Task": "training.task",
    "Run": "training.run",
    "probe": "evaluation.probe",
    "zero_shot": "evaluation.zero_shot",
    "retrieve": "evaluation.retrieval",
    "ground": "evaluation.grounding",
    "bias": "evaluation.bias",
    "embed": "export.embed",
    "predict": "export.predict",
    "export": "export.export",
    "convert": "export.convert",
    "atlas": "report.atlas",
    "load": "models.weights",
    "load_detector": "models.detector",
    "load_segmenter": "models.segmenter",
    "Encoder": "models.encoder",
}


def _version() -> str:
    """Of what is installed: under either name, or a source tree that is not."""
    from contextlib import suppress
    from importlib import metadata

    for name in ("catlip", "catlip-labels"):
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return "0+unknown"


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'catlip' has no attribute {name!r}")
    from importlib import import_module

    from catlip.errors import torch_needed

    module, _, there = _HOMES[name].partition(":")
    with torch_needed(f"catlip.{name}"):
        return getattr(import_module(f"catlip.{module}"), there or name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
