"""What the classifier sees in an image: its best labels, as a table and as a drawing. The verb `predict`."""

import io
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import torch
from PIL import Image

from catlip import page
from catlip.config import configure
from catlip.data.images import UnreadableImageError, read_image
from catlip.errors import UsageError
from catlip.models.encoder import Encoder
from catlip.models.weights import load, origin
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

    run: str  # run folder or model folder, with a classifier; in Python also an Encoder or a Run
    photo: str  # in Python also a PIL image or a uint8 array [h, w, 3]
    top: int = 8
    out: str | None = None  # drawing, .png; default: RUN/predictions/PHOTO.png


@dataclass(kw_only=True, slots=True)
class PredictResult:
    """The best labels of an image, the most probable first. A notebook shows it as a drawing."""

    name: str  # the image's file, if it has one
    image: Image.Image
    labels: list[Prediction]
    drawn: str = ""  # file of the drawing, if there is one

    def to_json(self) -> dict[str, Any]:
        return {"image": self.name, "labels": [asdict(label) for label in self.labels]}

    def __str__(self) -> str:
        named = {p: f"{p.name} ({p.label})" if p.name != p.label else p.name for p in self.labels}
        rows = {name: f"{100 * p.probability:5.1f} %" for p, name in named.items()}
        return table(rows, f"{self.name or 'image'}, drawn in {self.drawn}:" if self.drawn else f"{self.name}:")

    def _repr_html_(self) -> str:
        buffer = io.BytesIO()
        self.figure().savefig(buffer, format="png")
        return page.image(buffer.getvalue(), str(self)).text

    def draw(self, out: str | Path) -> Path:
        """Write the drawing; its format follows from the file's name."""
        out = Path(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        self.figure().savefig(out)
        self.drawn = str(out)
        return out

    def figure(self) -> Any:
        """A matplotlib Figure: the image on the left, a bar for each label on the right."""
        from matplotlib.figure import Figure

        shown = self.image.copy()
        shown.thumbnail((900, 900))
        ratio = min(max(shown.width / shown.height, 0.5), 2.0)
        height = max(3.2, 0.42 * len(self.labels) + 0.6)
        figure = Figure(figsize=(height * ratio + 5.4, height), dpi=120, facecolor="white", layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[height * ratio, 5.4])
        left.imshow(shown)
        left.axis("off")
        # A dollar sign would begin a formula.
        names = [textwrap.shorten(p.name, 34, placeholder="…").replace("$", r"\$") for p in self.labels]
        rows = range(len(self.labels))
        right.barh(rows, [p.probability for p in self.labels], color=BAR, height=0.62)
        for row, p in zip(rows, self.labels, strict=True):
            right.text(p.probability + 0.02, row, f"{100 * p.probability:.1f} %", va="center", color=SOFT, fontsize=10)
        right.set_yticks(list(rows), names, color=INK, fontsize=11)
        right.set_xlim(0, 1.18)  # room for the number behind a full bar
        right.set_xticks([])
        right.invert_yaxis()
        right.tick_params(length=0)
        right.spines[["top", "right", "bottom"]].set_visible(False)
        right.spines["left"].set_color("#cfd6df")
        return figure


@overload
def predict(encoder: Any, image: list[Any] | tuple[Any, ...], **settings: Any) -> list[PredictResult]: ...
@overload
def predict(
    encoder: Any = None, image: Any = None, *, config: PredictConfig | None = None, **settings: Any
) -> PredictResult: ...
def predict(encoder: Any = None, image: Any = None, *, config: PredictConfig | None = None, **settings: Any) -> Any:
    """The best labels of an image; for a list of images a list of results.

    encoder: an Encoder, a Run, or where one lies; with a classifier. image: a file, a PIL image, or uint8 [h, w, 3].
    settings: fields of PredictConfig. With `out`, and from the command line, the drawing is written too.

    Raises UsageError for an image that cannot be read and for an encoder without classifier.

    >>> encoder = Encoder.create("test_resnet", image_size=64)
    >>> head = torch.nn.Linear(encoder.width, 2)
    >>> import tempfile
    >>> encoder.save(folder := tempfile.mkdtemp(), head, label_names=["cat", "dog"])
    >>> sorted(p.name for p in predict(folder, Image.new("RGB", (80, 60))).labels)
    ['cat', 'dog']
    """
    if isinstance(image, list | tuple):
        model = load(encoder)
        return [predict(model, one, config=config, **settings) for one in image]
    to_draw = config is not None or settings.get("out") is not None
    cfg = configure(PredictConfig, config, run=encoder, photo=image, **settings)
    if cfg.top < 1:
        raise UsageError("`top` is a positive number")
    model = load(cfg.run).to(one_device("cpu"))
    name = str(cfg.photo) if isinstance(cfg.photo, str | Path) else ""
    found = PredictResult(name=name, image=(opened := _opened(cfg.photo)), labels=best_labels(model, opened, cfg.top))
    if to_draw:
        run = origin(cfg.run)
        folder = Path(run) / "predictions" if run and Path(run).is_dir() else Path("predictions")
        found.draw(cfg.out or folder / f"{Path(name).stem or 'image'}.png")
    return found


@torch.no_grad()
def best_labels(encoder: Encoder, image: Image.Image, top: int) -> list[Prediction]:
    """The `top` labels of the highest scores, the highest first."""
    logits = encoder.logits(encoder.transform(image)[None].to(encoder.mean.device))[0].float()
    # The synsets of captions do not exclude each other; the classes of a single-label classifier do.
    probability = logits.sigmoid() if encoder.multi_label else logits.softmax(0)
    # Ranked by logit: far from zero several sigmoids are the same number.
    order = logits.topk(min(top, len(logits))).indices.tolist()
    return [Prediction(encoder.labels[i], encoder.names[i], probability[i].item()) for i in order]


def _opened(image: Any) -> Image.Image:
    """Upright and in RGB. Raises UsageError."""
    if not isinstance(image, str | Path):
        return read_image(image)
    path = Path(image)
    if not path.is_file():
        raise UsageError(f"no such picture: {path}")
    try:
        return read_image(path.read_bytes())
    except (UnreadableImageError, OSError) as error:
        raise UsageError(f"{path}: {error}") from None
