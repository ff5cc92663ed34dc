"""One encoder, one preprocessing: timm's, of the encoder's own configuration, whichever verb shows the picture."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

import catlip
from catlip.data.images import read_image
from catlip.data.open import open_dataset
from catlip.evaluation.classification import evaluate
from catlip.evaluation.features import caption_features, features
from catlip.export.embed import embed
from catlip.models.encoder import Encoder
from tests.conftest import COLOURS, jpeg, write_tar

VIEWS: list[dict[str, Any]] = [
    {}, {"crop_pct": 0.9}, {"crop_pct": 0.875, "interpolation": "bicubic"}, {"crop_pct": 64 / 67},
    {"crop_mode": "squash", "crop_pct": 0.9}, {"crop_mode": "border", "crop_pct": 0.95}, {"crop_pct": None},
]  # fmt: skip


def make(folder: Path, size: int = 64, **view: Any) -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder.create("test_resnet", image_size=size)
    encoder.backbone.pretrained_cfg |= view
    encoder.save(folder / "encoder", nn.Linear(encoder.width, 2), label_names=["apple", "lake"])
    return catlip.load(folder)


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_plain_timm_sees_the_same_pixels(view: dict[str, Any], tmp_path: Path) -> None:
    encoder = make(tmp_path, **view)
    model: Any = timm.create_model(f"local-dir:{tmp_path / 'encoder'}")
    theirs: Any = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    for width, height in ((64, 64), (150, 97), (31, 203), (71, 72), (500, 375)):
        noise = np.random.default_rng(width).integers(0, 255, (height, width, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
        wanted = theirs(Image.open(buffer).convert("RGB"))
        torch.testing.assert_close(encoder.transform(Image.open(buffer)), wanted)
        pixels = encoder.pixels(read_image(buffer.getvalue()))
        assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 64, 64))
        torch.testing.assert_close(encoder.normalize(pixels), wanted)


def test_the_resize_before_the_crop_is_rounded_down(tmp_path: Path) -> None:
    """224 px at 0.9: timm resizes to 248, not to 249. The brightness of a ramp tells where the crop begins."""
    encoder = make(tmp_path, size=224, crop_pct=0.9)
    ramp = np.broadcast_to(np.arange(248, dtype=np.uint8)[None, :, None], (248, 248, 3))
    assert encoder.pixels(Image.fromarray(ramp))[0, 0].tolist() == list(range(12, 236))


def test_what_catlip_trains_sees_the_whole_central_square(tmp_path: Path) -> None:
    view = make(tmp_path).view
    assert (view["crop_pct"], view["crop_mode"], view["interpolation"]) == (1.0, "center", "bilinear")


class Witness(nn.Module):
    """Takes the place of a `ClassObjective`, and remembers what it is shown."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder, self.shown = encoder, []

    def logits(self, pixels: Tensor) -> Tensor:
        self.shown.append(pixels)
        return torch.zeros(len(pixels), 2)


def test_all_verbs_show_the_same_picture(tmp_path: Path) -> None:
    encoder, device = make(tmp_path, crop_pct=0.7, crop_mode="squash"), torch.device("cpu")
    data = {f"{i}": jpeg(colour, (90, 61), i) for i, colour in enumerate(list(COLOURS.values())[:2])}
    members = {f"{key}.{end}": value for key, image in data.items()
               for end, value in (("jpg", image), ("cls", key.encode()), ("txt", b"a lake"))}  # fmt: skip
    tar = str(write_tar(tmp_path / "set.tar", members))
    pixels = torch.stack([encoder.pixels(read_image(image)) for image in data.values()])
    with torch.no_grad():
        wanted = encoder.pooled(encoder.normalize(pixels))
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(features(encoder, open_dataset(tar, target="classes"), device)[0], wanted, **close)
    torch.testing.assert_close(caption_features(encoder, open_dataset(tar), device).pooled, wanted, **close)
    table = pq.read_table(embed(tmp_path, tar, tmp_path / "emb.parquet", device="cpu").out)
    torch.testing.assert_close(torch.tensor(table["embedding"].to_pylist()), wanted, **close)
    assert (table.schema.metadata[b"crop_pct"], table.schema.metadata[b"crop_mode"]) == (b"0.7", b"squash")
    witness = Witness(encoder)
    evaluate(witness, open_dataset(tar, target="classes"), device)
    assert torch.equal(torch.cat(witness.shown), pixels)
