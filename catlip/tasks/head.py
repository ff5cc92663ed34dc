"""A classifier of one's own nouns on an encoder that stays as it is: a minute on a CPU. The verb `head`, and the first
stage of `adapt`.

Every image goes through the encoder once; the classifier is trained on the vectors, by the objective's own loss.
"""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from catlip.config import configure, opened, required
from catlip.data.batches import Batch, Batches
from catlip.data.crops import CropConfig
from catlip.data.dataset import Dataset
from catlip.data.images import Unreadable, left_out
from catlip.data.open import open_dataset
from catlip.data.order import Order, samples_at
from catlip.data.sentences import SentenceConfig
from catlip.data.steps import Steps
from catlip.data.subsets import some_of, subset
from catlip.data.vectors import VectorBatch, VectorBatches, Vectors
from catlip.errors import UsageError
from catlip.evaluation.features import cached_features, open_encoder
from catlip.evaluation.held_out import held_out_evaluation
from catlip.evaluation.result import Result, Table, percent
from catlip.evaluation.ridge_probe import spread
from catlip.labels.tokenizer import TokenizerConfig
from catlip.labels.vocabulary import Vocabulary
from catlip.models.encoder import Encoder
from catlip.models.text_tower import TextConfig
from catlip.models.weights import named, open_weights
from catlip.objectives.base import Context, build_objective
from catlip.objectives.synsets import Synsets
from catlip.tasks.pretrain import PretrainTask, as_vocabulary, open_context
from catlip.training.distributed import World, from_rank_0, joined
from catlip.training.optim import OptimConfig
from catlip.training.run import Run
from catlip.training.state import LoopConfig
from catlip.training.task import Evaluation, Task
from catlip.training.train import TrainConfig, train

EPOCHS = 10.0  # where no budget is given
LEAST = 500  # images to be held out, or a quarter of the data if that is less


@dataclass(kw_only=True, slots=True)
class HeadConfig(TrainConfig):
    """Settings of `catlip head`."""

    run: str = ""  # the encoder: a run or model folder, timm:NAME, hf-hub:ORG/NAME, or NAME=FILE, a state dict of NAME
    backbone: str = ""  # with `weights`, instead of NAME=FILE: timm's name of the architecture
    weights: str = ""  # a state dict: .safetensors or .pth
    data: str  # captioned images: tars, a table, a folder, COCO captions, a URL (docs/data.md)
    out: str  # run folder; the same command again goes on where it stopped
    vocab: str = ""  # vocab.tsv, made by `catlip vocab`; default: the nouns of the captions, counted on the way
    min_count: int = 5  # of a vocabulary that is counted on the way: images that a label needs
    image_col: str | None = None  # tables: column with the images or their paths
    text_col: str | None = None  # tables: column with the captions
    image_size: int = 0  # pixels; 0: the encoder's own
    held_out: str = ""  # captioned images to measure on; default: a tenth of data, which is not trained on then
    held_out_limit: int = 2000  # images of it, drawn at random
    objective: Any = field(default_factory=Synsets)  # a config of catlip.objectives with `loss(pooled, batch)`
    tokens: TokenizerConfig = field(default_factory=lambda: TokenizerConfig(tokens=4096, context=32))
    text: TextConfig = field(default_factory=lambda: TextConfig(text_width=256, text_layers=3))
    sentences: SentenceConfig = field(default_factory=SentenceConfig)
    # A strong decay, as vectors are few and do not vary: on Flickr8k .05 overfits after five passes.
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3, weight_decay=1.0))
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(ema=0.0))


@dataclass(kw_only=True)
class HeadResult(Result):
    """What the classifier makes of held-out images, in percent."""

    task: ClassVar[str] = "head"
    heading: ClassVar[str] = "A classifier of your nouns"

    mAP: float  # mean average precision of the labels that occur there
    top1: float  # images whose best-scored label is one of theirs
    classes: int
    train: int  # images
    test: int
    image_size: int

    def tables(self) -> list[Table]:
        rows = [
            ["mean average precision of the labels", percent(self.mAP)],
            ["images whose best label is one of theirs", percent(self.top1)],
        ]
        title = f"{self.encoder} with a classifier of {self.classes:,} labels, learned on {self.train:,} images"
        return [Table(f"{title}; of {self.test:,} held-out ones:", rows)]


