"""A timm backbone as Encoder: tokens, pooled, pyramid, logits, and a folder that plain timm can load.

Every transfer task sees pictures through this class alone. The folder is timm's own layout (config.json and
model.safetensors), so `timm.create_model("local-dir:runs/x/encoder", pretrained=True)` needs no catlip, and label
names travel with the classifier.
"""

import difflib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.transforms import v2

import catlip.models.corenet_vit  # noqa: F401 - tells timm the architecture of the official models
from catlip.data.images import upright
from catlip.errors import UsageError
from catlip.models.folders import ENCODER_FOLDER as ENCODER_FOLDER
from catlip.models.folders import misfit, model_folder, read_json, read_tensors

# One pair for all encoders we train: no claim that ImageNet's statistics fit the user's pictures.
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


class Encoder(nn.Module):
    """x: float [B, 3, H, W] in the encoder's own input space, as `transform` and `normalize` return it."""

    def __init__(self, backbone: nn.Module, labels: list[str] | None = None, names: list[str] | None = None) -> None:
        super().__init__()
        self.backbone: Any = backbone  # timm's models share methods, not a type
        self.labels = labels or []  # wnid of each class of the classifier
        self.names = names or []
        self.arguments: dict[str, Any] = {}  # what timm was told beside name, classes and picture size
        cfg = self.backbone.pretrained_cfg
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(cfg["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(cfg["std"]).view(3, 1, 1), persistent=False)
        self.image_size: int = cfg["input_size"][-1]

    @classmethod
    def create(
        cls,
        name: str,
        *,
        image_size: int,
        pretrained: bool = False,
        any_size: bool = False,
        drop_patches: bool = False,
        drop_path: float = 0.0,
        arguments: dict[str, Any] | None = None,
        geometry: dict[str, Any] | None = None,
    ) -> "Encoder":
        """A timm backbone without classifier. any_size: takes pictures of several sizes; drop_patches: see
        keep_patches; drop_path: share of the residual branches that training skips at the last layer, less below;
        arguments: what timm shall be told beside these (positions, pooling ...), which travels with the model folder;
        geometry: the same for this use alone (output_stride), which does not.

        Raises UsageError for a name that timm does not have, and for a backbone that cannot do what is asked.
        """
        check_name(name)
        own = _own(arguments)
        options: dict[str, Any] = {"img_size": image_size} if _has_fixed_size(name) else {}
        if any_size and options:
            options["dynamic_img_size"] = True
        if drop_patches:
            options["patch_drop_rate"] = 0.5  # the rate is set batch by batch
        if drop_path:
            options["drop_path_rate"] = drop_path
        options |= geometry or {}
        try:
            backbone: Any = timm.create_model(name, pretrained=pretrained, num_classes=0, **{**own, **options})
        except TypeError:
            wish = (
                "dropped patches (`patch_keep`)"
                if drop_patches
                else "pictures of several sizes (`scales`, `low_res`)"
                if any_size
                else "stochastic depth (`drop_path`)"
                if drop_path
                else f"the arguments {', '.join(own)}"
            )
            raise UsageError(
                f"`backbone` {name}: timm's {name.split('_')[0]} cannot work with {wish}; a ViT can"
            ) from None
        except (AssertionError, RuntimeError, ValueError, ZeroDivisionError) as error:
            raise _refusal(image_size, name, error) from None
        usual = backbone.pretrained_cfg["input_size"][-1]
        backbone.pretrained_cfg = {**backbone.pretrained_cfg, "input_size": (3, image_size, image_size)}
        if not pretrained:
            backbone.pretrained_cfg |= {
                "mean": MEAN,
                "std": STD,
                "interpolation": "bilinear",
                "crop_pct": 1.0,  # the whole central square: training saw crops up to the whole picture
                "crop_mode": "center",
            }
        if own:
            backbone.build_args = {**getattr(backbone, "build_args", {}), **own}
        encoder = cls(backbone)
        encoder.arguments = own
        if image_size != usual:
            encoder.check_sizes(image_size)
        return encoder

    @property
    def architecture(self) -> str:
        return self.backbone.pretrained_cfg["architecture"]

    @property
    def width(self) -> int:
        """Length of the pooled vector."""
        return (
            self.backbone.head_hidden_size if hasattr(self.backbone, "head_hidden_size") else self.backbone.num_features
        )

    def normalize(self, image: Tensor) -> Tensor:
        """[B, 3, H, W], uint8 or float in [0, 1] -> float in the encoder's input space."""
        return ((image if image.is_floating_point() else image.float() / 255) - self.mean) / self.std

    @torch.no_grad()
    def check_sizes(self, *sizes: int) -> None:
        """Raises UsageError for a number of pixels at which a square picture does not go through."""
        state = {name: t.to("meta") for name, t in (*self.named_parameters(), *self.named_buffers())}
        training = self.training
        self.eval()
        for size in sizes:
            try:
                try:
                    functional_call(self, state, torch.empty(1, 3, size, size, device="meta"))  # computes nothing
                except (AssertionError, RuntimeError, ValueError):  # the size, or a layer that has to compute
                    self.pooled(torch.zeros(1, 3, size, size, device=self.mean.device))
            except (AssertionError, RuntimeError, ValueError) as error:
                raise _refusal(size, self.architecture, error) from None
        self.train(training)

    def resize(self, image_size: int) -> None:
        """Square pictures of so many pixels from now on. A backbone that is made for a size is made anew; positions,
        and tables of relative ones, are interpolated.

        Raises UsageError for a size that the architecture cannot be brought to.
        """
        if image_size == self.image_size:
            return
        old, name = self.backbone, self.architecture
        if _has_fixed_size(name):
            try:
                new: Any = timm.create_model(
                    name, num_classes=old.num_classes, **{**self.arguments, "img_size": image_size}
                )
            except (AssertionError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
                raise _refusal(image_size, name, error) from None
            state = translated(new, old.state_dict())
            if wrong := misfit(new.state_dict(), state):
                raise _refusal(image_size, name, f"its weights are for {self.image_size} px and stay so: {wrong}")
            new.load_state_dict(state)
            new.pretrained_cfg = old.pretrained_cfg
            self.backbone = new.train(old.training).to(self.mean.device)
        self.check_sizes(image_size)
        self.backbone.pretrained_cfg = {**self.backbone.pretrained_cfg, "input_size": (3, image_size, image_size)}
        self.image_size = image_size

    def keep_patches(self, share: float) -> None:
        """Keep a random share of the patches in training (FLIP, arXiv 2212.00794); for encoders made to drop some."""
        if hasattr(getattr(self.backbone, "patch_drop", None), "prob"):
            self.backbone.patch_drop.prob = 1.0 - share

    def compile(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """torch.compile what training runs; the weights' names stay. One graph a picture size."""
        for limit in ("recompile_limit", "cache_size_limit"):  # the newer and the older name
            if hasattr(torch._dynamo.config, limit):
                setattr(torch._dynamo.config, limit, 64)
        # In place, so that copies of this encoder (the running average) are not bound to its weights.
        self.backbone.compile(dynamic=False)

    def tokens(self, x: Tensor) -> Tensor:
        """Patch tokens, or the places of the last feature map: [B, N, D]."""
        return self.as_tokens(self.backbone.forward_features(x))

    def as_tokens(self, features: Tensor) -> Tensor:
        """What the backbone's forward_features returns -> [B, N, D]."""
        if features.ndim == 4 and getattr(self.backbone, "output_fmt", "NCHW") == "NHWC":  # Swin
            return features.flatten(1, 2)
        if features.ndim == 4:  # [B, D, h, w] of convolutional backbones
            return features.flatten(2).transpose(1, 2)
        return features[:, getattr(self.backbone, "num_prefix_tokens", 0) :]

    def pooled(self, x: Tensor) -> Tensor:
        """One vector a picture: [B, D]."""
        if not self.backbone.num_classes:
            return self.backbone(x)  # the way that `compile` compiles
        return self.backbone.forward_head(self.backbone.forward_features(x), pre_logits=True)

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Feature maps [B, D_i, h_i, w_i], the finest first."""
        return self.backbone.forward_intermediates(x, intermediates_only=True)

    def logits(self, x: Tensor) -> Tensor:
        """Scores of the labels: [B, len(labels)]. Raises UsageError for an encoder without classifier."""
        if not self.labels:
            raise UsageError("this encoder has no classifier, so it has no logits")
        return self.backbone(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.pooled(x)

    @property
    def view(self) -> dict[str, Any]:
        """How a whole picture becomes the encoder's input, in timm's words: input_size, interpolation, mean, std,
        crop_pct, crop_mode."""
        return resolve_data_config({"input_size": (3, self.image_size, self.image_size)}, self.backbone.pretrained_cfg)

    @property
    def pixels(self) -> v2.Compose:
        """PIL picture -> uint8 [3, H, W], which `normalize` takes: upright, then timm's evaluation transform.

        Whatever shows an encoder whole pictures goes this way.
        """
        evaluated: Any = create_transform(**self.view, normalize=False)
        return v2.Compose([v2.Lambda(upright), evaluated])

    @property
    def transform(self) -> v2.Compose:
        """PIL picture -> float [3, H, W] in the encoder's input space: `pixels`, normalized."""
        normalize = v2.Normalize(self.mean.flatten().tolist(), self.std.flatten().tolist())
        return v2.Compose([self.pixels, v2.ToDtype(torch.float32, scale=True), normalize])

    def save(self, folder: Path, head: nn.Linear | None = None, **card: Any) -> None:
        """Write timm's model folder. head: the classifier to ship, its rows in the order of card["label_names"]."""
        num_classes = head.out_features if head is not None else 0
        args: dict[str, Any] = {"img_size": self.image_size} if _has_fixed_size(self.architecture) else {}
        args |= getattr(self.backbone, "build_args", {})
        model: Any = timm.create_model(self.architecture, num_classes=num_classes, **args)
        state = self.backbone.state_dict()
        if head is not None:
            for name in classifiers(self.backbone.pretrained_cfg):  # of DeiT and LeViT two, whose mean is taken
                state |= {f"{name}.weight": head.weight, f"{name}.bias": head.bias}
        model.load_state_dict({key: value.detach().float().cpu() for key, value in state.items()})
        names = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
        cfg = {name: self.backbone.pretrained_cfg[name] for name in names if name in self.backbone.pretrained_cfg}
        model.pretrained_cfg = {**model.pretrained_cfg, **cfg, "num_classes": num_classes, "license": "other"}
        folder.mkdir(parents=True, exist_ok=True)
        timm.models.save_for_hf(model, str(folder), model_config={"model_args": args, **card}, safe_serialization=True)


def check_name(name: str) -> None:
    """Raises UsageError, with near names, for a backbone that timm does not have."""
    if not timm.is_model(name.split(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else "; `timm.list_models()` lists all"
        raise UsageError(f"`backbone` {name!r}: timm {timm.__version__} has no such model{hint}")


def classifiers(cfg: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classifier's layers in a backbone, from timm's configuration of it; distilled models have two."""
    found = cfg.get("classifier") or ()
    return (found,) if isinstance(found, str) else tuple(found)


def _own(arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (arguments or {}).items() if key not in ("img_size", "num_classes")}


def _refusal(image_size: int, name: str, error: Exception | str) -> UsageError:
    what = (str(error).splitlines() or [repr(error)])[0]
    return UsageError(f"`image_size` {image_size}: {name} refuses it: {what}")


def translated(backbone: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as a backbone wants them, by timm's own translation for its family: foreign names, and positions on
    another grid. As they are where there is none, or where they are not of its kind either."""
    translate = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if translate is not None and misfit(backbone.state_dict(), state):
        try:
            return translate(dict(state), backbone)
        except (KeyError, RuntimeError, ValueError, AttributeError, AssertionError):
            pass
    return dict(state)


def _has_fixed_size(name: str) -> bool:
    """Whether a backbone has to be told its picture size when it is made (ViTs and other token models)."""
    return bool(timm.get_pretrained_cfg_value(name, "fixed_input_size"))


def load(path: str | Path) -> Encoder:
    """An encoder from a run folder, a model folder in timm's layout, "hf-hub:org/name", or "timm:NAME" (pretrained).

    Raises UsageError, with one clear line, for anything else.
    """
    if str(path).startswith("timm:"):
        return Encoder(pretrained(str(path).removeprefix("timm:")).eval()).eval()
    folder = model_folder(path)
    card = read_json(folder / "config.json")
    name = card.get("architecture")
    if not isinstance(name, str) or not timm.is_model(name):
        raise UsageError(f"{folder / 'config.json'}: timm {timm.__version__} has no architecture {name!r}")
    state = read_tensors(folder / "model.safetensors")
    try:
        backbone: Any = timm.create_model(f"local-dir:{folder}", pretrained=False)
    except (TypeError, ValueError, RuntimeError, KeyError, AssertionError) as error:
        raise UsageError(f"{folder / 'config.json'}: {name} cannot be made: {str(error).splitlines()[0]}") from None
    if wrong := misfit(backbone.state_dict(), state):
        raise UsageError(f"{folder}: the weights are not those of {name}, which config.json names: {wrong}")
    backbone.load_state_dict(state)
    names = card.get("label_descriptions") or {}
    labels = card.get("label_names") or []
    if labels and len(labels) != backbone.num_classes:
        raise UsageError(f"{folder}: {len(labels):,} labels for a classifier of {backbone.num_classes:,} classes")
    encoder = Encoder(backbone.eval(), labels, [names.get(label, label) for label in labels]).eval()
    encoder.arguments = {
        k: v for k, v in (card.get("model_args") or {}).items() if k not in ("img_size", "num_classes")
    }
    return encoder


def pretrained(name: str, **changes: Any) -> Any:
    """timm's model of this name with its weights, from the cache or the net. Raises UsageError if there are none."""
    check_name(name)
    try:
        return timm.create_model(name, pretrained=True, **changes)
    except Exception as error:  # timm, the hub and the net below it each raise their own
        raise UsageError(f"timm:{name} cannot be had: {(str(error).splitlines() or [repr(error)])[0]}") from None
