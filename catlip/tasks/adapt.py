"""An encoder that one has, made better at one's own captioned images without breaking it. The verb `adapt`.

What protects it: a classifier that is trained before the encoder moves, BatchNorm and the lower layers left alone, a
small learning rate, an average of the weights, features held near those of the start if that is asked for, and at the
end the best point between start and average, chosen and judged on held-out images. If nothing is better
there than the start, the start is the result. LOG.md says what each of these is worth.
"""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import group_parameters
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from catlip.config import configure, opened, plain
from catlip.data.batches import Batch
from catlip.data.crops import CropConfig
from catlip.data.dataset import Dataset
from catlip.data.open import open_dataset
from catlip.data.subsets import some_of
from catlip.errors import UsageError
from catlip.evaluation.adaptation import AdaptationProbe, AdaptResult, choose_alpha, each_label, labels_of
from catlip.models.augment import AugmentConfig, built_augment
from catlip.models.encoder import Encoder
from catlip.models.state_dicts import read_tensors
from catlip.models.weights import interpolated, named
from catlip.notices import say
from catlip.objectives.base import build_objective
from catlip.tasks.head import EPOCHS as HEAD_EPOCHS
from catlip.tasks.head import (
    HeadConfig,
    Material,
    StartedTask,
    head_on,
    measured,
    open_material,
    started,
    trainable_copy,
)
from catlip.training.distributed import World, joined
from catlip.training.optim import OptimConfig
from catlip.training.run import Run
from catlip.training.runfolder import HEAD
from catlip.training.state import LoopConfig
from catlip.training.task import Task
from catlip.training.train import train

EPOCHS = 2.0  # where no budget is given
ALPHAS = (0.25, 0.5, 0.75, 1.0)
PROBED = 5000  # images that the probe learns from
# Settings that the first stage shares with the run.
OF_BOTH = (
    "data", "min_count", "image_col", "text_col", "image_size", "held_out", "held_out_limit", "objective", "tokens",
    "text", "sentences", "seed", "workers", "device", "accept_changes",
)  # fmt: skip


@dataclass(kw_only=True, slots=True)
class AdaptConfig(HeadConfig):
    """Settings of `catlip adapt`. docs/adapt.md says which to change for how many images."""

    keep: str = ""  # labelled images: what the encoder must go on being good at; it is only measured on them
    keep_loss: float = 0.5  # points that an encoder may lose there and still be chosen
    keep_limit: int = 2000  # images of it, drawn at random
    head_epochs: float = HEAD_EPOCHS  # passes that train the classifier on vectors, before the encoder moves
    depth: float = 0.5  # share of the layers that are trained, from the top; 1: all of them
    freeze_norm: bool = True  # leave BatchNorm's statistics and weights as they are
    distill: float = 0.0  # weight of 1 - cosine between the features and those of the start; a third more time
    wise: float | None = None  # WiSE-FT's alpha, from 0 to 1; default: the best on held-out images
    force: bool = False  # keep the adapted encoder although it is not better
    batch_size: int = 32
    crop: CropConfig = field(default_factory=lambda: CropConfig(scale=(0.4, 1.0)))
    augment: Any = field(default_factory=AugmentConfig)  # or a module on the batch, from Python
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=3e-4, betas=(0.9, 0.999), warmup=0.1))
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(ema=0.99))


def adapt(encoder: Any = None, data: Any = None, *, config: AdaptConfig | None = None, **settings: Any) -> Run:
    """Adapt an encoder to captioned images, or go on with the run in `out`; measured before and after.

    encoder: an Encoder, a Run, a timm model, or what `catlip.load` takes. data: captioned images, as `catlip.open`
    takes them. settings: fields of `AdaptConfig`. The run's `result` is an `AdaptResult`, on rank 0; its encoder has a
    classifier of the captions' nouns, and is the start again if nothing better came of it. Raises UsageError for a
    mistake, before anything is written.
    """
    cfg = started(configure(AdaptConfig, config, run=encoder, data=data, **settings))
    if not 0 <= cfg.depth <= 1 or not 0 <= (0.0 if cfg.wise is None else cfg.wise) <= 1:
        raise UsageError(f"`depth` and `wise` are shares between 0 and 1, not {cfg.depth} and {cfg.wise}")
    if not (cfg.samples or cfg.epochs or cfg.hours):
        cfg = replace(cfg, epochs=EPOCHS)
    out = Path(cfg.out)
    if out.exists() and any(out.iterdir()) and not (out / HEAD).is_dir():
        raise UsageError(f"`out` {out} is not empty and holds no adaptation; choose another folder")
    with joined(cfg.device) as world:
        keep = open_keep(cfg)
        material = open_material(cfg, world.device)
        head_on(head_config(cfg, material), material, world)
        task = AdaptTask(cfg, material, keep)
        return train(task, material.train, opened(cfg, run=material.start, data=material.train), cfg.out)


def open_keep(cfg: AdaptConfig) -> Dataset | None:
    """The labelled set that must not be forgotten. Raises UsageError."""
    if not cfg.keep:
        return None
    found = some_of(open_dataset(cfg.keep, target="classes"), cfg.keep_limit, seed=0)
    labels_of(found)
    return found


def head_config(cfg: AdaptConfig, material: Material) -> HeadConfig:
    """Settings of the stage that trains the classifier, in a run folder inside the run's."""
    same = {name: getattr(cfg, name) for name in OF_BOTH}
    own = {"run": material.start, "vocab": material.context.vocabulary}  # they are open already
    return HeadConfig(**same, **own, out=str(Path(cfg.out) / HEAD), epochs=cfg.head_epochs or HEAD_EPOCHS)


