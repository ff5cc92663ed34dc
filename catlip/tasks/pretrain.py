"""The verb that wires data, encoder, objective and loop; the only place that sees the whole configuration."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from catlip.data.batches import CaptionBatches
from catlip.data.crops import CropConfig
from catlip.data.dataset import Dataset
from catlip.data.loader import Loader
from catlip.data.open import open_dataset
from catlip.data.order import Order
from catlip.data.steps import CurriculumConfig, Steps
from catlip.errors import UsageError
from catlip.labels.tokenizer import FILE as TOKENIZER
from catlip.labels.tokenizer import Tokenizer, TokenizerConfig
from catlip.labels.vocabulary import Vocabulary
from catlip.models.augment import AugmentConfig, RangeAugment
from catlip.models.encoder import Encoder
from catlip.models.text import TextConfig
from catlip.models.weights import fingerprint, start_from
from catlip.notices import say
from catlip.objectives.synsets import Synsets
from catlip.tasks.watch import Watch, make_watch
from catlip.training.distributed import World, from_main, joined
from catlip.training.hardware import default_workers, device_peak, train_flops
from catlip.training.log import duration
from catlip.training.loop import LoopConfig
from catlip.training.objective import (
    Settings,
    make_objective,
    open_tokenizer,
    reads_labels,
    save_objective,
    synset_part,
)
from catlip.training.optim import OptimConfig
from catlip.training.run import budget_of, carry_out, require
from catlip.training.speed import measure
from catlip.training.task import Task

SECONDS = 30.0  # of measuring the speed, where the budget is given in hours
WINDOW = 100_000  # samples that are shuffled together where shards are fetched one by one


@dataclass(kw_only=True, slots=True)
class PretrainConfig:
    """A whole run. Recipes (catlip/recipes) return one of these."""

    data: str  # tars, tables, a folder, local or remote; `catlip pack --help` lists the kinds; `a + b@2` mixes
    vocab: str  # vocab.tsv, made by `catlip vocab`
    out: str  # run folder; the same command again goes on where it stopped
    backbone: str = "vit_small_patch16_224"  # any timm model
    image_size: int = 224  # pixels
    init: str = ""  # weights to begin with: timm:NAME, open_clip:FOLDER, a run folder, hf-hub:ORG/NAME
    samples: int = 0  # budget: pictures seen, repetitions counted; or --epochs, or --hours
    epochs: float = 0.0  # budget: times the data is seen
    hours: float = 0.0  # budget: time of training; the speed is measured first, and the samples follow from it
    batch_size: int = 256  # of all processes together
    seed: int = 0
    workers: int = 0  # decoding processes of each training process; 0: what the cores allow
    device: str = "auto"  # auto, cpu, cuda, mps
    image_col: str | None = None  # tables: column with the pictures or their paths
    text_col: str | None = None  # tables: column with the captions
    cache_gb: float = 100.0  # remote shards: bound of the local cache
    accept_changes: bool = False  # go on with a run although its data or settings changed
    crop: CropConfig = field(default_factory=CropConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    ranges: AugmentConfig = field(default_factory=AugmentConfig)
    objective: Settings = field(default_factory=Synsets)
    tokens: TokenizerConfig = field(default_factory=TokenizerConfig)
    text: TextConfig = field(default_factory=TextConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    watch: Watch = field(default_factory=Watch)


def pretrain(cfg: PretrainConfig) -> Path:
    """Train an encoder on captioned pictures; the run folder.

    Raises UsageError for a mistake in the configuration, before anything is written.
    """
    began, out = time.perf_counter(), Path(cfg.out)
    require(cfg, "out")
    with joined(cfg.device) as world:
        parts = Parts.of(cfg, world)
        weights = _train(cfg, world, parts)
        if world.main and weights is not None:
            task = make_task(cfg, parts.vocabulary, parts.tokenizer)  # anew: the trained one may be spread over GPUs
            task.load_state_dict(weights)
            save_objective(out, task.eval().objective, parts.vocabulary, parts.tokenizer)
            took = duration(time.perf_counter() - began)
            say(f"{out}: encoder ready after {took}. Next: catlip probe {out} --train ... --test ...")
    return out


def speed_of(cfg: PretrainConfig, seconds: float) -> float:
    """Images a second that a run would make, measured for so long; nothing is written."""
    with joined(cfg.device) as world:
        parts = Parts.of(cfg, world)
        return parts.speed(seconds)


@dataclass(slots=True)
class Parts:
    """What a run is made of, before anything is trained."""

    cfg: PretrainConfig
    world: World
    source: Dataset
    vocabulary: Vocabulary
    tokenizer: Tokenizer | None
    task: Task
    order: Order
    workers: int

    @classmethod
    def of(cls, cfg: PretrainConfig, world: World) -> "Parts":
        """Raises UsageError for a mistake in the configuration."""
        require(cfg, "data", *["vocab"] * reads_labels(cfg.objective))
        vocabulary = Vocabulary.load(cfg.vocab) if cfg.vocab else Vocabulary(synsets=[], names=[], counts=[], samples=0)
        source = open_dataset(cfg.data, image_col=cfg.image_col, text_col=cfg.text_col, cache_gb=cfg.cache_gb)
        window = min(WINDOW, source.window or WINDOW) if source.remote else 0
        order = Order(source.parts, cfg.seed, source.shards.tolist(), window)
        # One process reads the captions: of remote data they are all that is fetched, and others would fetch it again.
        tokenizer = from_main(
            lambda: open_tokenizer(cfg.objective, cfg.tokens, source, Path(cfg.out) if cfg.out else None)
        )
        task = make_task(cfg, vocabulary, tokenizer, tell=world.main)
        if task.objective.needs_global_batch and (cfg.batch_size % world.size or cfg.loop.micro_batch):
            raise UsageError(
                "this objective compares the pictures of a batch: `batch_size` must be a multiple of the "
                f"{world.size} processes, and `micro_batch` 0"
            )
        workers = cfg.workers or default_workers(world.local_size, world.device)
        return cls(cfg, world, source, vocabulary, tokenizer, task, order, workers)

    def steps(self, budget: int) -> Steps:
        cfg, world = self.cfg, self.world
        steps = Steps(
            cfg.curriculum, budget=budget, batch_size=cfg.batch_size, image_size=cfg.image_size, seed=cfg.seed
        )
        if min(batch for batch, _ in steps.shapes()) < world.size:
            raise UsageError(f"`batch_size` {cfg.batch_size} gives {world.size} processes less than a picture each")
        return steps

    def speed(self, seconds: float) -> float:
        """Images a second over the whole run, measured for so long."""
        cfg, phases = self.cfg, self.steps(self.cfg.batch_size).phases()
        return measure(self.task, self.loader, phases, self.world, cfg.optim, cfg.loop, seconds)

    def loader(self, steps: Steps) -> Loader:
        cfg, world = self.cfg, self.world
        return Loader(
            CaptionBatches(
                self.source,
                self.order,
                steps,
                vocabulary=self.vocabulary,
                labeler=self.vocabulary.labeler(),
                crop=cfg.crop,
                tokenizer=self.tokenizer,
                rank=world.rank,
                world=world.size,
            ),
            self.workers,
        )

    def begin(self, out: Path) -> None:
        """Write what a run folder has from the first moment on."""
        self.vocabulary.save(out / "vocab.tsv")
        if self.tokenizer is not None:
            self.tokenizer.save(out / TOKENIZER)


def _train(cfg: PretrainConfig, world: World, parts: Parts) -> dict[str, torch.Tensor] | None:
    """The trained weights, on the main process; None if the run was asked to stop."""
    vocabulary, source = parts.vocabulary, parts.source
    budget = budget_of(cfg, parts.order.length, lambda: parts.speed(SECONDS))
    facts: dict[str, Any] = {"vocabulary": vocabulary.hash, "data": source.fingerprint()}
    if cfg.init:
        facts["init"] = fingerprint(cfg.init)
    facts["budget"] = budget
    peak = device_peak(world.device) * world.size
    return carry_out(
        parts.task,
        parts.loader(parts.steps(budget)),
        world,
        cfg,
        budget=budget,
        facts=facts,
        begin=parts.begin,
        peak=peak,
        flops=train_flops(cfg.backbone, cfg.image_size, len(vocabulary)) if peak else 0.0,
        watch=make_watch(cfg.watch, vocabulary, parts.task.encoder, world.device, Path(cfg.out), world.main),
        watch_every=cfg.watch.watch_every,
        track=cfg.watch.track,
        described=f"{source.described}; {len(vocabulary):,} classes; {cfg.backbone} at {cfg.image_size} px on "
        f"{world.size} x {world.device.type}, batch {cfg.batch_size:,}, {parts.workers} loader workers",
    )


def make_task(cfg: PretrainConfig, vocabulary: Vocabulary, tokenizer: Tokenizer | None, tell: bool = False) -> Task:
    """Encoder, head and augmentation with their initial weights: a function of the settings alone.

    tell: print what was taken over from --init.
    """
    torch.manual_seed(cfg.seed)
    curriculum = cfg.curriculum
    encoder = Encoder.create(
        cfg.backbone,
        image_size=cfg.image_size,
        any_size=bool(curriculum.scales or curriculum.low_res),
        drop_patches=curriculum.patch_keep < 1,
    )
    encoder.check_sizes(*curriculum.sizes)
    objective = make_objective(cfg.objective, encoder, vocabulary, tokenizer, cfg.text)
    if cfg.init:
        synsets = synset_part(objective)
        said = start_from(cfg.init, encoder, synsets.head if synsets else None, vocabulary.synsets)
        if tell:
            say(said)
    if cfg.loop.compile:
        encoder.compile()
    if cfg.loop.checkpointing:
        encoder.backbone.set_grad_checkpointing(True)
    return Task(objective, RangeAugment(cfg.ranges.psnr) if cfg.ranges.range_augment else None)
