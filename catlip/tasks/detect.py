"""Encoder -> detector: fine-tune Mask R-CNN on a COCO file, then COCO's AP on another.

report/detections.py draws what is found and is the verb `detect`.
"""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from catlip.data.boxes import BoxBatches, Placed, decode_placed
from catlip.data.coco import Instances, picture_source, read_instances
from catlip.data.crops import empty
from catlip.data.dataset import Dataset
from catlip.data.images import Unreadable, UnreadableImageError, left_out
from catlip.data.loader import Loader
from catlip.data.objects import Objects, encoded, mask_tools
from catlip.data.order import Order
from catlip.data.steps import CurriculumConfig, Steps
from catlip.errors import UsageError
from catlip.evaluation.detection import average_precision
from catlip.models.augment import AugmentConfig, RangeAugment
from catlip.models.weights import ENCODER_FOLDER, fingerprint, open_weights
from catlip.notices import say
from catlip.objectives.boxes import Boxes, BoxObjective
from catlip.training.distributed import World, joined
from catlip.training.hardware import default_workers
from catlip.training.log import append_json, table
from catlip.training.loop import LoopConfig
from catlip.training.optim import OptimConfig
from catlip.training.run import budget_of, carry_out, require
from catlip.training.task import Task

AT_ONCE = 8  # pictures of the test set


@dataclass(kw_only=True, slots=True)
class DetectConfig:
    """Settings of `catlip detect`."""

    run: str  # where the encoder comes from: run folder, model folder, timm:NAME, hf-hub:ORG/NAME
    untrained: bool = False  # random weights of the same architecture, for a baseline
    images: str  # pictures to train on: a folder, or tars with KEY.jpg
    boxes: str  # COCO file of their boxes and masks
    test_images: str
    test_boxes: str
    out: str  # run folder; the same command again goes on where it stopped
    image_size: int = 1024  # pixels of the square canvas
    scale: tuple[float, float] = (0.5, 1.25)  # a picture's longer side, as a share of the canvas, drawn anew each time
    samples: int = 0  # budget: pictures seen, repetitions counted; or --epochs
    epochs: float = 0.0  # budget: times the training set is seen
    batch_size: int = 16  # of all processes together
    drop_path: float = 0.0  # share of the encoder's layers that is left out at the top, falling towards the bottom
    seed: int = 0
    workers: int = 0  # decoding processes of each training process; 0: what the cores allow
    device: str = "auto"
    accept_changes: bool = False  # go on with a run although its data or settings changed
    show: int = 24  # pictures on the page
    objective: Boxes = field(default_factory=Boxes)
    ranges: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            lr=1e-4, weight_decay=0.1, betas=(0.9, 0.999), schedule="wsd", decay=0.2, warmup=0.02, layer_decay=0.7
        )
    )
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(precision="fp32", ema=0.999))


@dataclass(slots=True)
class Shown:
    """A picture of the test set and what was found in it."""

    image: bytes
    truth: Objects
    found: list[dict[str, Any]]  # COCO's results, the surest first


def fine_tune(cfg: DetectConfig) -> tuple[dict[str, Any], list[Shown], Instances] | None:
    """(AP in percent, some pictures, the test set), on the main process; None if the run was asked to stop.

    Raises UsageError for a mistake in settings or data, before training.
    """
    with joined(cfg.device) as world:
        return _fine_tune(cfg, world)


def _fine_tune(cfg: DetectConfig, world: World) -> tuple[dict[str, Any], list[Shown], Instances] | None:
    began = time.perf_counter()
    train, test = _open(cfg)
    source, test_source = picture_source(train, cfg.images), picture_source(test, cfg.test_images, "`test_images`")
    weights = _train(cfg, world, source, train)
    if weights is None or not world.main:
        return None
    task = make_task(cfg, len(train.names))
    task.load_state_dict(weights)
    objective, out = task.eval().objective.to(world.device), Path(cfg.out)
    _save(objective, out)
    unreadable = Unreadable()
    found, shown = _search(objective, test_source, train, test, cfg, world.device, unreadable)
    (out / "detections.json").write_text(json.dumps(found), encoding="utf-8")
    test = replace(test, pictures={key: truth for key, truth in test.pictures.items() if key not in unreadable.reasons})
    scores: dict[str, Any] = {"box": average_precision(test, found, "bbox")}
    if cfg.objective.masks:
        scores["mask"] = average_precision(test, found, "segm")
    result = {
        "task": "detect",
        **{name: _rounded(score) for name, score in scores.items()},
        "classes": len(train.names),
        "train": len(train.pictures),
        "test": len(test.pictures),
        "image_size": cfg.image_size,
        "data": [cfg.boxes, cfg.test_boxes],
        "encoder": f"{cfg.run}{' untrained' if cfg.untrained else ''}",
        "detections": len(found),
        "seconds": round(time.perf_counter() - began, 1),
        **left_out(test_images=unreadable),
    }
    append_json(out / "results.jsonl", result)
    rows = {f"{name} {part}": _said(value) for name, score in scores.items() for part, value in score.items()}
    say(table(rows, f"{out}: {len(found):,} detections in {len(test.pictures):,} pictures"))
    return result, shown, test


