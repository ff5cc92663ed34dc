"""Decoding and cropping: against Pillow, a function of its numbers, for every kind of JPEG."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from catlip.data.crops import DRAWS, CropConfig, decode_crop, empty, random_box
from tests.conftest import decode_center, jpeg


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    rough = np.random.default_rng(seed).integers(0, 255, (3, 3, 3), np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)


def crop_of(data: bytes, size: int, crop: CropConfig, draws: np.ndarray) -> np.ndarray:
    out = empty(size)
    decode_crop(data, crop, draws.tolist(), out)
    return out.permute(1, 2, 0).numpy()


@given(
    width=st.integers(64, 400), height=st.integers(64, 400), size=st.sampled_from([48, 64]), seed=st.integers(0, 10**6)
)
@settings(max_examples=60, deadline=None)
def test_a_crop_is_what_pillow_gives(width: int, height: int, size: int, seed: int) -> None:
    """Decode in full, cut the box, resize: the naive way, to a few grey levels."""
    data = encode(smooth(width, height, seed), "JPEG", quality=95)
    draws = np.random.default_rng(seed).random(DRAWS)
    found = crop_of(data, size, CropConfig(), draws)
    left, top, right, bottom = random_box(width, height, CropConfig(), draws[3:].tolist())
    x0, y0 = round(left), round(top)
    box = (x0, y0, max(x0 + 1, round(right)), max(y0 + 1, round(bottom)))
    naive = Image.open(io.BytesIO(data)).convert("RGB").crop(box).resize((size, size), Image.Resampling.BILINEAR)
    difference = np.abs(found.astype(int) - np.asarray(naive).astype(int))
    assert difference.mean() < 5.0


@given(width=st.integers(1, 5000), height=st.integers(1, 5000), seed=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_boxes_stay_inside(width: int, height: int, seed: int) -> None:
    draws = np.random.default_rng(seed).random(4 * 10).tolist()
    left, top, right, bottom = random_box(width, height, CropConfig(), draws)
    assert 0 <= left < right <= width + 1e-6
    assert 0 <= top < bottom <= height + 1e-6


def test_crops_are_a_function_of_their_numbers() -> None:
    data = encode(smooth(96, 64), "PNG")
    draws = np.random.default_rng(1).random((2, DRAWS))
    for crop in (CropConfig(), CropConfig(blur=1.0)):
        one, same, other = (crop_of(data, 16, crop, d) for d in (draws[0], draws[0], draws[1]))
        assert (one == same).all()
        assert (one != other).any()
    assert (crop_of(data, 16, CropConfig(), draws[0]) != crop_of(data, 16, CropConfig(blur=1.0), draws[0])).any()


def test_area_and_shape_are_distributed_as_asked() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(300, 300, CropConfig(), rng.random(40).tolist()) for _ in range(4000)])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 90_000
    ratio = (boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1])
    assert 0.08 <= area.min() < 0.1
    assert 0.95 < area.max() <= 1.0 + 1e-9
    assert ratio.min() >= 0.75 - 1e-6
    assert ratio.max() <= 4 / 3 + 1e-6
    assert 0.45 < area.mean() < 0.54


@pytest.mark.parametrize("size", [(3, 400), (400, 3), (1, 1)])
def test_thin_pictures(size: tuple[int, int]) -> None:
    for seed in range(20):
        assert crop_of(jpeg(size=size), 16, CropConfig(), np.random.default_rng(seed).random(DRAWS)).shape == (
            16,
            16,
            3,
        )


def test_scaled_decoding_changes_little() -> None:
    """JPEGs are decoded at a fraction of their size where the crop allows; the result must stay the same picture."""
    picture = smooth(1024, 1024)
    scaled = decode_center(encode(picture, "JPEG", quality=95), 32).int()
    full = decode_center(encode(picture, "PNG"), 32).int()
    assert (scaled - full).abs().float().mean() < 3


def test_rotated_pictures_are_seen_upright() -> None:
    picture = smooth(120, 80)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    turned = decode_center(encode(picture.rotate(90, expand=True), "JPEG", quality=95, exif=exif), 32).int()
    upright = decode_center(encode(picture, "JPEG", quality=95), 32).int()
    assert (turned - upright).abs().float().mean() < 3
    plain = Image.Exif()
    plain[0x0112] = 1
    same = decode_center(encode(picture, "JPEG", quality=95, exif=plain), 32).int()
    assert (same - upright).abs().float().mean() < 3


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 2}, {"subsampling": 0}, {"quality": 30}])
def test_every_kind_of_jpeg(options: dict) -> None:
    picture = smooth(200, 150)
    found = decode_center(encode(picture, "JPEG", **{"quality": 95, **options}), 64).int()
    wanted = decode_center(encode(picture, "PNG"), 64).int()
    assert (found - wanted).abs().float().mean() < 6
    grey = decode_center(encode(picture.convert("L"), "JPEG", quality=95), 64)
    assert torch.equal(grey[0], grey[1])
    assert (
        decode_center(encode(picture.convert("CMYK"), "JPEG", quality=95), 64).int() - wanted
    ).abs().float().mean() < 8
