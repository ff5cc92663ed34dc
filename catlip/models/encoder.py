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
from catlip.errors import UsageError, first_line

# One pair for all encoders we train: no claim that ImageNet's statistics fit the user's pictures.
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
REFUSALS = (AssertionError, RuntimeError, ValueError, ZeroDivisionError)  # how backbones say that a size is wrong


class Encoder(nn.Module):
    """A vision encoder: images of one size in, features out. A timm model stands behind it, as `backbone`.

    In all methods x is float [B, 3, H, W] in the encoder's own input space, as `transform` (of a PIL image) and
    `normalize` (of a batch) return it; H = W = `image_size` pixels, unless the backbone takes other sizes too.

    labels: wnid or name of each class of the classifier, [] without one. names: the same for people. multi_label:
    whether several labels may be true of an image. source: where it was loaded from; "" if it was made here.

    >>> encoder = Encoder.create("test_resnet", image_size=64).eval()
    >>> x = torch.zeros(2, 3, 64, 64)
    >>> encoder.pooled(x).shape == (2, encoder.width)
    True
    >>> [tuple(level.shape[2:]) for level in encoder.pyramid(x)]
    [(32, 32), (16, 16), (8, 8), (4, 4), (2, 2)]
    """

    def __init__(self, backbone: nn.Module, labels: list[str] | None = None, names: list[str] | None = None) -> None:
        """backbone: a model that `timm.create_model` made. labels, names: of its classifier's rows."""
        super().__init__()
        self.backbone: Any = backbone  # timm's models share methods, not a type
        self.labels = labels or []
        self.names = names or []
        self.multi_label = True
        self.source = ""
        # What timm was told beside name, classes and image size; saved with the weights.
        self.arguments: dict[str, Any] = dict(getattr(backbone, "build_args", {}))
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
        any_size: bool = False,
        drop_patches: bool = False,
        drop_path: float = 0.0,
        arguments: Mapping[str, Any] | None = None,
        geometry: Mapping[str, Any] | None = None,
    ) -> "Encoder":
        """A timm backbone with random weights and without classifier; `catlip.load("timm:NAME")` has trained ones.

        image_size: pixels of the square images. any_size: takes several sizes. drop_patches: see `keep_patches`.
        drop_path: share of the residual branches that training skips at the last layer, less below. arguments: what
        timm shall be told beside these (positions, pooling ...), which is saved with the weights; geometry: the same
        for this use alone (output_stride), which is not.

        Raises UsageError for a name that timm does not have, and for a backbone that cannot do what is asked.
        """
        check_name(name)
        own = own_arguments(arguments)
        options: dict[str, Any] = {"img_size": image_size} if has_fixed_size(name) else {}
        if any_size and options:
            options["dynamic_img_size"] = True
        if drop_patches:
            options["patch_drop_rate"] = 0.5  # the rate is set batch by batch
        if drop_path:
            options["drop_path_rate"] = drop_path
        options |= geometry or {}
        try:
            backbone: Any = timm.create_model(name, num_classes=0, **{**own, **options})
        except TypeError:
            wishes = {
                "patch_drop_rate": "dropped patches (`patch_keep`)",
                "dynamic_img_size": "pictures of several sizes (`scales`, `low_res`)",
                "drop_path_rate": "stochastic depth (`drop_path`)",
            }
            wish = next((wishes[option] for option in wishes if option in options), f"the arguments {', '.join(own)}")
            family = name.split("_")[0]
            raise UsageError(f"`backbone` {name}: timm's {family} cannot work with {wish}; a ViT can") from None
        except REFUSALS as error:
            raise size_refused(image_size, name, error) from None
        usual = backbone.pretrained_cfg["input_size"][-1]
        backbone.pretrained_cfg = {
            **backbone.pretrained_cfg,
            "input_size": (3, image_size, image_size),
            "mean": MEAN,
            "std": STD,
            "interpolation": "bilinear",
            "crop_pct": 1.0,  # the whole central square: training saw crops up to the whole picture
            "crop_mode": "center",
        }
        encoder = cls(backbone)
        encoder.arguments |= own
        if image_size != usual:
            encoder.check_sizes(image_size)
        return encoder

    @property
    def architecture(self) -> str:
        """timm's name of the backbone."""
        return self.backbone.pretrained_cfg["architecture"]

    @property
    def in_timm(self) -> bool:
        """Whether plain timm, without catlip, has this architecture."""
        return not hasattr(self.backbone, "build_args")

    @property
    def name(self) -> str:
        """What it is called in results and records: where it was loaded from, else its architecture."""
        return self.source or self.architecture

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
        """Raises UsageError for a number of pixels at which a square image does not go through."""
        state = {name: t.to("meta") for name, t in (*self.named_parameters(), *self.named_buffers())}
        training = self.training
        self.eval()
        for size in sizes:
            try:
                try:
                    functional_call(self, state, torch.empty(1, 3, size, size, device="meta"))  # computes nothing
                except REFUSALS:  # the size, or a layer that has to compute
                    self.pooled(torch.zeros(1, 3, size, size, device=self.mean.device))
            except REFUSALS as error:
                raise size_refused(size, self.architecture, error) from None
        self.train(training)

    def resize(self, image_size: int) -> None:
        """Square images of so many pixels from now on. A backbone that is made for one size is made anew; positions,
        and tables of relative ones, are interpolated.

        Raises UsageError for a size that the architecture cannot be brought to.
        """
        if image_size == self.image_size:
            return
        old, name = self.backbone, self.architecture
        if has_fixed_size(name):
            arguments = {**self.arguments, "img_size": image_size}
            try:
                new: Any = timm.create_model(name, num_classes=old.num_classes, **arguments)
            except (*REFUSALS, TypeError) as error:
                raise size_refused(image_size, name, error) from None
            state = translated(new, old.state_dict())
            if wrong := misfit(new.state_dict(), state):
                raise size_refused(image_size, name, f"its weights are for {self.image_size} px and stay so: {wrong}")
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
        """torch.compile what training runs; the weights' names stay. One graph for each image size."""
        for limit in ("recompile_limit", "cache_size_limit"):  # the newer and the older name
            if hasattr(torch._dynamo.config, limit):
                setattr(torch._dynamo.config, limit, 64)
        # In place, so that copies of this encoder (the running average) are not bound to its weights.
        self.backbone.compile(dynamic=False)

    def tokens(self, x: Tensor) -> Tensor:
        """Patch tokens, or the positions of the last feature map: [B, N, D]."""
        return self.as_tokens(self.backbone.forward_features(x))

    def as_tokens(self, features: Tensor) -> Tensor:
        """What the backbone's forward_features returns -> [B, N, D]."""
        if features.ndim == 4:
            return self.as_map(features).flatten(2).transpose(1, 2)
        return features[:, getattr(self.backbone, "num_prefix_tokens", 0) :]

    def as_map(self, features: Tensor) -> Tensor:
        """What forward_features of a backbone with feature maps returns -> [B, D, h, w]."""
        return features.permute(0, 3, 1, 2) if getattr(self.backbone, "output_fmt", "NCHW") == "NHWC" else features

    def pooled(self, x: Tensor) -> Tensor:
        """One vector an image: [B, width]."""
        if not self.backbone.num_classes:
            return self.backbone(x)  # the way that `compile` compiles
        return self.backbone.forward_head(self.backbone.forward_features(x), pre_logits=True)

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Feature maps [B, D_i, h_i, w_i], the finest first."""
        return self.backbone.forward_intermediates(x, intermediates_only=True)

    def logits(self, x: Tensor) -> Tensor:
        """Scores of the labels: [B, len(labels)]. Raises UsageError for an encoder without classifier."""
        if not self.labels:
            rows = self.backbone.num_classes
            why = f"a classifier of {rows:,} rows without names" if rows else "no classifier"
            raise UsageError(f"this encoder has {why}; `catlip head` or `catlip.head` trains one for nouns of captions")
        return self.backbone(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.pooled(x)

    @property
    def view(self) -> dict[str, Any]:
        """How a whole image becomes the encoder's input, in timm's words: input_size, interpolation, mean, std,
        crop_pct, crop_mode."""
        return resolve_data_config({"input_size": (3, self.image_size, self.image_size)}, self.backbone.pretrained_cfg)

    @property
    def pixels(self) -> v2.Compose:
        """PIL image -> uint8 [3, H, W], which `normalize` takes: upright, then timm's evaluation transform.

        Whatever shows an encoder whole images goes this way.
        """
        evaluated: Any = create_transform(**self.view, normalize=False)
        return v2.Compose([v2.Lambda(upright), evaluated])

    @property
    def transform(self) -> v2.Compose:
        """PIL image -> float [3, H, W] in the encoder's input space: `pixels`, normalized."""
        normalize = v2.Normalize(self.mean.flatten().tolist(), self.std.flatten().tolist())
        return v2.Compose([self.pixels, v2.ToDtype(torch.float32, scale=True), normalize])

    def save(self, folder: str | Path, head: nn.Linear | None = None, **card: Any) -> None:
        """Write timm's model folder, which `catlip.load` and timm read.

        head: the classifier to ship, its rows in the order of card["label_names"]; without, the one that the encoder
        was loaded with.
        """
        cfg = self.backbone.pretrained_cfg
        state = self.backbone.state_dict()
        num_classes = 0
        if head is not None:
            num_classes = head.out_features
            for name in classifiers(cfg):  # of DeiT and LeViT two, whose mean is taken
                state |= {f"{name}.weight": head.weight, f"{name}.bias": head.bias}
        elif self.labels:
            num_classes = self.backbone.num_classes
            names = dict(zip(self.labels, self.names, strict=True))
            own = {"label_names": self.labels, "label_descriptions": names, "multi_label": self.multi_label}
            card = own | card
        args: dict[str, Any] = {"img_size": self.image_size} if has_fixed_size(self.architecture) else {}
        args |= self.arguments
        model: Any = timm.create_model(self.architecture, num_classes=num_classes, **args)
        if not num_classes:  # rows without names say nothing
            state = without_classifier(state, cfg)
        shapes = {key: value.shape for key, value in model.state_dict().items()}  # some heads are 1 x 1 convolutions
        model.load_state_dict({key: value.detach().float().cpu().view(shapes[key]) for key, value in state.items()})
        kept = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
        kept = {name: cfg[name] for name in kept if name in cfg}
        model.pretrained_cfg = {**model.pretrained_cfg, **kept, "num_classes": num_classes, "license": "other"}
        Path(folder).mkdir(parents=True, exist_ok=True)
        timm.models.save_for_hf(model, str(folder), model_config={"model_args": args, **card}, safe_serialization=True)