def _open(cfg: DetectConfig) -> tuple[Instances, Instances]:
    """(training set, test set), checked as far as that is possible without opening pictures."""
    mask_tools()
    require(cfg, "run", "images", "boxes", "test_images", "test_boxes", "out")
    if cfg.image_size < 64 or cfg.image_size % 64:
        raise UsageError(f"`image_size` {cfg.image_size}: the pyramid needs a multiple of 64")
    if not 0 < cfg.scale[0] <= cfg.scale[1]:
        raise UsageError(f"`scale` {cfg.scale[0]} {cfg.scale[1]}: two shares of the canvas, the smaller one first")
    if cfg.loop.compile:
        raise UsageError("`compile` does not reach a detector's encoder; leave it out")
    train, test = read_instances(cfg.boxes), read_instances(cfg.test_boxes, "`test_boxes`")
    for option, found in (("`boxes`", train), ("`test_boxes`", test)):
        found.check(option)
        ordinary = [(objects, row) for objects in found.pictures.values() for row in range(len(objects))]
        without = [objects.name for objects, row in ordinary if objects.masks[row] is None]
        if cfg.objective.masks and without:
            raise UsageError(
                f"{option} {found.path}: {len(without):,} of {len(ordinary):,} boxes have no mask, e.g. in "
                f"{without[0]}; `no_masks` learns boxes alone"
            )
        say(f"{found.path}: {found.described}")
    unknown = sorted(set(test.names) - set(train.names))
    if len(unknown) == len(test.names):
        raise UsageError(f"`test_boxes` {test.path} has no category of {train.path}: {', '.join(unknown[:5])}")
    if unknown:
        say(f"categories that only the test set has, and nothing can find: {', '.join(unknown)}")
    return train, test


def _train(cfg: DetectConfig, world: World, source: Dataset, train: Instances) -> dict[str, Tensor] | None:
    """The trained weights, on the main process; None if the run was asked to stop."""
    order = Order(source.parts, cfg.seed, source.shards.tolist())
    budget = budget_of(cfg, order.length)
    if cfg.batch_size < world.size:
        raise UsageError(f"`batch_size` {cfg.batch_size} gives {world.size} processes less than a picture each")
    task = make_task(cfg, len(train.names))
    steps = Steps(
        CurriculumConfig(), budget=budget, batch_size=cfg.batch_size, image_size=cfg.image_size, seed=cfg.seed
    )
    workers = cfg.workers or default_workers(world.local_size, world.device)
    loader = Loader(
        BoxBatches(
            source,
            order,
            steps,
            pictures=train.pictures,
            scale=cfg.scale,
            masks=cfg.objective.masks,
            rank=world.rank,
            world=world.size,
        ),
        workers,
    )
    facts: dict[str, Any] = {
        "init": fingerprint(cfg.run, cfg.untrained),
        "data": source.fingerprint(),
        "classes": train.names,
        "budget": budget,
    }

    def begin(out: Path) -> None:
        (out / "classes.json").write_text(json.dumps(train.names, indent=2) + "\n", encoding="utf-8")

    return carry_out(
        task,
        loader,
        world,
        cfg,
        budget=budget,
        facts=facts,
        begin=begin,
        described=f"{source.described}; {len(train.names):,} classes; {cfg.run}{' untrained' if cfg.untrained else ''} "
        f"({task.encoder.architecture}) at {cfg.image_size} px on {world.size} x {world.device.type}, batch "
        f"{cfg.batch_size:,}, {workers} workers",
    )


