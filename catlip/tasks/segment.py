"""An encoder learns to give every pixel a class: fine-tuning on masks, and mIoU at full resolution.

report/segmentation.py draws the predictions and is the verb `segment`.
"""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from catlip.data.images import Unreadable, UnreadableImageError, decode_upright, left_out
from catlip.data.loader import Loader
from catlip.data.mask_sets import (
    VOID,
    Classes,
    MaskDataset,
    Survey,
    check_numbers,
    check_readable,
    find_classes,
    open_masks,
    pixels_of,
    read_mask,
    survey,
)
from catlip.data.maskbatches import MaskBatches, Window, check_window
from catlip.data.order import Order
from catlip.data.steps import CurriculumConfig, Steps
from catlip.errors import UsageError
from catlip.evaluation.class_names import read_names
from catlip.evaluation.segmentation import Fit, confusion, file_names, fit_of, save_mask
from catlip.models.segmenter import Head, SegmentationCard, load_segmenter, open_encoder, save_segmenter
from catlip.models.weights import fingerprint
from catlip.notices import say
from catlip.objectives.masks import MaskObjective
from catlip.training.distributed import World, any_rank, gathered, joined, total
from catlip.training.hardware import default_workers
from catlip.training.log import append_json, table
from catlip.training.loop import LoopConfig
from catlip.training.optim import OptimConfig
from catlip.training.run import budget_of, carry_out, require
from catlip.training.task import Task

SHOWN = 480  # pixels of the longer side on the page
MASKS = "masks"  # folder of predictions


@dataclass(kw_only=True, slots=True)
class SegmentConfig:
    """Settings of `catlip segment`."""

    run: str  # run folder, model folder, hf-hub:ORG/NAME, or timm:NAME
    train: str  # tars (KEY.jpg, KEY.seg.png), or a folder laid out as ADE20k, VOC or Cityscapes; FOLDER:SPLIT
    test: str  # the same
    out: str  # new run folder; the same command again goes on where it stopped
    untrained: bool = False  # the same architecture from random weights, for a baseline
    classes: str | None = None  # class names, one a line in the order of their numbers
    void: tuple[int, ...] = ()  # numbers that are no class; 0 among them: classes begin at 1. Default: the layout's
    image_size: int = 512  # pixels of the squares that the network sees
    samples: int = 0  # budget: pictures seen, repetitions counted; or --epochs
    epochs: float = 0.0  # budget: times the data is seen
    batch_size: int = 16  # of all processes together
    seed: int = 0
    workers: int = 0  # decoding processes of each training process; 0: what the cores allow
    device: str = "auto"  # auto, cpu, cuda, mps
    drop_path: float = 0.0  # share of the residual branches that are left out, in the last layer
    accept_changes: bool = False  # go on with a run although its data or settings changed
    save_masks: bool = False  # write the predictions on --test as PNG
    show: int = 24  # predictions on the page
    head: Head = field(default_factory=Head)
    window: Window = field(default_factory=Window)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=3e-4))
    loop: LoopConfig = field(default_factory=LoopConfig)


@dataclass(slots=True)
class Seen:
    """A test picture and what became of it, small."""

    key: str
    pixels: np.ndarray  # uint8 [h, w, 3]
    truth: np.ndarray  # uint8 [h, w]: a class, or VOID
    predicted: np.ndarray  # uint8 [h, w]
    accuracy: float  # percent of its pixels that have a class; NaN if none has


def fine_tune(cfg: SegmentConfig) -> tuple[dict[str, Any], list[Seen]] | None:
    """Train, save and test; (the line for results.jsonl, some of the pictures). None if the run was asked to stop.
    Processes other than the main one get None too.

    Raises UsageError for a mistake in settings, pictures or masks, before anything is written.
    """
    with joined(cfg.device) as world:
        return _fine_tune(cfg, world)


def _fine_tune(cfg: SegmentConfig, world: World) -> tuple[dict[str, Any], list[Seen]] | None:
    began = time.perf_counter()
    require(cfg, "run", "train", "test", "out")
    if cfg.loop.compile:
        raise UsageError("`compile`: segmentation runs without; leave it out")
    check_window(cfg.window)
    train, test = open_masks(cfg.train, "train"), open_masks(cfg.test, "test")
    names = [name.name for name in read_names(cfg.classes)] if cfg.classes else []
    classes = _look(cfg, train, test, names, world)
    weights = _train(cfg, world, train, classes)
    if weights is None:
        return None
    if world.main:
        task, card = make_task(cfg, classes), _card(cfg, classes)
        task.load_state_dict(weights)
        save_segmenter(Path(cfg.out), task.eval().objective, card)
    any_rank(False)  # the others wait for the folder
    matrix, seen, unreadable = _test(cfg, test, world)
    tested = len(test) - len(unreadable.reasons)
    result = _result(cfg, classes, fit_of(matrix), len(train), tested, time.perf_counter() - began)
    if world.main:
        result |= left_out(test=unreadable)
        append_json(Path(cfg.out) / "results.jsonl", result)
        _say(result, cfg)
    return (result, seen) if world.main else None


def _look(cfg: SegmentConfig, train: MaskDataset, test: MaskDataset, names: list[str], world: World) -> Classes:
    """The classes; every mask is looked at once, the processes sharing the work."""
    void = cfg.void or train.void
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
    if world.main and not pixels.all():
        missing = [name for name, count in zip(classes.names, pixels, strict=True) if not count]
        say(
            f"`train` {cfg.train} has no pixel of {len(missing)} classes: {', '.join(missing[:12])}"
            + (" ..." if len(missing) > 12 else "")
        )
    return classes


def _surveyed(source: MaskDataset, world: World) -> Survey:
    found = Survey()
    for part in gathered(survey(source, range(world.rank, len(source), world.size))):
        found.add(part)
    return found


