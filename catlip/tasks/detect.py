"""Detection: an encoder becomes a Mask R-CNN that is fine-tuned on a COCO file and measured by COCO's AP."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from catlip.config import configure, required
from catlip.data.batches import Batches
from catlip.data.boxes import BoxBatches, Placed, decode_placed
from catlip.data.coco import Instances, picture_source, read_instances
from catlip.data.crops import empty
from catlip.data.dataset import Dataset
from catlip.data.images import Unreadable, UnreadableImageError, left_out
from catlip.data.objects import Objects, encoded, mask_tools
from catlip.data.order import Order
from catlip.data.steps import Steps
from catlip.errors import UsageError
from catlip.evaluation.detection import DetectedImage, DetectionResult, average_precision, rounded
from catlip.models.augment import AugmentConfig, built_augment
from catlip.models.detector import DetectorConfig, in_image
from catlip.models.model_folders import ENCODER_FOLDER
from catlip.models.weights import fingerprint, named, open_weights
from catlip.notices import say
from catlip.objectives.boxes import BoxObjective
from catlip.training.distributed import World, joined
from catlip.training.optim import OptimConfig
from catlip.training.run import Run
from catlip.training.state import LoopConfig
from catlip.training.task import Task
from catlip.training.train import TrainConfig, train

AT_ONCE = 8  # images of the test set


@dataclass(kw_only=True, slots=True)
class DetectConfig(TrainConfig):
    """Settings of `catlip detect`."""

    run: str  # where the encoder comes from: run folder, model folder, timm:NAME, hf-hub:ORG/NAME
    untrained: bool = False  # random weights of the same architecture, for a baseline
    images: str  # images to train on: a folder, or tars with KEY.jpg
    boxes: str  # COCO file of their boxes and masks
    test_images: str
    test_boxes: str
    out: str  # run folder; the same command again goes on where it stopped
    image_size: int = 1024  # pixels of the square canvas
    scale: tuple[float, float] = (0.5, 1.25)  # random resize: an image's longer side, as a multiple of the canvas
    batch_size: int = 16  # of all processes together
    drop_path: float = 0.0  # stochastic depth: rate at the last layer, falling linearly to 0 at the first
    show: int = 24  # images on the page
    objective: DetectorConfig = field(default_factory=DetectorConfig)
    augment: Any = field(default_factory=AugmentConfig)  # or a module on the batch, from Python
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            lr=1e-4, weight_decay=0.1, betas=(0.9, 0.999), schedule="wsd", decay=0.2, warmup=0.02, layer_decay=0.7
        )
    )
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(precision="fp32", ema=0.999))


def detect(encoder: Any = None, *, config: DetectConfig | None = None, **settings: Any) -> Run:
    """Fine-tune a detector and measure its AP, or go on with the run in `out`.

    encoder: an Encoder, a Run, or its path or name. settings: fields of `DetectConfig`. The run's `result` is a
    `DetectionResult`, on rank 0. Raises UsageError for a mistake in settings or data, before training.
    """
    cfg = configure(DetectConfig, config, run=encoder, **settings)
    required(cfg, "run", "images", "boxes", "test_images", "test_boxes", "out")
    with joined(cfg.device):
        learned, tested = _open(cfg)
        dataset = picture_source(learned, cfg.images)
        test_images = picture_source(tested, cfg.test_images, "`test_images`")
        return train(make_task(cfg, learned, tested, test_images), dataset, cfg, cfg.out)


def _open(cfg: DetectConfig) -> tuple[Instances, Instances]:
    """(training set, test set), checked as far as that is possible without opening images."""
    mask_tools()
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


def make_task(cfg: DetectConfig, learned: Instances, tested: Instances, test_images: Dataset) -> "DetectTask":
    """Detector and augmentation with their initial weights: a function of the settings and the encoder's weights."""
    torch.manual_seed(cfg.seed)
    weights = open_weights(cfg.run, cfg.untrained)
    encoder = weights.build(image_size=cfg.image_size, drop_path=cfg.drop_path)
    objective = BoxObjective(encoder, len(learned.names), cfg.objective)
    return DetectTask(cfg, objective, learned, tested, test_images)