@dataclass(slots=True)
class Material:
    """What is learned from, and what is measured on."""

    start: Encoder  # as it was given, at the image size of the run
    train: Dataset
    held_out: Dataset
    context: Context


def head(encoder: Any = None, data: Any = None, *, config: HeadConfig | None = None, **settings: Any) -> Run:
    """Train a classifier of the nouns of captions on a frozen encoder, or go on with the run in `out`.

    encoder: an Encoder, a Run, a timm model, or what `catlip.load` takes. data: captioned images, as `catlip.open`
    takes them. settings: fields of `HeadConfig`. The run's `result` is a `HeadResult`, on rank 0. Raises UsageError for
    a mistake, before anything is written.
    """
    cfg = started(configure(HeadConfig, config, run=encoder, data=data, **settings))
    if not (cfg.samples or cfg.epochs or cfg.hours):
        cfg = replace(cfg, epochs=EPOCHS)
    with joined(cfg.device) as world:
        return head_on(cfg, open_material(cfg, world.device), world)


def head_on(cfg: HeadConfig, material: Material, world: World) -> Run:
    """`head` on what is open already."""
    vectors = as_vectors(material.start, material.train, world)
    task = HeadTask(cfg, material, vectors.pooled)
    return train(task, vectors, opened(cfg, run=material.start, data=material.train), cfg.out)


def started(cfg: Any) -> Any:
    """A config whose `run` says where the weights come from. Raises UsageError for one that says nothing, or two."""
    if cfg.weights or cfg.backbone:
        required(cfg, "weights", "backbone")
        if cfg.run:
            raise UsageError(f"the encoder is {cfg.run}, or `weights` of `backbone`, not both")
        cfg = replace(cfg, run=f"{cfg.backbone}={cfg.weights}", weights="", backbone="")
    required(cfg, "run", "data", "out")
    return cfg


