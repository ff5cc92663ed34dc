"""What the classifier sees in one picture: its best labels, printed and drawn. The verb `predict`."""

import textwrap
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from catlip.data.images import UnreadableImageError, read_image
from catlip.errors import UsageError
from catlip.models.encoder import Encoder
from catlip.models.weights import load, model_folder, read_json
from catlip.notices import say
from catlip.training.distributed import one_device
from catlip.training.log import table

INK, SOFT, BAR = "#1c2430", "#5b6675", "#2f5fd0"


@dataclass(frozen=True, slots=True)
class Prediction:
    label: str  # wnid
    name: str
    probability: float


@dataclass(kw_only=True, slots=True)
class PredictConfig:
    """Settings of `catlip predict`."""

    run: str  # run folder or model folder, with a classifier
    photo: str
    top: int = 8
    out: str | None = None  # drawing, .png; default: RUN/predictions/PHOTO.png


def predict(cfg: PredictConfig) -> list[Prediction]:
    """The best labels, the most probable first; also drawn beside the picture.

    Raises UsageError for a picture that cannot be read and for an encoder without classifier.
    """
    if cfg.top < 1:
        raise UsageError("`top` is a positive number")
    encoder = load(cfg.run).to(one_device("cpu"))
    photo = Path(cfg.photo)
    if not photo.is_file():
        raise UsageError(f"no such picture: {photo}")
    try:
        picture = read_image(photo.read_bytes())
    except (UnreadableImageError, OSError) as error:
        raise UsageError(f"{photo}: {error}") from None
    found = best_labels(encoder, picture, cfg.top, exclusive=_exclusive(cfg.run))
    folder = Path(cfg.run) / "predictions" if Path(cfg.run).is_dir() else Path("predictions")
    out = Path(cfg.out) if cfg.out else folder / f"{photo.stem}.png"
    out.parent.mkdir(parents=True, exist_ok=True)
    draw(picture, found, out)
    rows = {f"{p.name} ({p.label})" if p.name != p.label else p.name: f"{100 * p.probability:5.1f} %" for p in found}
    say(table(rows, f"{photo}, drawn in {out}:"))
    return found


@torch.no_grad()
def best_labels(encoder: Encoder, picture: Image.Image, top: int, exclusive: bool = False) -> list[Prediction]:
    """exclusive: the labels shut each other out (softmax); else each is true or false by itself (sigmoid)."""
    logits = encoder.logits(encoder.transform(picture)[None].to(encoder.mean.device))[0].float()
    probability = logits.softmax(0) if exclusive else logits.sigmoid()
    # Ranked by logit: far from zero several sigmoids are the same number.
    order = logits.topk(min(top, len(logits))).indices.tolist()
    return [Prediction(encoder.labels[i], encoder.names[i], probability[i].item()) for i in order]


def draw(picture: Image.Image, found: list[Prediction], out: Path) -> None:
    """The picture on the left, a bar a label on the right."""
    from matplotlib.figure import Figure

    shown = picture.copy()
    shown.thumbnail((900, 900))
    ratio = min(max(shown.width / shown.height, 0.5), 2.0)
    height = max(3.2, 0.42 * len(found) + 0.6)
    figure = Figure(figsize=(height * ratio + 5.4, height), dpi=120, facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[height * ratio, 5.4])
    left.imshow(shown)
    left.axis("off")
    # A dollar sign would begin a formula.
    names = [textwrap.shorten(p.name, 34, placeholder="…").replace("$", r"\$") for p in found]
    places = range(len(found))
    right.barh(places, [p.probability for p in found], color=BAR, height=0.62)
    for place, prediction in zip(places, found, strict=True):
        text = f"{100 * prediction.probability:.1f} %"
        right.text(prediction.probability + 0.02, place, text, va="center", color=SOFT, fontsize=10)
    right.set_yticks(list(places), names, color=INK, fontsize=11)
    right.set_xlim(0, 1.18)  # room for the number behind a full bar
    right.set_xticks([])
    right.invert_yaxis()
    right.tick_params(length=0)
    for side in ("top", "right", "bottom"):
        right.spines[side].set_visible(False)
    right.spines["left"].set_color("#cfd6df")
    figure.savefig(out)


def _exclusive(run: str) -> bool:
    """Single-label classifiers say so in their config.json; the synsets of captions do not exclude each other."""
    return read_json(model_folder(run) / "config.json").get("multi_label") is False
