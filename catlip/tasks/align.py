"""LiT: a text tower learns to describe what a frozen encoder sees (arXiv 2111.07991).

The encoder does not change, so each image goes through it once, as evaluation shows it, and the text tower trains on
the vectors: minutes, where the images themselves would take hours.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from catlip.config import configure, opened
from catlip.data.batches import Batch, Batches, drawn_tokens
from catlip.data.dataset import Dataset, Sample
from catlip.data.images import left_out
from catlip.data.open import open_dataset
from catlip.data.order import Order
from catlip.data.steps import Steps
from catlip.errors import UsageError
from catlip.evaluation.features import CaptionFeatures, caption_features
from catlip.labels.tokenizer import Tokenizer, TokenizerConfig, make_tokenizer
from catlip.models.text_tower import TextConfig
from catlip.models.weights import ENCODER_FOLDER, fingerprint, load, model_folder, origin
from catlip.notices import say
from catlip.objectives.align import Align, AlignObjective
from catlip.training.distributed import World, from_rank_0, joined
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
        frozen, dataset = load(cfg.run), open_dataset(cfg.data, image_col=cfg.image_col, text_col=cfg.text_col)
        found = from_rank_0(lambda: caption_features(frozen, dataset, world.device, said=_progress(len(dataset))))
        vectors = Vectors(dataset, with_captions(found, dataset.name))
        left_out(data=found.unreadable)
        if len(vectors) < cfg.batch_size:
            raise UsageError(f"`batch_size` {cfg.batch_size} for {len(vectors):,} images with captions; lower it")
        torch.manual_seed(cfg.seed)
        tokenizer = make_tokenizer(cfg.tokens, (caption for some in vectors.captions() for caption in some))
        objective = AlignObjective(frozen, tokenizer, cfg.objective, cfg.text)
        cfg = opened(cfg, data=dataset)
        return train(AlignTask(cfg, objective), vectors, cfg, cfg.out)


def with_captions(data: CaptionFeatures, name: str) -> CaptionFeatures:
    """Without the images that have no caption. Raises UsageError if none has one."""
    kept = [i for i, captions in enumerate(data.captions) if captions]
    if not kept:
        raise UsageError(f"`data` {name}: not one image has a caption")
    keys, captions = [data.keys[i] for i in kept], [data.captions[i] for i in kept]
    return CaptionFeatures(keys, captions, data.pooled[kept], data.unreadable)


class Vectors(Dataset):
    """A dataset of CaptionFeatures: the pooled vector of each captioned image, in `metadata`."""

    def __init__(self, dataset: Dataset, found: CaptionFeatures) -> None:
        """found: what the encoder made of the dataset's images."""
        self.dataset, self.found = dataset, found
        self.name, self.troubles = dataset.name, dataset.troubles
        self.described = f"{len(found):,} images with {sum(map(len, found.captions)):,} captions"

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int) -> Sample:
        found = self.found
        return Sample(found.keys[index], b"", found.captions[index], metadata={"pooled": found.pooled[index]})

    def captions(self) -> Iterator[list[str]]:
        return iter(self.found.captions)

    def fingerprint(self) -> list[Any]:
        return [*self.dataset.fingerprint(), len(self.found)]


@dataclass(slots=True)
class VectorBatch(Batch):
    """B captioned images as vectors; `image` is a pixel each, and means nothing."""

    pooled: Tensor = field(default_factory=lambda: torch.empty(0, 0))  # float32 [B, D]

    def _slice(self, low: int, high: int) -> Batch:
        # Not super(): `slots=True` makes a new class, so a bare super() refers to the wrong one.
        return replace(Batch._slice(self, low, high), pooled=self.pooled[low:high])


class VectorBatches(Batches):
    """Vectors of images, with the tokens of one caption each, drawn anew every epoch."""

    def __init__(
        self, dataset: Dataset, order: Order, steps: Steps, *, tokenizer: Tokenizer, rank: int, world: int
    ) -> None:
        super().__init__(dataset, order, steps, rank=rank, world=world)
        self.tokenizer = tokenizer

    def picture(self, record: Sample, draws: list[float], out: Tensor) -> Tensor:
        return record.metadata["pooled"]

    def batch(self, image: Tensor, flip: Tensor, records: list[Sample], beside: list[Any], draws: np.ndarray) -> Batch:
        return VectorBatch(
            image,
            flip,
            torch.empty(0, dtype=torch.int64),
            torch.zeros(len(records) + 1, dtype=torch.int64),
            captions=[record.captions for record in records],
            keys=[record.key for record in records],
            tokens=drawn_tokens(self.tokenizer, records, draws[:, -1]),
            pooled=torch.stack(beside),
        )


class AlignTask(Task):
    """A text tower on frozen vectors."""

    def __init__(self, cfg: AlignConfig, objective: AlignObjective) -> None:
        super().__init__(objective, image_size=1)
        self.cfg = cfg

    def batches(self, dataset: Dataset, order: Order, steps: Steps, rank: int, world: int) -> Batches:
        return VectorBatches(dataset, order, steps, tokenizer=self.objective.reader, rank=rank, world=world)

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
        if not source or source.startswith("timm:"):
            self.encoder.save(out / ENCODER_FOLDER)
        else:
            shutil.copytree(model_folder(source), out / ENCODER_FOLDER, dirs_exist_ok=True)
        if source and (vocabulary := Path(source) / "vocab.tsv").is_file():
            shutil.copy(vocabulary, out / "vocab.tsv")


def _progress(total: int) -> Any:
    def said(done: int) -> None:
        if done == total or done % 12_800 == 0:
            say(f"{done:,} of {total:,} images through the encoder")

    return said
