"""Segmentation: an encoder learns to give every pixel a class; mIoU at full resolution."""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from catlip.config import configure, opened, plain, required
from catlip.data.batches import Batches
from catlip.data.dataset import Dataset
from catlip.data.images import Unreadable, UnreadableImageError, decode_upright, left_out
from catlip.data.mask_classes import (
    VOID,
    MaskClasses,
    Survey,
    check_numbers,
    check_readable,
    find_classes,
    pixels_of,
    read_mask,
    survey,
)
from catlip.data.maskbatches import MaskBatches, Window, check_window
from catlip.data.open import open_dataset
from catlip.data.order import Order
from catlip.data.steps import Steps
from catlip.errors import UsageError
from catlip.evaluation.class_names import read_names
from catlip.evaluation.segmentation import Seen, SegmentationResult, confusion, file_names, fit_of, save_mask
from catlip.models.segmenter import DecoderConfig, SegmentationCard, load_segmenter, open_encoder, save_segmenter
from catlip.models.weights import fingerprint, named
from catlip.notices import say
from catlip.objectives.masks import MaskObjective
from catlip.training import train as trainer
from catlip.training.distributed import World, all_gather, all_reduce, any_rank, joined
from catlip.training.optim import OptimConfig
from catlip.training.run import Run
from catlip.training.task import Task
from catlip.training.train import TrainConfig

SHOWN = 480  # pixels of the longer side on the page
MASKS = "masks"  # folder of predictions


@dataclass(kw_only=True, slots=True)
class SegmentConfig(TrainConfig):
    """Settings of `catlip segment`."""

    run: str  # run folder, model folder, hf-hub:ORG/NAME, or timm:NAME
    train: str  # tars (KEY.jpg, KEY.seg.png), or a folder laid out as ADE20k, VOC or Cityscapes; FOLDER:SPLIT
    test: str  # the same
    out: str  # new run folder; the same command again goes on where it stopped
    untrained: bool = False  # the same architecture from random weights, for a baseline
    classes: str | None = None  # class names, one a line in the order of their numbers
    void: tuple[int, ...] = ()  # numbers that are no class; 0 among them: classes begin at 1. Default: the layout's
    image_size: int = 512  # pixels of the squares that the network sees
    batch_size: int = 16  # of all processes together
    drop_path: float = 0.0  # stochastic depth: rate at the last layer, falling linearly to 0 at the first
    save_masks: bool = False  # write the predictions on the test set as PNG
    show: int = 24  # predictions on the page
    head: DecoderConfig = field(default_factory=DecoderConfig)
    window: Window = field(default_factory=Window)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=3e-4))


def segment(
    encoder: Any = None, train: Any = None, test: Any = None, *, config: SegmentConfig | None = None, **settings: Any
) -> Run:
    """Train, save and test a segmentation model, or resume the run in `out`.

    encoder: an Encoder, a Run, or its path or name. train, test: images with masks. settings: fields of
    `SegmentConfig`. The run's `result` is a `SegmentationResult`, on rank 0. Raises UsageError for a mistake in
    settings, images or masks, before anything is written.
    """
    cfg = configure(SegmentConfig, config, run=encoder, train=train, test=test, **settings)
    required(cfg, "run", "train", "test", "out")
    if cfg.loop.compile:
        raise UsageError("`compile`: segmentation runs without; leave it out")
    check_window(cfg.window)
    with joined(cfg.device) as world:
        learned = open_dataset(cfg.train, target="masks", split="train")
        tested = open_dataset(cfg.test, target="masks", split="test")
        cfg = opened(cfg, train=learned, test=tested)
        names = [name.name for name in read_names(cfg.classes)] if cfg.classes else []
        classes = _look(cfg, learned, tested, names, world)
        return trainer.train(make_task(cfg, classes, tested, len(learned)), learned, cfg, cfg.out)


def make_task(cfg: SegmentConfig, classes: MaskClasses, test: Dataset, n_train: int) -> "SegmentTask":
    """Encoder and head with their initial weights: a function of the settings alone."""
    torch.manual_seed(cfg.seed)
    encoder = open_encoder(
        cfg.run, image_size=cfg.image_size, stride=cfg.head.stride, untrained=cfg.untrained, drop_path=cfg.drop_path
    )
    objective = MaskObjective(encoder, len(classes), cfg.head)
    return SegmentTask(cfg, objective, classes, test, n_train)


