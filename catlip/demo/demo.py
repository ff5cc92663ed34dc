"""`catlip demo`: the main job, on pictures that come with catlip, in three minutes on any machine, without a network.

1,339 emoji, drawn by three artists. Two artists' drawings with their captions train the encoder; the third's, which it
never saw, test it: which nouns does it see in a stranger's drawing of a red apple?
"""

import gzip
import time
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from catlip import machine, page
from catlip.data.corpus import build_vocabulary
from catlip.data.crops import CropConfig
from catlip.data.dataset import Dataset
from catlip.data.open import open_dataset
from catlip.errors import UsageError
from catlip.evaluation.held_out import HeldOut, open_held_out, score
from catlip.labels.vocabulary import Vocabulary
from catlip.models.encoder import Encoder
from catlip.models.weights import load
from catlip.notices import say
from catlip.tasks.pretrain import PretrainConfig, pretrain, speed_of
from catlip.training.log import append_json, duration, table
from catlip.training.optim import OptimConfig
from catlip.training.state import LoopConfig

TRAIN, TEST = ("noto", "openmoji"), "twemoji"
SHEET = 48  # pictures on the contact sheet
MOST = 40_000  # samples: fifteen epochs, after which little is gained
# Small pictures, many of them: 26,000 of 32 px give a mean AP of 20.5, and 12,000 of 48 px, which take as long, 9.9.
SIZE = 32
MEASURE = 3.0  # seconds of measuring the speed


@dataclass(kw_only=True, slots=True)
class DemoConfig:
    """Pre-train on two artists' emoji, test on the third's."""

    out: str = "runs/demo"  # folder for the data, the run and the contact sheet
    minutes: float = 1.75  # of training, at most; the samples follow from the speed, which is measured first
    samples: int = 0  # instead: pictures seen
    seed: int = 0


def demo(config: DemoConfig) -> dict[str, float]:
    """Scores of the trained encoder and of the baselines, in percent."""
    began = time.perf_counter()
    out = Path(config.out)
    if (out / "index.html").exists():
        raise UsageError(f"`out` {out} already holds a demo; open {out / 'index.html'}, or choose another folder")
    unpack(out / "data")
    train = str(out / "data" / ("{" + ",".join(TRAIN) + "}.tar"))
    build_vocabulary(train, out=str(out / "vocab.tsv"), min_count=6)
    vocabulary = Vocabulary.load(out / "vocab.tsv")
    recipe = _recipe(config, train, out)
    say(f"{recipe.samples:,} samples at {recipe.image_size} px")
    pretrain(config=recipe)
    trained = load(out / "run")
    source = open_dataset(str(out / "data" / f"{TEST}.tar"))
    test = open_held_out(source, vocabulary, trained.pixels)
    seen = open_held_out(open_dataset(train), vocabulary, trained.pixels)
    logits = {
        "this encoder": _scores(trained, test.pixels),
        "untrained encoder": _untrained(recipe, seen, test, len(vocabulary)),
        "most frequent label": torch.tensor(vocabulary.counts).float().expand(len(test), -1),
    }
    results = {name: (100 * (s := score(of, test)).top1, 100 * s.mean_ap) for name, of in logits.items()}
    _write_sheet(out, source, vocabulary, logits["this encoder"], test, results)
    rows = {name: f"top-1 {a:5.1f} %   mean AP {b:5.1f} %" for name, (a, b) in results.items()}
    say(table(rows, f"{TEST}'s {len(test):,} drawings, never seen in training, {len(vocabulary)} labels:"))
    flat = {
        f"{name} {what}": value
        for name, pair in results.items()
        for what, value in zip(("top-1", "mAP"), pair, strict=True)
    }
    append_json(out / "run" / "results.jsonl", {"task": "demo", **{k: round(v, 2) for k, v in flat.items()}})
    say(
        f"\n{out / 'index.html'}: pictures with captions, labels and predictions"
        f" ({duration(time.perf_counter() - began)} in all)\n{NEXT}"
    )
    return flat


