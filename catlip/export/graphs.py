"""An encoder as a graph that needs no code of ours: ONNX, and PyTorch's own torch.export.

Batch size is free, and so is the picture's size where the backbone allows it. The graph carries what a user of it has
to know as text: mean, std, picture size, label names.
"""

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from catlip.errors import UsageError
from catlip.export.outputs import Outputs, Results, other_size, patch_size, takes_any_size
from catlip.models.encoder import Encoder
from catlip.notices import say

ONNX_FILE, TORCH_FILE = "model.onnx", "model.pt2"
FACTS = "catlip.json"  # inside model.pt2; in ONNX the same fields are the model's metadata
LARGEST = 1_500_000_000  # bytes of weights in one ONNX file: protobuf ends at 2 GiB


def facts_of(encoder: Encoder) -> dict[str, str]:
    """What a graph's user has to know, as text."""
    facts: dict[str, Any] = {
        "architecture": encoder.architecture,
        "image_size": encoder.image_size,
        "mean": encoder.mean.flatten().tolist(),
        "std": encoder.std.flatten().tolist(),
        **{name: encoder.view[name] for name in ("crop_pct", "crop_mode", "interpolation")},
        "label_names": encoder.labels,
        "label_descriptions": dict(zip(encoder.labels, encoder.names, strict=True)),
    }
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}


def to_torch(encoder: Encoder, folder: Path) -> tuple[Callable[[Tensor], Results], bool]:
    """Write model.pt2; (the reloaded graph, whether the picture's size is free)."""
    program, any_size = _trace(encoder)
    facts = json.dumps(facts_of(encoder))
    torch.export.save(program, folder / TORCH_FILE, extra_files={FACTS: facts})
    graph: Any = torch.export.load(folder / TORCH_FILE).module()
    names = Outputs(encoder).names
    return (lambda x: dict(zip(names, graph(x), strict=True))), any_size


def to_onnx(encoder: Encoder, folder: Path) -> tuple[Callable[[Tensor], Results], bool]:
    """Write model.onnx; (it in ONNX Runtime, whether the picture's size is free)."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError:
        raise UsageError("ONNX needs three more packages: pip install onnx onnxruntime onnxscript") from None
    module = Outputs(encoder.eval())
    exported, any_size = _trace(encoder)
    with _quiet():
        program: Any = torch.onnx.export(exported, dynamo=True, verbose=False)
    for value, name in zip(program.model.graph.inputs, ["image"], strict=True):
        value.name = name
    for value, name in zip(program.model.graph.outputs, module.names, strict=True):
        value.name = name
    program.model.metadata_props.update(facts_of(encoder))
    weights = sum(p.numel() * p.element_size() for p in encoder.parameters())
    program.save(str(folder / ONNX_FILE), external_data=weights > LARGEST)
    session = onnxruntime.InferenceSession(str(folder / ONNX_FILE), providers=["CPUExecutionProvider"])

    def results(x: Tensor) -> Results:
        found = session.run(module.names, {"image": x.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(module.names, found, strict=True)}

    return results, any_size


def _trace(encoder: Encoder) -> tuple[Any, bool]:
    """The graph with the batch left open, and the picture's size too where that can be traced."""
    module = Outputs(encoder.eval())
    if takes_any_size(encoder):
        # An example of another size than the encoder's own: at that one a position table is not interpolated.
        unit, size = patch_size(encoder), other_size(encoder)
        dims = torch.export.Dim("rows", min=2, max=512), torch.export.Dim("columns", min=2, max=512)
        free: dict[int, Any] = {0: torch.export.Dim.DYNAMIC, 2: unit * dims[0], 3: unit * dims[1]}
        if not hasattr(encoder.backbone, "patch_embed"):  # convolutions take any number of pixels
            free |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
        try:
            return _export(module, torch.zeros(2, 3, size, size + unit), free), True
        except Exception as error:  # the tracer's many ways of saying that a size is baked in
            say(f"the picture's size stays {encoder.image_size} px: {(str(error).splitlines() or [repr(error)])[0]}")
    example = torch.zeros(2, 3, encoder.image_size, encoder.image_size)
    return _export(module, example, {0: torch.export.Dim.DYNAMIC}), False


def _export(module: Outputs, example: Tensor, free: dict[int, Any]) -> Any:
    with _quiet(), torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes={"image": free})


class _quiet:
    """The exporters speak at length of what concerns their own developers."""

    def __enter__(self) -> None:
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(logging.NOTSET)
        self._warnings.__exit__(None, None, None)
