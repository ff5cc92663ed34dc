"""Official CatLIP checkpoints (CoreNet) -> a run folder. The verb `convert`.

Read are the pre-trained and fine-tuned classifiers and, without their heads, the encoders inside the Mask R-CNN and
DeepLabv3 checkpoints. A checkpoint is opened with `weights_only=True`: a file that holds more than tensors in plain
containers is refused, never run.
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

import catlip
from catlip.atomic import write_text
from catlip.config import configure
from catlip.data.dataset import lines
from catlip.errors import UsageError
from catlip.labels.labeler import read_utf8
from catlip.labels.vocabulary import Vocabulary
from catlip.models.corenet_vit import architecture_of
from catlip.models.encoder import Encoder, misfit
from catlip.models.model_folders import ENCODER_FOLDER, check_empty
from catlip.models.state_dicts import read_state, write_tensors

# CoreNet's names -> timm's. Some models write out_proj for out_proj_attn.
_LAYER = r"transformer\.(\d+)\."
NAMES = [
    (r"cls_token", "cls_token"),
    (r"pos_embed\.pos_embed\.pos_embed", "pos_embed"),
    (r"patch_emb\.0\.block\.conv\.", "patch_embed.conv1."),
    (r"patch_emb\.0\.block\.norm\.", "patch_embed.norm1."),
    (r"patch_emb\.1\.block\.conv\.", "patch_embed.conv2."),
    (r"patch_emb\.1\.block\.norm\.", "patch_embed.norm2."),
    (r"patch_emb\.2\.block\.conv\.", "patch_embed.proj."),
    (_LAYER + r"pre_norm_mha\.0\.", r"blocks.\1.norm1."),
    (_LAYER + r"pre_norm_mha\.1\.qkv_proj\.", r"blocks.\1.attn.qkv."),
    (_LAYER + r"pre_norm_mha\.1\.out_proj(?:_attn)?\.", r"blocks.\1.attn.proj."),
    (_LAYER + r"pre_norm_ffn\.0\.", r"blocks.\1.norm2."),
    (_LAYER + r"pre_norm_ffn\.1\.", r"blocks.\1.mlp.fc1."),
    (_LAYER + r"pre_norm_ffn\.4\.", r"blocks.\1.mlp.fc2."),
    (r"post_transformer_norm\.", "norm."),
    (r"classifier\.", "head."),
]
STEM = "patch_emb.0.block.conv.weight"  # where this name ends, the encoder's prefix begins
AUGMENTOR = "neural_augmentor."  # RangeAugment's six learned strengths: of use in training alone
IMAGENET = "imagenet-1k"


@dataclass(kw_only=True, slots=True)
class ConvertConfig:
    """Settings of `catlip convert`."""

    checkpoint: str  # official .pt file
    out: str  # run folder, new
    vocab: str | None = None  # the official vocabulary (.pkl) or a vocab.tsv: names of the classifier's rows
    labels: str | None = None  # instead, of fine-tuned models: "imagenet-1k", or a file with one name a line
    positions: str = "1d"  # at other sizes than 224 px: 1d, exactly as the official code; 2d, as on a grid
    image_size: int = 224  # pixels; the official fine-tuned models come in 224 and 512
    stride: int = 16  # pixels a patch; 8 as DeepLabv3 runs it


@dataclass(kw_only=True, slots=True)
class ConvertResult:
    """A run folder that was written, and its encoder. Whatever takes a Run takes it."""

    out: Path
    encoder: Encoder
    named: bool  # whether somebody named the classes
    left_out: dict[str, int]  # part of the checkpoint -> tensors that have no place here

    def to_json(self) -> dict[str, Any]:
        return {"out": str(self.out), "architecture": self.encoder.architecture, "left_out": self.left_out}

    def __str__(self) -> str:
        encoder = self.encoder
        parameters = sum(p.numel() for p in encoder.parameters())
        left = ", ".join(f"{name.rstrip('.')} ({n} tensors)" for name, n in self.left_out.items())
        lines = [
            f"{self.out}: {encoder.architecture}, {parameters:,} parameters, {len(encoder.labels):,} classes, RGB in "
            f"[0, 1] at {encoder.image_size} px, positions {encoder.arguments['positions']}"
            + (f"; left out: {left}" if left else "")
        ]
        if encoder.labels and not self.named:
            lines += ["its classes are numbers: neither `vocab` nor `labels` was given"]
        lines += [
            f"catlip.load({str(self.out)!r}) opens it; plain timm has no ViT with this stem, so other programs read it "
            f"after `catlip export {self.out} --format onnx`, `torch-export` or `state-dict`"
        ]
        return "\n".join(lines)


def convert(
    checkpoint: str | Path | None = None,
    out: str | Path | None = None,
    *,
    config: ConvertConfig | None = None,
    **settings: Any,
) -> ConvertResult:
    """Write the run folder `out` from an official checkpoint. settings: fields of ConvertConfig.

    Raises UsageError for a file that is no official checkpoint, before anything is written.
    """
    cfg = configure(ConvertConfig, config, checkpoint=checkpoint, out=out, **settings)
    folder = Path(cfg.out)
    check_empty(folder, "`out`")
    if cfg.positions not in ("1d", "2d") or cfg.stride not in (8, 16):
        raise UsageError(f"`positions` is 1d or 2d and `stride` 8 or 16, not {cfg.positions!r} and {cfg.stride}")
    state, left_out = translate(read_state(cfg.checkpoint), str(cfg.checkpoint))
    backbone = _backbone(state, cfg)
    labels, names, vocabulary = _labels(cfg, backbone.num_classes)
    backbone.pretrained_cfg |= {"input_size": (3, cfg.image_size, cfg.image_size), "tag": "corenet"}
    if cfg.image_size != 224:
        backbone.pretrained_cfg["crop_pct"] = 1.0  # the official 512-px models are shown the whole picture
    encoder = Encoder(backbone, labels, names).eval()
    encoder.multi_label = vocabulary is not None
    encoder.source = str(folder)
    encoder.save(folder / ENCODER_FOLDER)
    if labels:  # as `catlip pretrain` writes it
        write_tensors(folder / "objective.safetensors", {k: v for k, v in state.items() if k.startswith("head.")})
    if vocabulary is not None:
        vocabulary.save(folder / "vocab.tsv")
    facts = {"converted": Path(cfg.checkpoint).name, "vocabulary": vocabulary.hash if vocabulary else None}
    record = {"config": asdict(cfg), "facts": facts, "versions": {"catlip": catlip.__version__}}
    write_text(folder / "config.json", json.dumps(record, indent=2, default=str) + "\n")
    return ConvertResult(out=folder, encoder=encoder, named=bool(cfg.vocab or cfg.labels), left_out=left_out)


def translate(state: dict[str, Tensor], source: str) -> tuple[dict[str, Tensor], dict[str, int]]:
    """(the encoder under timm's names, what was left out: first part of the name -> tensors).

    Raises UsageError for a checkpoint without exactly one official encoder, or with names nobody knows.
    """
    stems = [name for name in state if name.endswith(STEM)]
    if len(stems) != 1:
        raise UsageError(f"{source} is no official CatLIP checkpoint: {len(stems)} of its tensors are named *{STEM}")
    prefix = stems[0].removesuffix(STEM)
    found: dict[str, Tensor] = {}
    dropped: dict[str, int] = {}
    for name, value in state.items():
        inner = name.removeprefix(prefix)
        known = next((rule for rule in NAMES if name.startswith(prefix) and re.match(rule[0], inner)), None)
        if known is not None:
            found[re.sub(known[0], known[1], inner, count=1)] = value.float() if value.is_floating_point() else value
        elif prefix or inner.startswith(AUGMENTOR):  # heads of a detector or segmenter
            part = name.split(".")[0] if not name.startswith(prefix) else prefix + inner.split(".")[0]
            dropped[part] = dropped.get(part, 0) + 1
        else:
            raise UsageError(f"{source}: {name} is no tensor of an official CatLIP model")
    if "pos_embed" in found:
        found["pos_embed"] = found["pos_embed"].reshape(1, -1, found["pos_embed"].shape[-1])
    return found, dropped


def _backbone(state: dict[str, Tensor], cfg: ConvertConfig) -> Any:
    width = state["patch_embed.proj.weight"].shape[0]
    depth = 1 + max((int(name.split(".")[1]) for name in state if name.startswith("blocks.")), default=-1)
    name = architecture_of(width, depth)
    if name is None:
        raise UsageError(f"{cfg.checkpoint}: no official CatLIP model is {width} wide with {depth} layers")
    classes = len(state.get("head.weight", ()))
    backbone: Any = timm.create_model(
        name, num_classes=classes, positions=cfg.positions, stride=cfg.stride, class_token="cls_token" in state
    )
    if wrong := misfit(backbone.state_dict(), state):
        raise UsageError(f"{cfg.checkpoint} does not fit {name}: {wrong}")
    backbone.load_state_dict(state)
    return backbone


def _labels(cfg: ConvertConfig, rows: int) -> tuple[list[str], list[str], Vocabulary | None]:
    """(label, name) of each row of the classifier, and the vocabulary if that is where they come from."""
    if cfg.vocab and cfg.labels:
        raise UsageError("the classifier's rows are named by `vocab` or by `labels`, not by both")
    if not rows:
        if cfg.vocab or cfg.labels:
            raise UsageError(f"{cfg.checkpoint} has no classifier, so there is nothing for `vocab` or `labels` to name")
        return [], [], None
    vocabulary = None
    if cfg.vocab:
        official = Path(cfg.vocab).suffix != ".tsv"
        vocabulary = Vocabulary.load_corenet(cfg.vocab, rows) if official else Vocabulary.load(cfg.vocab)
        labels, names = vocabulary.synsets, [name.replace("_", " ") for name in vocabulary.names]
    elif cfg.labels == IMAGENET:
        from timm.data.imagenet_info import ImageNetInfo

        info = ImageNetInfo(IMAGENET)
        labels = list(info.label_names())
        names = [info.label_name_to_description(label).split(",")[0] for label in labels]
    elif cfg.labels:
        if not Path(cfg.labels).is_file():
            raise UsageError(f"`labels`: no such file: {cfg.labels} (or {IMAGENET!r})")
        labels = names = lines(read_utf8(Path(cfg.labels)))
    else:
        labels = names = [str(row) for row in range(rows)]
    if len(labels) != rows:
        raise UsageError(
            f"{cfg.vocab or cfg.labels} names {len(labels):,} classes, the classifier of {cfg.checkpoint} has {rows:,}"
        )
    if len(set(labels)) != rows:
        raise UsageError(f"{cfg.labels} names {rows - len(set(labels))} classes twice")
    return labels, names, vocabulary