def open_material(cfg: Any, device: torch.device) -> Material:
    """Raises UsageError for data that is too little, or in which there is nothing to tell apart."""
    start = open_encoder(cfg.run, cfg.image_size)
    everything = open_dataset(cfg.data, image_col=cfg.image_col, text_col=cfg.text_col)
    if cfg.held_out:
        learned, judged = everything, open_dataset(cfg.held_out, image_col=cfg.image_col, text_col=cfg.text_col)
        judged = some_of(judged, cfg.held_out_limit, seed=0)
    else:
        count = min(cfg.held_out_limit, max(len(everything) // 10, min(len(everything) // 4, LEAST)))
        chosen = samples_at(np.arange(count), len(everything), seed=cfg.seed)
        kept = np.ones(len(everything), bool)
        kept[chosen] = False
        learned, judged = subset(everything, kept), subset(everything, np.sort(chosen))
    if not len(learned) or not len(judged):
        raise UsageError(f"`data` {everything.name}: {len(everything):,} images are too few to learn and to measure on")
    vocabulary = as_vocabulary(cfg.vocab)
    if not cfg.vocab:
        vocabulary = from_rank_0(lambda: Vocabulary.count(learned, min_count=cfg.min_count))
    if min(vocabulary.counts) >= vocabulary.samples and not cfg.vocab:
        raise UsageError(
            f"`data` {learned.name}: every image has every label ({', '.join(vocabulary.names[:4])}), so there is "
            "nothing to learn"
        )
    return Material(start, learned, judged, open_context(cfg, learned, vocabulary, device))


def as_vectors(encoder: Encoder, dataset: Dataset, world: World) -> Vectors:
    """What the encoder makes of the images; computed by one process. Raises UsageError if no image has a caption."""
    unreadable = Unreadable()
    pooled, numbers = from_rank_0(lambda: cached_features(encoder, dataset, world.device, unreadable))
    left_out(data=unreadable)
    found = [(row, s.key, s.captions) for row, s in enumerate(map(dataset.__getitem__, numbers.tolist())) if s.captions]
    if not found:
        raise UsageError(f"`data` {dataset.name}: not one image has a caption")
    rows, keys, captions = (list(column) for column in zip(*found, strict=True))
    return Vectors(dataset, keys, captions, pooled[rows])


def trainable_copy(start: Encoder) -> Encoder:
    """The start without its classifier, shown images as the start is."""
    encoder = open_weights(start).build(image_size=start.image_size)
    encoder.backbone.pretrained_cfg |= {name: start.view[name] for name in ("crop_pct", "crop_mode", "interpolation")}
    return encoder


class StartedTask(PretrainTask):
    """A pre-training task on an encoder that somebody has trained, measured at its end alone."""

    cfg: Any  # a HeadConfig, or what is built on one

    @property
    def start(self) -> Any:
        return self.cfg.run

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "backbone": self.encoder.architecture}

    def evaluation(self, out: Path, world: World) -> Evaluation | None:
        return None


class HeadTask(StartedTask):
    """An objective on the vectors of a frozen encoder.

    Where all that is trained is a linear classifier, it is trained on standardised features, so that one learning rate
    suits every encoder, and brought back to the encoder's own at the end.
    """

    def __init__(self, cfg: HeadConfig, material: Material, pooled: Tensor) -> None:
        """pooled: float32 [N, D], of the images that are learned from."""
        torch.manual_seed(cfg.seed)
        encoder = trainable_copy(material.start)
        objective: Any = build_objective(cfg.objective, encoder, material.context)
        if not hasattr(objective, "loss"):
            raise UsageError("`objective` has no loss(pooled, batch), so it cannot be trained on vectors")
        Task.__init__(self, objective, encoder=encoder, image_size=1)
        self.began = time.perf_counter()
        self.cfg, self.context, self.material = cfg, material.context, material
        self.encoder.requires_grad_(False)
        self.shift: Tensor
        self.scale: Tensor
        alone = is_linear(objective)
        self.register_buffer("shift", pooled.mean(0) if alone else torch.zeros(pooled.shape[1]))
        self.register_buffer("scale", spread(pooled) if alone else torch.ones(pooled.shape[1]))

    def train(self, mode: bool = True) -> "HeadTask":
        super().train(mode)
        self.encoder.eval()  # or batch norm would go on counting
        return self

    def batches(self, dataset: Any, order: Order, steps: Steps, rank: int, world: int) -> Batches:
        return self.batches_of(VectorBatches, CropConfig(), dataset, order, steps, rank, world)  # nothing is cropped

    @property
    def described(self) -> str:
        return f"{len(self.context.vocabulary):,} classes; {self.encoder.architecture}, frozen"

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(batch, VectorBatch)
        return self.objective.loss((batch.pooled - self.shift) / self.scale, batch)

    @torch.no_grad()
    def finish(self, out: Path, world: World) -> HeadResult | None:
        """The encoder as it was, with its classifier; what it makes of held-out images."""
        if world.rank:
            return None
        classifier: Any = getattr(self.objective, "classifier", None)
        if is_linear(self.objective):
            classifier.weight /= self.scale
            classifier.bias -= classifier.weight @ self.shift
        super().finish(out, world)
        if classifier is None:
            return None
        return measured(self, self.material, named(self.cfg.run), out, world)


def measured(task: Any, material: Material, name: str, out: Path, world: World) -> HeadResult:
    """The classifier's measures on the held-out images, which are also kept for the run's page."""
    task.to(world.device)
    judged, vocabulary = material.held_out, material.context.vocabulary
    found = held_out_evaluation(judged, vocabulary, task.encoder.pixels, 0, world.device, out)(task)
    return HeadResult(
        mAP=round(found["mAP"], 2),
        top1=round(found["top-1"], 2),
        classes=len(vocabulary),
        train=len(material.train),
        test=len(judged),
        image_size=material.start.image_size,
        encoder=name,
    ).saved(out, task.began)


def is_linear(objective: nn.Module) -> bool:
    """Whether an objective trains a linear classifier of pooled features and nothing else, beside the encoder."""
    classifier, encoder = getattr(objective, "classifier", None), getattr(objective, "encoder", None)
    own = {id(p) for p in objective.parameters()} - {id(p) for p in (encoder.parameters() if encoder else ())}
    return isinstance(classifier, nn.Linear) and own == {id(p) for p in classifier.parameters()}