def make_task(cfg: DetectConfig, classes: int) -> Task:
    """Detector and augmentation with their initial weights: a function of the settings and the encoder's weights."""
    torch.manual_seed(cfg.seed)
    weights = open_weights(cfg.run, cfg.untrained)
    encoder = weights.build(image_size=cfg.image_size, drop_path=cfg.drop_path)
    if cfg.loop.checkpointing:
        encoder.backbone.set_grad_checkpointing(True)
    objective = BoxObjective(encoder, classes, cfg.objective)
    return Task(objective, RangeAugment(cfg.ranges.psnr) if cfg.ranges.range_augment else None)


def _save(objective: BoxObjective, out: Path) -> None:
    """The fine-tuned encoder as a model folder; pyramid and heads beside it."""
    objective.encoder.save(out / ENCODER_FOLDER)
    rest = {n: v for n, v in objective.state_dict().items() if not n.startswith("detector.backbone.encoder.")}
    save_file({name: value.detach().cpu().contiguous() for name, value in rest.items()}, out / "objective.safetensors")


def _search(
    objective: BoxObjective,
    source: Dataset,
    train: Instances,
    test: Instances,
    cfg: DetectConfig,
    device: torch.device,
    unreadable: Unreadable,
) -> tuple[list[dict[str, Any]], list[Shown]]:
    """(all detections as COCO's results, some pictures with theirs)."""
    ids = dict(zip(test.names, test.ids, strict=True))
    category_of = [ids.get(name) for name in train.names]
    every, found, shown = max(1, len(source) // max(cfg.show, 1)), [], []
    pictures = _detected(objective, source, test, cfg.image_size, device, unreadable)
    for number, (truth, image, result, placed) in enumerate(pictures):
        here = as_coco(result, truth, placed, category_of)
        found += here
        if number % every == 0 and len(shown) < cfg.show:
            shown.append(Shown(image, truth, here))
    return found, shown


def _detected(
    objective: BoxObjective, source: Dataset, test: Instances, size: int, device: torch.device, unreadable: Unreadable
) -> Iterator[tuple[Objects, bytes, dict[str, Tensor], Placed]]:
    """What is found in each picture, in pixels of the canvas onto which the whole of it fits."""

    def decode(number: int) -> tuple[Objects, bytes, Tensor, Placed] | None:
        record, canvas = source[number], empty(size)
        truth = test.pictures[record.key]
        try:
            return truth, record.image, canvas, decode_placed(record.image, truth, canvas)
        except UnreadableImageError as error:
            unreadable.add(record.key, str(error))
            return None

    with ThreadPoolExecutor(2) as threads:
        for first in range(0, len(source), AT_ONCE):
            some = [
                one for one in threads.map(decode, range(first, min(first + AT_ONCE, len(source)))) if one is not None
            ]
            if some:
                pixels = torch.stack([canvas for _, _, canvas, _ in some]).to(device)
                results = objective.detect(objective.encoder.normalize(pixels))
                for (truth, image, _, placed), result in zip(some, results, strict=True):
                    yield truth, image, result, placed
    unreadable.check(len(source))


def as_coco(result: dict[str, Tensor], truth: Objects, placed: Placed, category_of: list[Any]) -> list[dict[str, Any]]:
    """Detections on the canvas -> COCO's results in pixels of the picture. category_of: the test file's id of each
    class, None for classes that it does not have."""
    by = torch.tensor(placed.scale * 2)
    limits = torch.tensor([truth.width, truth.height] * 2)
    boxes = torch.minimum((result["boxes"].cpu() / by).clamp_min(0), limits)
    found = []
    for row, (box, label, score) in enumerate(
        zip(boxes, result["labels"].tolist(), result["scores"].tolist(), strict=True)
    ):
        x0, y0, x1, y1 = box.tolist()
        category = category_of[label - 1]
        if category is None or x1 <= x0 or y1 <= y0:
            continue
        entry = {
            "image_id": truth.id,
            "category_id": category,
            "score": round(score, 5),
            "bbox": [round(side, 2) for side in (x0, y0, x1 - x0, y1 - y0)],
        }
        if "masks" in result:  # one by one: a hundred masks of a large photo are gigabytes
            mask = paste_masks_in_image(result["masks"][row : row + 1].cpu(), box[None], (truth.height, truth.width))
            entry["segmentation"] = encoded((mask[0, 0] >= 0.5).to(torch.uint8).numpy())
        found.append(entry)
    return found


def _rounded(score: dict[str, Any]) -> dict[str, Any]:
    return {name: None if value is None else round(value, 2) for name, value in score.items()}


def _said(value: float | None) -> str:
    return "none of that size" if value is None else f"{value:.2f} %"
