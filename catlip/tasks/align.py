"""LiT: a text tower learns to describe what a frozen encoder sees (arXiv 2111.07991).

The encoder does not change, so each image goes through it once, as evaluation shows it, and the text tower trains on
the vectors: minutes, where the images themselves would take hours.
"""

import copy
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from catlip.config import configure, opened
from catlip.data.batches import Batch, Batches
from catlip.data.crops import CropConfig
from catlip.data.dataset import Dataset
from catlip.data.open import open_dataset
from catlip.data.order import Order
from catlip.data.steps import Steps
from catlip.data.vectors import VectorBatch, VectorBatches
from catlip.errors import UsageError
from catlip.labels.tokenizer import TokenizerConfig, make_tokenizer
from catlip.models.model_folders import ENCODER_FOLDER, HUB, model_folder
from catlip.models.text_tower import TextConfig
from catlip.models.weights import fingerprint, load, origin
from catlip.objectives.base import Context
from catlip.objectives.clip import Align, DualObjective
from catlip.tasks.head import as_vectors
from catlip.tasks.pretrain import as_vocabulary
from catlip.training.distributed import World, joined
from catlip.training.optim import OptimConfig
from catlip.training.run import Run
from catlip.training.state import LoopConfig
from catlip.training.task import Task
from catlip.training.train import TrainConfig, train


@dataclass(kw_only=True, slots=True)
class AlignConfig(TrainConfig):
    """Settings of `catlip align`."""

    run: str  # run folder, model folder, or timm:NAME
    data: str  # captioned images, as `catlip pretrain` takes them
    out: str  # run folder: the encoder as it is, and a text tower beside it; the same command again goes on
    image_col: str | None = None
    text_col: str | None = None
    steps: int = 1500  # budget, unless samples, epochs or hours are given
    tokens: TokenizerConfig = field(default_factory=lambda: TokenizerConfig(tokens=4096, context=32))
    # A small tower, and a projection of the image beside it: for small corpora; sizes were not tuned.
    objective: Align = field(default_factory=lambda: Align(embed=256))
    text: TextConfig = field(default_factory=lambda: TextConfig(text_width=256, text_layers=3))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3, weight_decay=0.1))
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(ema=0.0))


def align(encoder: Any = None, data: Any = None, *, config: AlignConfig | None = None, **settings: Any) -> Run:
    """Train a text tower on a frozen encoder's vectors, or go on with the run in `out`.

    encoder: an Encoder, a Run, or its path or name. data: captioned images, as `catlip.open` takes them. settings:
    fields of `AlignConfig`. Raises UsageError for data without captions, or a batch that is larger than the data.
    """
    cfg = configure(AlignConfig, config, run=encoder, data=data, **settings)
    if cfg.steps < 1 or cfg.batch_size < 2:
        raise UsageError("`steps` is 1 or more, `batch_size` 2 or more")
    if not (cfg.samples or cfg.epochs or cfg.hours):
        cfg = replace(cfg, samples=cfg.steps * cfg.batch_size)
    with joined(cfg.device) as world:
        frozen = copy.deepcopy(load(cfg.run)).requires_grad_(False)  # whoever gave it may go on training it
        dataset = open_dataset(cfg.data, image_col=cfg.image_col, text_col=cfg.text_col)
        vectors = as_vectors(frozen, dataset, world)
        if len(vectors) < cfg.batch_size:
            raise UsageError(f"`batch_size` {cfg.batch_size} for {len(vectors):,} images with captions; lower it")
        torch.manual_seed(cfg.seed)
        tokenizer = make_tokenizer(cfg.tokens, (caption for some in vectors.captions() for caption in some))
        objective = cfg.objective.build(frozen, Context(as_vocabulary(""), tokenizer, cfg.text))
        cfg = opened(cfg, data=dataset)
        return train(AlignTask(cfg, objective), vectors, cfg, cfg.out)


class AlignTask(Task):
    """A text tower on frozen vectors."""

    def __init__(self, cfg: AlignConfig, objective: DualObjective) -> None:
        super().__init__(objective, image_size=1)
        self.cfg = cfg

    def batches(self, dataset: Dataset, order: Order, steps: Steps, rank: int, world: int) -> Batches:
        nothing = as_vocabulary("")
        return VectorBatches(
            dataset,
            order,
            steps,
            vocabulary=nothing,
            labeler=nothing.labeler(),
            crop=CropConfig(),  # nothing is cropped
            tokenizer=self.objective.reader,
            rank=rank,
            world=world,
        )

    @property
    def described(self) -> str:
        return f"{self.objective.reader.size:,} tokens; {self.encoder.architecture}, frozen"

    def fingerprint(self) -> dict[str, Any]:
        return {"init": fingerprint(self.cfg.run)}

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(batch, VectorBatch)
        return self.objective.loss(batch.pooled, batch)

    def finish(self, out: Path, world: World) -> None:
        """The text tower, and the encoder that it belongs to, as it was."""
        if world.rank:
            return
        self.objective.save(out)
        source = origin(self.cfg.run)
        if source.startswith(HUB) or (source and Path(source).is_dir()):
            shutil.copytree(model_folder(source), out / ENCODER_FOLDER, dirs_exist_ok=True)
        else:
            self.encoder.save(out / ENCODER_FOLDER)
        if source and (vocabulary := Path(source) / "vocab.tsv").is_file():
            shutil.copy(vocabulary, out / "vocab.tsv")
