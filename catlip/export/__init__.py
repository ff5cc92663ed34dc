"""Weights out, and encoders in use. `catlip.export(encoder, "onnx", "out/")` is the function of export.py: once this
folder is imported it stands under the same name, so it can be called."""

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    def __call__(self, *args: Any, **settings: Any) -> Any:
        from catlip.export.export import export

        return export(*args, **settings)


sys.modules[__name__].__class__ = _Room