def _train(cfg: SegmentConfig, world: World, train: MaskDataset, classes: Classes) -> dict[str, Tensor] | None:
    """The trained weights, on the main process; None if the run was asked to stop."""
    if cfg.batch_size < world.size:
        raise UsageError(f"`batch_size` {cfg.batch_size} gives {world.size} processes less than a picture each")
    order = Order([(len(train), 1.0)], cfg.seed)
    budget = budget_of(cfg, order.length)
    facts: dict[str, Any] = {
        "data": train.fingerprint(),
        "init": fingerprint(cfg.run, cfg.untrained),
        # What a head of other classes or another shape could not go on with.
        "objective": {"head": asdict(cfg.head), "names": classes.names, "void": classes.void},
        "budget": budget,
    }
    task = make_task(cfg, classes)
    workers = cfg.workers or default_workers(world.local_size, world.device)
    steps = Steps(
        CurriculumConfig(), budget=budget, batch_size=cfg.batch_size, image_size=cfg.image_size, seed=cfg.seed
    )
    batches = MaskBatches(train, order, steps, classes=classes, window=cfg.window, rank=world.rank, world=world.size)
    model = task.objective
    places = f"features {model.own_stride} px apart" + (
        f", brought to {model.stride}" if model.own_stride > model.stride else ""
    )
    return carry_out(
        task,
        Loader(batches, workers),
        world,
        cfg,
        budget=budget,
        facts=facts,
        begin=lambda _: None,
        described=f"{train.described}; {len(classes)} classes; {cfg.run}{' untrained' if cfg.untrained else ''}: "
        f"{model.encoder.architecture} at {cfg.image_size} px, {places}, {cfg.head.head} head, on "
        f"{world.size} x {world.device.type}, batch {cfg.batch_size:,}, {workers} loader workers",
    )


def make_task(cfg: SegmentConfig, classes: Classes) -> Task:
    """Encoder and head with their initial weights: a function of the settings alone."""
    torch.manual_seed(cfg.seed)
    encoder = open_encoder(
        cfg.run, image_size=cfg.image_size, stride=cfg.head.stride, untrained=cfg.untrained, drop_path=cfg.drop_path
    )
    objective = MaskObjective(encoder, len(classes), cfg.head)
    if cfg.loop.checkpointing:
        encoder.backbone.set_grad_checkpointing(True)
    return Task(objective)


def _card(cfg: SegmentConfig, classes: Classes) -> SegmentationCard:
    return SegmentationCard(
        names=list(classes.names),
        image_size=cfg.image_size,
        short_side=cfg.window.short_side,
        head=asdict(cfg.head),
        first=classes.first,
        void=classes.void,
    )


def _test(cfg: SegmentConfig, test: MaskDataset, world: World) -> tuple[Tensor, list[Seen], Unreadable]:
    """(confusion matrix, pictures of this process, what could not be read by any) of the model in --out."""
    model = load_segmenter(cfg.out, str(world.device))
    classes = model.classes
    matrix = torch.zeros(len(classes), len(classes), dtype=torch.int64)
    seen, unreadable, names = [], Unreadable(), file_names(test.keys)
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
    for reasons in gathered(unreadable.reasons):
        unreadable.reasons |= reasons
    unreadable.check(len(test))
    return total(matrix), seen, unreadable


def _small(key: str, pixels: np.ndarray, truth: np.ndarray, predicted: np.ndarray, accuracy: float) -> Seen:
    picture = Image.fromarray(pixels)
    picture.thumbnail((SHOWN, SHOWN))
    nearest = [
        np.asarray(Image.fromarray(m).resize(picture.size, Image.Resampling.NEAREST)) for m in (truth, predicted)
    ]
    return Seen(key, np.asarray(picture), nearest[0], nearest[1], accuracy if (truth != VOID).any() else float("nan"))


def _result(cfg: SegmentConfig, classes: Classes, fit: Fit, train: int, test: int, seconds: float) -> dict[str, Any]:
    iou = {
        name: None if value != value else round(value, 2) for name, value in zip(classes.names, fit.iou, strict=True)
    }
    return {
        "task": "segment",
        "miou": round(fit.miou, 2),
        "mean_accuracy": round(fit.mean_accuracy, 2),
        "pixel_accuracy": round(fit.pixel_accuracy, 2),
        "classes": len(classes),
        "train": train,
        "test": test,
        "samples": cfg.samples or None,
        "epochs": cfg.epochs or None,
        "head": cfg.head.head,
        "stride": cfg.head.stride,
        "image_size": cfg.image_size,
        "short_side": cfg.window.short_side,
        "iou": iou,
        "pixels": dict(zip(classes.names, fit.pixels, strict=True)),
        "data": [cfg.train, cfg.test],
        "encoder": f"{cfg.run}{' untrained' if cfg.untrained else ''}",
        "seconds": round(seconds, 1),
    }


def _say(result: dict[str, Any], cfg: SegmentConfig) -> None:
    shown = sorted(result["iou"].items(), key=lambda entry: -1 if entry[1] is None else entry[1], reverse=True)
    rows = {"mIoU": f"{result['miou']:.2f} %", "pixels right": f"{result['pixel_accuracy']:.2f} %"}
    rows |= {name: "not in the test, nor predicted" if v is None else f"{v:.2f} %" for name, v in shown[:40]}
    say(
        table(
            rows,
            f"{result['encoder']}: {result['classes']} classes, {result['train']:,} pictures to train on, "
            f"{result['test']:,} to test at their own size",
        )
    )
    if len(shown) > 40:
        say(f"  {len(shown) - 40} more classes in {Path(cfg.out) / 'results.jsonl'}")