class SegmentTask(Task):
    """Random windows of images with their masks."""

    def __init__(
        self, cfg: SegmentConfig, objective: MaskObjective, classes: MaskClasses, test: Dataset, n_train: int
    ) -> None:
        """test: the set to test on. n_train: images that are learned from."""
        super().__init__(objective, image_size=cfg.image_size)
        self.cfg, self.classes, self.test, self.n_train = cfg, classes, test, n_train
        self.began = time.perf_counter()

    def batches(self, dataset: Any, order: Order, steps: Steps, rank: int, world: int) -> Batches:
        window = self.cfg.window
        return MaskBatches(dataset, order, steps, classes=self.classes, window=window, rank=rank, world=world)

    @property
    def described(self) -> str:
        cfg, model = self.cfg, self.objective
        brought = f", brought to {model.stride}" if model.own_stride > model.stride else ""
        return (
            f"{len(self.classes)} classes; {named(cfg.run, cfg.untrained)}: "
            f"{self.encoder.architecture} at {cfg.image_size} px, features {model.own_stride} px apart{brought}, "
            f"{cfg.head.head} head"
        )

    def fingerprint(self) -> dict[str, Any]:
        cfg, classes = self.cfg, self.classes
        return {
            "init": fingerprint(cfg.run, cfg.untrained),
            # What a head of other classes or another shape could not go on with.
            "objective": {"head": asdict(cfg.head), "names": classes.names, "void": classes.void},
        }

    def finish(self, out: Path, world: World) -> SegmentationResult | None:
        """Save encoder and head; the processes test them together."""
        cfg, classes = self.cfg, self.classes
        if world.rank == 0:
            card = SegmentationCard(
                names=list(classes.names),
                image_size=cfg.image_size,
                short_side=cfg.window.short_side,
                head=asdict(cfg.head),
                first=classes.first,
                void=classes.void,
            )
            save_segmenter(out, self.objective, card)
        any_rank(False)  # the others wait for the folder
        matrix, seen, unreadable = _test(cfg, self.test, world)
        if world.rank:
            return None
        tested = len(self.test) - len(unreadable.reasons)
        fit = fit_of(matrix)
        iou = zip(classes.names, fit.iou, strict=True)
        return SegmentationResult(
            miou=round(fit.miou, 2),
            mean_accuracy=round(fit.mean_accuracy, 2),
            pixel_accuracy=round(fit.pixel_accuracy, 2),
            classes=len(classes),
            train=self.n_train,
            test=tested,
            samples=cfg.samples or None,
            epochs=cfg.epochs or None,
            head=cfg.head.head,
            stride=cfg.head.stride,
            image_size=cfg.image_size,
            short_side=cfg.window.short_side,
            iou={name: None if value != value else round(value, 2) for name, value in iou},
            pixels=dict(zip(classes.names, fit.pixels, strict=True)),
            data=[plain(cfg.train), plain(cfg.test)],
            encoder=named(cfg.run, cfg.untrained),
            seen=seen,
            **left_out(test=unreadable),
        ).saved(out, self.began)


def _look(cfg: SegmentConfig, train: Dataset, test: Dataset, names: list[str], world: World) -> MaskClasses:
    """The classes; every mask is looked at once, the processes sharing the work."""
    void = cfg.void or getattr(train, "void", (255,))
    found = _surveyed(train, world)
    classes = find_classes(found, names, void, f"`train` {cfg.train}")
    pixels = pixels_of(found, classes)
    found = _surveyed(test, world)
    check_readable(found, f"`test` {cfg.test}")
    check_numbers(found, classes, f"`test` {cfg.test}")
    if not pixels_of(found, classes).any():
        raise UsageError(
            f"`test` {cfg.test}: not one pixel is of a class; void is {', '.join(map(str, void))} (`void`)"
        )
    if world.rank == 0 and not pixels.all():
        missing = [name for name, count in zip(classes.names, pixels, strict=True) if not count]
        say(
            f"`train` {cfg.train} has no pixel of {len(missing)} classes: {', '.join(missing[:12])}"
            + (" ..." if len(missing) > 12 else "")
        )
    return classes


def _surveyed(source: Dataset, world: World) -> Survey:
    found = Survey()
    for part in all_gather(survey(source, range(world.rank, len(source), world.size))):
        found.add(part)
    return found


def _test(cfg: SegmentConfig, test: Dataset, world: World) -> tuple[Tensor, list[Seen], Unreadable]:
    """(confusion matrix, pictures of this process, what could not be read by any) of the model in --out."""
    model = load_segmenter(cfg.out, str(world.device))
    classes = model.classes
    matrix = torch.zeros(len(classes), len(classes), dtype=torch.int64)
    seen, unreadable, names = [], Unreadable(), file_names(list(test.keys())) if cfg.save_masks else []
    stride = max(1, len(test) // max(cfg.show, 1))
    for number in range(world.rank, len(test), world.size):
        record = test[number]
        try:
            pixels, _, _ = decode_upright(record.image)
            truth = classes.of(read_mask(record), record.key)
        except UnreadableImageError as error:
            unreadable.add(record.key, str(error))
            continue
        predicted = model(pixels)
        found = confusion(torch.from_numpy(predicted), torch.from_numpy(truth), len(classes))
        matrix += found
        if cfg.save_masks:
            save_mask(Path(cfg.out) / MASKS / f"{names[number]}.png", predicted, classes)
        if number % stride == 0 and len(seen) < cfg.show:
            accuracy = 100 * float(found.diag().sum()) / max(float(found.sum()), 1)
            seen.append(_small(record.key, pixels, truth, predicted, accuracy))
    for reasons in all_gather(unreadable.reasons):
        unreadable.reasons |= reasons
    unreadable.check(len(test))
    return all_reduce(matrix), seen, unreadable


def _small(key: str, pixels: np.ndarray, truth: np.ndarray, predicted: np.ndarray, accuracy: float) -> Seen:
    picture = Image.fromarray(pixels)
    picture.thumbnail((SHOWN, SHOWN))
    nearest = [
        np.asarray(Image.fromarray(m).resize(picture.size, Image.Resampling.NEAREST)) for m in (truth, predicted)
    ]
    return Seen(key, np.asarray(picture), nearest[0], nearest[1], accuracy if (truth != VOID).any() else float("nan"))