class AdaptTask(StartedTask):
    """An encoder and its trained classifier, most of which stays as it is."""

    def __init__(self, cfg: AdaptConfig, material: Material, keep: Dataset | None) -> None:
        torch.manual_seed(cfg.seed)
        encoder = trainable_copy(material.start)
        objective: Any = build_objective(cfg.objective, encoder, material.context)
        objective.load_state_dict(read_tensors(Path(cfg.out) / HEAD / "objective.safetensors"), strict=False)
        Task.__init__(self, objective, built_augment(cfg.augment), encoder=encoder)
        self.cfg, self.context, self.material, self.keep = cfg, material.context, material, keep
        self.began = time.perf_counter()
        self.resting = freeze(encoder, cfg.depth, cfg.freeze_norm)
        self.begun_with = {name: value.clone() for name, value in self.state_dict().items()}

    def train(self, mode: bool = True) -> "AdaptTask":
        super().train(mode)
        for name in self.resting:
            self.encoder.get_submodule(name).eval()
        return self

    @property
    def described(self) -> str:
        moving = sum(p.numel() for p in self.encoder.parameters() if p.requires_grad)
        share = moving / sum(p.numel() for p in self.encoder.parameters())
        return (
            f"{len(self.context.vocabulary):,} classes; {self.encoder.architecture} at {self.image_size} px, "
            f"{100 * share:.0f} % of its weights are trained"
        )

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        pooled = self.encoder.pooled(batch.image)
        loss, metrics = self.objective.loss(pooled, batch)
        if not self.cfg.distill:
            return loss, metrics
        start = self.material.start.to(batch.image.device).eval()
        with torch.no_grad():
            wanted = start.pooled(batch.image)
        apart = (1 - F.cosine_similarity(pooled.float(), wanted.float())).mean()
        return loss + self.cfg.distill * apart, {**metrics, "apart": apart.detach()}

    @torch.no_grad()
    def finish(self, out: Path, world: World) -> AdaptResult | None:
        """Choose between start, trained weights and what lies between; save it, and say what it is worth."""
        if world.rank:
            return None
        self.to(world.device)
        result = self.judged(world.device)
        super().finish(out, world)
        if getattr(self.objective, "classifier", None) is not None:
            measured(self, self.material, named(self.cfg.run), out, world)
        return result.saved(out, self.began)

    def judged(self, device: torch.device) -> AdaptResult:
        """Measure all candidates; the task has the weights of the one to keep afterwards."""
        cfg, material, trained = self.cfg, self.material, {k: v.clone() for k, v in self.state_dict().items()}
        vocabulary, learned = material.context.vocabulary, some_of(material.train, PROBED, seed=cfg.seed)
        probe = AdaptationProbe(material.start, learned, material.held_out, self.keep, vocabulary, device)
        candidates = [probe.candidate(None, 0.0)]
        for alpha in ALPHAS if cfg.wise is None else (cfg.wise,):
            say(f"measuring the weights {alpha:g} of the way from the start")
            self.load_state_dict(interpolated(self.begun_with, trained, alpha))
            candidates.append(probe.candidate(self.encoder, alpha))
        chosen = choose_alpha(candidates, probe.positive, cfg.keep_loss if cfg.wise is None else None)
        alpha = chosen.alpha if chosen.better else 0.0
        if cfg.force and not alpha:
            alpha = max(candidates[1:], key=lambda c: c.mAP).alpha
        self.load_state_dict(interpolated(self.begun_with, trained, alpha))
        start, kept = candidates[0], next(c for c in reversed(candidates) if c.alpha == alpha)
        before, after = (each_label(c.scores, probe.positive).tolist() for c in (start, kept))
        often = probe.positive.sum(0).tolist()
        each = zip(vocabulary.names, before, after, often, strict=True)
        return AdaptResult(
            mAP_before=round(start.mAP, 2),
            mAP=round(kept.mAP, 2),
            gain=round(chosen.gain, 2),
            error=round(chosen.error, 2),
            kept="start" if kept is start else "adapted",
            wise=alpha,
            drift=round(kept.drift, 4),
            keep_before=start.to_json().get("keep"),
            keep=kept.to_json().get("keep"),
            forced=kept is not start and not chosen.better,
            path={f"{c.alpha:g}": c.to_json() for c in candidates},
            classes=int(probe.positive.any(0).sum()),
            train=len(probe.data[0]),
            test=len(probe.data[1]),
            image_size=self.image_size,
            data=[plain(cfg.data), *([plain(cfg.keep)] if self.keep is not None else [])],
            labels={name.replace("_", " "): [round(b, 2), round(a, 2), n] for name, b, a, n in each if n},
            encoder=named(cfg.run),
        )


def freeze(encoder: Encoder, depth: float, norms: bool) -> list[str]:
    """Let only the last `depth` of the layers be trained; names of the modules that stay in evaluation mode.

    norms: BatchNorm rests in all layers. Its statistics alone, taken anew on other images, cost half of what an encoder
    knows.
    """
    backbone = encoder.backbone
    layer_of: dict[str, Any] = group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True)
    layers = max(layer_of.values()) + 1
    first = layers - round(depth * layers)
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(layer_of[name] >= first)
    resting = []
    for name, module in backbone.named_modules():
        if isinstance(module, _BatchNorm) and (norms or layer_of.get(f"{name}.weight", first) < first):
            module.requires_grad_(False)
            resting.append(f"backbone.{name}")
    return resting
