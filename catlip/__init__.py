"""Captioned pictures in, a vision encoder out. Importing catlip imports neither torch nor timm."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Encoder", "Labeler", "Vocabulary", "load", "load_detector", "load_segmenter"]

if TYPE_CHECKING:
    from catlip.labels.labeler import Labeler
    from catlip.labels.vocabulary import Vocabulary
    from catlip.models.detector import load_detector
    from catlip.models.encoder import Encoder
    from catlip.models.segmenter import load_segmenter
    from catlip.models.weights import load

_HOMES = {
    "Labeler": "catlip.labels.labeler",
    "Vocabulary": "catlip.labels.vocabulary",
    "Encoder": "catlip.models.encoder",
    "load": "catlip.models.weights",
    "load_detector": "catlip.models.detector",
    "load_segmenter": "catlip.models.segmenter",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'catlip' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
