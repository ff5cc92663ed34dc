"""An encoder as a graph that needs no code of ours: ONNX, and PyTorch's own torch.export.

Batch size is free, and so is the image size where the backbone allows it. The graph carries what a user of it has to
know: mean, std, image size, label names.
"""

import contextlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from catlip.errors import UsageError, first_line
from catlip.models.encoder import Encoder
from catlip.notices import say

ONNX_FILE, TORCH_FILE = "model.onnx", "model.pt2"
FACTS = "catlip.json"  # inside model.pt2; in ONNX the same fields are the model's metadata
LARGEST = 1_500_000_000  # bytes of weights in one ONNX file: protobuf ends at 2 GiB

Run = Callable[[Tensor], dict[str, Tensor]]  # images [B, 3, H, W] -> results by name


class Outputs(nn.Module):
    """image [B, 3, H, W] -> pooled [B, D], tokens [B, N, D] and, with a classifier, logits [B, V]."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder.eval()
        self.names = ["pooled", "tokens", *(["logits"] if encoder.labels else [])]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        backbone = self.encoder.backbone
        features = backbone.forward_features(image)
        found = (backbone.forward_head(features, pre_logits=True), self.encoder.as_tokens(features))
        return (*found, backbone.forward_head(features)) if self.encoder.labels else found

    @torch.no_grad()
    def run(self, image: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, self(image), strict=True))


def facts_of(encoder: Encoder) -> dict[str, Any]:
    """What a graph's user has to know; fit for JSON."""
    return {
        "architecture": encoder.architecture,
        "image_size": encoder.image_size,
        "mean": encoder.mean.flatten().tolist(),
        "std": encoder.std.flatten().tolist(),
        **{name: encoder.view[name] for name in ("crop_pct", "crop_mode", "interpolation")},
        "label_names": encoder.labels,
        "label_descriptions": dict(zip(encoder.labels, encoder.names, strict=True)),
    }


def to_torch(encoder: Encoder, folder: Path) -> tuple[Run, bool]:
    """Write model.pt2; (the reloaded graph, whether the image size is free)."""
    program, any_size = _trace(encoder)
    torch.export.save(program, folder / TORCH_FILE, extra_files={FACTS: json.dumps(_as_text(facts_of(encoder)))})
    graph: Any = torch.export.load(folder / TORCH_FILE).module()
    names = Outputs(encoder).names
    return (lambda x: dict(zip(names, graph(x), strict=True))), any_size


def to_onnx(encoder: Encoder, folder: Path) -> tuple[Run, bool]:
    """Write model.onnx; (it in ONNX Runtime, whether the image size is free)."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError:
        raise UsageError("ONNX needs three more packages: pip install onnx onnxruntime onnxscript") from None
    names = Outputs(encoder).names
    exported, any_size = _trace(encoder)
    with _quiet():
        program: Any = torch.onnx.export(exported, dynamo=True, verbose=False)
    program.model.graph.inputs[0].name = "image"
    for value, name in zip(program.model.graph.outputs, names, strict=True):
        value.name = name
    program.model.metadata_props.update(_as_text(facts_of(encoder)))
    weights = sum(p.numel() * p.element_size() for p in encoder.parameters())
    program.save(str(folder / ONNX_FILE), external_data=weights > LARGEST)
    session = onnxruntime.InferenceSession(str(folder / ONNX_FILE), providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> dict[str, Tensor]:
        found = session.run(names, {"image": x.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}

    return run, any_size


def takes_any_size(encoder: Encoder) -> bool:
    """Whether images of another size than the encoder's own go through it."""
    if getattr(getattr(encoder.backbone, "patch_embed", None), "strict_img_size", False):
        return False
    try:
        with torch.no_grad():
            encoder.pooled(torch.zeros(1, 3, *[other_size(encoder)] * 2, device=encoder.mean.device))
    except (RuntimeError, AssertionError, ValueError):
        return False
    return True


def other_size(encoder: Encoder) -> int:
    """An image size that the encoder was not made for: two patches, or 64 px, more."""
    return encoder.image_size + 2 * _patch_size(encoder)


def _patch_size(encoder: Encoder) -> int:
    """Pixels a patch of token models, which image sizes are a multiple of; 32 for convolutional ones."""
    embed = getattr(encoder.backbone, "patch_embed", None)
    return int(embed.feat_ratio()) if embed is not None and hasattr(embed, "feat_ratio") else 32


def _as_text(facts: dict[str, Any]) -> dict[str, str]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}


def _trace(encoder: Encoder) -> tuple[Any, bool]:
    """The graph with the batch left open, and the image size too where that can be traced."""
    module = Outputs(encoder)
    if takes_any_size(encoder):
        # An example of another size than the encoder's own: at that one a position table is not interpolated.
        unit, size = _patch_size(encoder), other_size(encoder)
        free: dict[int, Any] = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
        if hasattr(encoder.backbone, "patch_embed"):  # convolutions take any number of pixels
            rows, columns = (torch.export.Dim(name, min=2, max=512) for name in ("rows", "columns"))
            free |= {2: unit * rows, 3: unit * columns}
        try:
            return _export(module, torch.zeros(2, 3, size, size + unit), free), True
        except Exception as error:  # the tracer's many ways of saying that a size is baked in
            say(f"the image size stays {encoder.image_size} px: {first_line(error)}")
    example = torch.zeros(2, 3, encoder.image_size, encoder.image_size)
    return _export(module, example, {0: torch.export.Dim.DYNAMIC}), False


def _export(module: Outputs, example: Tensor, free: dict[int, Any]) -> Any:
    with _quiet(), torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes={"image": free})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters speak at length of what concerns their own developers."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)