NEXT = """
Next, on your own pictures (a CSV with a column of paths and a column of captions):
  catlip vocab    pictures.csv --min-count 8 --out vocab.tsv
  catlip head     timm:resnet50 --data pictures.csv --out runs/head   # or adapt: some hundred pictures will do
  catlip pretrain flickr8k_cpu --data pictures.csv --vocab vocab.tsv --out runs/mine   # from some thousand on"""


def _recipe(cfg: DemoConfig, train: str, out: Path) -> PretrainConfig:
    """What this machine can train in the time that there is."""
    recipe = PretrainConfig(
        data=train,
        vocab=str(out / "vocab.tsv"),
        out=str(out / "run"),
        backbone="resnet10t",
        image_size=SIZE,
        samples=cfg.samples,
        batch_size=64,
        seed=cfg.seed,
        crop=CropConfig(scale=(0.5, 1.0)),
        optim=OptimConfig(lr=2e-3, weight_decay=0.1),
        loop=LoopConfig(ema=0.995),
    )
    if not cfg.samples:
        rate = speed_of(replace(recipe, samples=recipe.batch_size), MEASURE)
        recipe.samples = min(MOST, round(60 * cfg.minutes * rate))
        say(f"{rate:,.0f} images/s on {machine.describe()}")
    return recipe


def unpack(folder: Path) -> None:
    """The sample travels compressed (two thirds of a tar of small files are padding) and is read uncompressed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*TRAIN, TEST):
        packed = resources.files("catlip.demo").joinpath("sample", f"{name}.tar.gz").read_bytes()
        (folder / f"{name}.tar").write_bytes(gzip.decompress(packed))


@torch.no_grad()
def _scores(encoder: Encoder, pixels: Tensor) -> Tensor:
    return torch.cat([encoder.logits(encoder.normalize(part)) for part in pixels.split(256)])


def _untrained(recipe: PretrainConfig, train: HeldOut, test: HeldOut, classes: int) -> Tensor:
    """Scores of a linear classifier (ridge regression) on the features of the same backbone with random weights."""
    torch.manual_seed(recipe.seed)
    encoder = Encoder.create(recipe.backbone, image_size=recipe.image_size).eval()
    with torch.no_grad():
        x, y = (torch.cat([encoder(encoder.normalize(part)) for part in of.pixels.split(256)]) for of in (train, test))
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    x, y = ((z - mean) / std for z in (x, y))
    target = train.positive(torch.arange(classes)).float()
    ridge = x.T @ x + 0.1 * len(x) * torch.eye(x.shape[1])
    return y @ torch.linalg.solve(ridge, x.T @ (target - target.mean(0))) + target.mean(0)


def _write_sheet(
    out: Path,
    source: Dataset,
    vocabulary: Vocabulary,
    scores: Tensor,
    test: HeldOut,
    results: dict[str, tuple[float, float]],
) -> None:
    names = [name.replace("_", " ") for name in vocabulary.names]
    numbers = np.random.default_rng(0).permutation(test.rows.unique().numpy())[:SHEET]
    cards = []
    for number in numbers.tolist():
        record = source[number]
        true = {names[v] for v in test.labels[test.rows == number].tolist()}
        best = [names[v] for v in scores[number].topk(4).indices.tolist()]
        cards.append(
            page.card(
                page.image(record.image, record.captions[0]),
                "; ".join(record.captions),
                [("labels", page.tags(sorted(true))), ("predicted", page.tags(best, good=true))],
            )
        )
    rows = [[name, f"{a:.1f} %", f"{b:.1f} %"] for name, (a, b) in results.items()]
    page.write(
        out / "index.html",
        page.page(
            "catlip demo: nouns in a stranger's drawings",
            page.paragraph(
                f"Trained on the emoji of {' and '.join(TRAIN)} with their captions, "
                f"tested on {len(scores):,} drawings by "
                f"{TEST}, an artist it never saw. {len(vocabulary)} labels, all found in the captions by catlip."
            ),
            page.table("Scores", ["", "top-1", "mean AP"], rows),
            page.heading("Drawings of the unseen artist: caption, its labels, the four best predictions"),
            page.grid(cards),
            page.paragraph("Emoji: Noto (Google), OpenMoji (CC BY-SA 4.0), Twemoji (CC BY 4.0)", soft=True),
        ),
    )
