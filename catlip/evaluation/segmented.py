"""A trained segmentation model in use: what it says of a picture, and its masks as files."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from catlip.data.images import decode_upright, to_rgb
from catlip.data.masklabels import Classes, as_png, palette
from catlip.evaluation.windows import segment
from catlip.models.segmentation import SegmentationCard, Segmenter, restore_segmenter
from catlip.training.distributed import pick_device


class Trained:
    """A trained model: pictures of any size in, class numbers out."""

    def __init__(self, model: Segmenter, card: SegmentationCard) -> None:
        self.model, self.card = model, card
        self.names = card.names
        self.classes = Classes(tuple(card.names), card.void)

    def __call__(self, picture: np.ndarray | Image.Image | str | Path) -> np.ndarray:
        """uint8 [h, w]: the class of each pixel. picture: of Pillow, a file, or uint8 [h, w, 3].

        Raises UnreadableImageError for a file that is no picture.
        """
        if isinstance(picture, str | Path):
            picture = decode_upright(Path(picture).read_bytes())[0]
        pixels = np.asarray(to_rgb(picture)) if isinstance(picture, Image.Image) else picture
        return segment(self.model, pixels, window=self.card.image_size, short_side=self.card.short_side)


def load_segmenter(out: str | Path, device: str = "auto") -> Trained:
    """catlip.load_segmenter("runs/seg")("photo.jpg") -> uint8 [h, w]; the classes' names are in `.names`.

    out: the folder that `catlip segment` wrote. Raises UsageError for another one.
    """
    model, card = restore_segmenter(out)
    return Trained(model.to(pick_device(device)), card)


def save_mask(path: Path, predicted: np.ndarray, classes: Classes) -> None:
    """A prediction as PNG, with the numbers that the masks of the data have, and colours for people."""
    colours = np.roll(palette(len(classes)), classes.first, axis=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    as_png(predicted + np.uint8(classes.first), colours).save(path)


def file_names(keys: list[str]) -> list[str]:
    """A name of a file in one folder for each key, whatever is in it; like the key as far as may be."""
    plain = [re.sub(r"[^\w.-]+", "_", key).lstrip(".")[:150] for key in keys]
    times = Counter(name.lower() for name in plain)
    return [name if times[name.lower()] == 1 and name else f"{name}-{i}" for i, name in enumerate(plain)]