class DetectTask(Task):
    """Images on a canvas, under large-scale jitter, with the boxes and masks of a COCO file."""

    def __init__(
        self, cfg: DetectConfig, objective: BoxObjective, learned: Instances, tested: Instances, test_images: Dataset
    ) -> None:
        """The boxes to learn, the boxes to find, and where to find them."""
        super().__init__(objective, built_augment(cfg.augment), image_size=cfg.image_size)
        self.cfg, self.began = cfg, time.perf_counter()
        self.learned, self.tested, self.test_images = learned, tested, test_images

    def batches(self, dataset: Dataset, order: Order, steps: Steps, rank: int, world: int) -> Batches:
        cfg = self.cfg
        return BoxBatches(dataset, order, steps, scale=cfg.scale, masks=cfg.objective.masks, rank=rank, world=world)

    @property
    def described(self) -> str:
        source = named(self.cfg.run, self.cfg.untrained)
        return f"{len(self.learned.names):,} classes; {source} ({self.encoder.architecture}) at {self.image_size} px"

    def fingerprint(self) -> dict[str, Any]:
        return {"init": fingerprint(self.cfg.run, self.cfg.untrained), "classes": self.learned.names}

    def begin(self, out: Path) -> None:
        names = json.dumps(self.learned.names, indent=2)
        (out / "classes.json").write_text(names + "\n", encoding="utf-8")

    def finish(self, out: Path, world: World) -> DetectionResult | None:
        """Save encoder, pyramid and heads; find what is in the test images; COCO's AP of that."""
        if world.rank:
            return None
        cfg, train, test, unreadable = self.cfg, self.learned, self.tested, Unreadable()
        self.encoder.save(out / ENCODER_FOLDER)
        self.save_rest(out, "detector.backbone.encoder.")
        objective = self.objective.to(world.device)
        found, shown = _search(objective, self.test_images, train, test, cfg, world.device, unreadable)
        (out / "detections.json").write_text(json.dumps(found), encoding="utf-8")
        readable = {key: truth for key, truth in test.pictures.items() if key not in unreadable.reasons}
        test = replace(test, pictures=readable)
        scores: dict[str, Any] = {"box": average_precision(test, found, "bbox")}
        if cfg.objective.masks:
            scores["mask"] = average_precision(test, found, "segm")
        return DetectionResult(
            **{name: rounded(score) for name, score in scores.items()},
            classes=len(train.names),
            train=len(train.pictures),
            test=len(test.pictures),
            image_size=cfg.image_size,
            data=[cfg.boxes, cfg.test_boxes],
            encoder=named(cfg.run, cfg.untrained),
            detections=len(found),
            shown=shown,
            **left_out(test_images=unreadable),
        ).saved(out, self.began)


def _search(
    objective: BoxObjective,
    source: Dataset,
    train: Instances,
    test: Instances,
    cfg: DetectConfig,
    device: torch.device,
    unreadable: Unreadable,
) -> tuple[list[dict[str, Any]], list[DetectedImage]]:
    """(all detections as COCO's results, some pictures with theirs)."""
    ids, name_of = dict(zip(test.names, test.ids, strict=True)), dict(zip(test.ids, test.names, strict=True))
    category_of = [ids.get(name) for name in train.names]
    every, found, shown = max(1, len(source) // max(cfg.show, 1)), [], []
    pictures = _detected(objective, source, cfg.image_size, device, unreadable)
    for number, (truth, image, result, placed) in enumerate(pictures):
        here = as_coco(result, truth, placed, category_of)
        found += here
        if number % every == 0 and len(shown) < cfg.show:
            shown.append(DetectedImage(image, truth, here, name_of))
    return found, shown


def _detected(
    objective: BoxObjective, source: Dataset, size: int, device: torch.device, unreadable: Unreadable
) -> Iterator[tuple[Objects, bytes, dict[str, Tensor], Placed]]:
    """What is found in each picture, in pixels of the canvas onto which the whole of it fits."""

    def decode(number: int) -> tuple[Objects, bytes, Tensor, Placed] | None:
        record, canvas = source[number], empty(size)
        truth = record.target
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
    found = []
    for label, score, (x0, y0, x1, y1), mask in in_image(result, placed, truth.width, truth.height):
        category = category_of[label - 1]
        if category is None:
            continue
        entry = {
            "image_id": truth.id,
            "category_id": category,
            "score": round(score, 5),
            "bbox": [round(side, 2) for side in (x0, y0, x1 - x0, y1 - y0)],
        }
        if mask is not None:
            entry["segmentation"] = encoded(mask.astype("uint8"))
        found.append(entry)
    return found