def check_name(name: str) -> None:
    """Raises UsageError, with near names, for a backbone that timm does not have."""
    if not timm.is_model(str(name).split(".")[0]):
        near = difflib.get_close_matches(str(name), timm.list_models(), n=4, cutoff=0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else "; `timm.list_models()` lists all"
        raise UsageError(f"`backbone` {name!r}: timm {timm.__version__} has no such model{hint}")


def has_fixed_size(name: str) -> bool:
    """Whether a backbone has to be told its image size when it is made (ViTs and other token models)."""
    return bool(timm.get_pretrained_cfg_value(name, "fixed_input_size"))


def own_arguments(arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """What timm was told of a backbone, but for what catlip tells it anew."""
    return {key: value for key, value in (arguments or {}).items() if key not in ("img_size", "num_classes")}


def size_refused(image_size: int, name: str, error: Exception | str) -> UsageError:
    what = error if isinstance(error, str) else first_line(error)
    return UsageError(f"`image_size` {image_size}: {name} refuses it: {what}")


def classifiers(cfg: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classifier's layers in a backbone, from timm's configuration of it; distilled models have two."""
    found = cfg.get("classifier") or ()
    return (found,) if isinstance(found, str) else tuple(found)


def without_classifier(state: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a backbone but for its classifier. cfg: timm's configuration of it."""
    heads = tuple(f"{name}." for name in classifiers(cfg))
    return {name: value for name, value in state.items() if not name.startswith(heads)}


def misfit(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Why weights do not fit a model, in a few words; empty if they do."""
    missing = sorted(set(wanted) - set(found))
    extra = sorted(set(found) - set(wanted))
    shapes = [name for name in wanted if name in found and wanted[name].shape != found[name].shape]
    told = [
        f"{len(names)} {what}, e.g. {names[0]}"
        for names, what in ((missing, "tensors missing"), (extra, "too many"), (shapes, "of another shape"))
        if names
    ]
    if shapes:
        told[-1] += f" ({list(found[shapes[0]].shape)} for {list(wanted[shapes[0]].shape)})"
    return "; ".join(told)


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
