"""Patterns, tars, tables, pictures, packing: what is found, and what is refused."""

import io
import json
import os
import tarfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from catlip.data import cache
from catlip.data.crops import decode_part, empty
from catlip.data.files import expand
from catlip.data.images import (
    UnreadableImageError,
    decode_upright,
    is_turned,
    open_image,
    read_image,
    to_rgb,
    upright,
    upright_size,
)
from catlip.data.open import open_dataset
from catlip.data.pack import PackConfig, pack
from catlip.data.shards import split_name
from catlip.data.tars import TarDataset
from catlip.errors import UsageError
from tests.conftest import decode_center, jpeg, write_tar


def test_patterns_expand_braces_and_globs(tmp_path: Path) -> None:
    for name in ("a-000.tar", "a-001.tar", "b-000.tar"):
        (tmp_path / name).touch()
    found = [p.name for p in expand(f"{tmp_path}/{{a,b}}-{{000..000}}.tar")]
    assert found == ["a-000.tar", "b-000.tar"]
    assert [p.name for p in expand(f"{tmp_path}/a-*.tar")] == ["a-000.tar", "a-001.tar"]
    assert [p.name for p in expand(f"{tmp_path}/a-{{000..001}}.tar")] == ["a-000.tar", "a-001.tar"]


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("no-*.tar", "no file matches"),
        ("x.tar", "no such file: x.tar"),
        ("x-{00..02}.tar", "x-00.tar, from the pattern"),
        ("x-{3..1}.tar", "empty"),
    ],
)
def test_patterns_without_files_are_refused(pattern: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        expand(pattern)


def test_names_split_at_the_first_dot_of_the_basename() -> None:
    assert split_name("a.b/img.v2.jpg") == ("a.b/img", "v2.jpg")
    assert split_name("img.jpg") == ("img", "jpg")


def test_tar_samples(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {
        "1.jpg": jpeg(), "1.txt": b"a dog\n\n  a brown dog \n", "2.jpg": jpeg(),
        "2.json": b'{"captions": ["a cat"]}', "3.txt": b"no picture", "4.jpg": b"", "4.cls": b"7\n",
    })  # fmt: skip
    source = open_dataset(str(tar))
    assert len(source) == 3
    assert source.troubles == {"a.tar: 3": "1 samples without a picture are left out"}
    assert list(source.captions()) == [["a dog", "a brown dog"], ["a cat"], []]
    assert source[0].image == jpeg()
    assert source[2].image == b""
    assert source[2].metadata["cls"] == "7"


@pytest.mark.parametrize("end", range(3000, 22_000, 617))
def test_a_tar_that_is_cut_off_gives_its_complete_samples(tmp_path: Path, end: int) -> None:
    members = {f"{i}.{e}": jpeg(seed=i) if e == "jpg" else b"a dog" for i in range(6) for e in ("jpg", "txt")}
    tar = write_tar(tmp_path / "a.tar", members)
    with tarfile.open(tar) as whole:
        ends = {info.name: info.offset_data + info.size for info in whole}
    tar.write_bytes(tar.read_bytes()[:end])
    complete = [str(i) for i in range(6) if ends[f"{i}.txt"] <= end]
    source = open_dataset(str(tar))
    found = list(source.keys())
    assert found[: len(complete)] == complete
    assert len(found) <= len(complete) + 1  # cut between picture and caption, nothing says that there was to be one
    assert all(source[i].image == jpeg(seed=i) for i in range(len(source)))
    if end < max(ends.values()):
        assert "a.tar" in source.troubles
        assert "a.tar" in source.described


def test_not_a_tar(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"hello" * 1000)
    with pytest.raises(UsageError, match="not a readable tar"):
        open_dataset(str(tmp_path / "a.tar"))


def test_table_columns_are_guessed_and_grouped(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    table = tmp_path / "t.tsv"
    table.write_text("File\tprice\tTitle\na.jpg\t3\ta dog\na.jpg\t3\ta brown dog\nb.jpg\t4\ta cat\n")
    source = open_dataset(str(table))
    assert "'File'" in source.described
    assert "'Title'" in source.described
    assert list(source.captions()) == [["a dog", "a brown dog"], ["a cat"]]
    assert source[0].image == jpeg()
    assert source[1].image == b""  # named later, with the other pictures that cannot be read


def test_a_table_without_the_columns_says_which_it_has(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("photo_id,words\n1,dog\n")
    with pytest.raises(UsageError, match=r"photo_id, words.*`image_col`"):
        open_dataset(str(table))
    with pytest.raises(UsageError, match=r"no column 'nope'.*Columns found: photo_id, words"):
        open_dataset(str(table), image_col="nope")
    (tmp_path / "e.csv").write_text("")
    with pytest.raises(UsageError, match="empty"):
        open_dataset(str(tmp_path / "e.csv"))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


RGB = Image.fromarray(np.full((60, 80, 3), (200, 100, 50), np.uint8))


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        (encode(RGB, "JPEG", quality=95), 4),
        (encode(RGB, "JPEG", quality=95, progressive=True), 4),
        (encode(RGB.convert("CMYK"), "JPEG", quality=95), 40),
        (encode(RGB, "PNG"), 0),
        (encode(RGB.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), 8),
        (encode(RGB, "WEBP", quality=95), 6),
        (encode(RGB, "GIF"), 8),
    ],
    ids=["jpeg", "progressive", "cmyk", "png", "palette", "webp", "gif"],
)
def test_kinds_of_pictures(data: bytes, tolerance: int) -> None:
    pixels = decode_center(data, 16)
    assert pixels.shape == (3, 16, 16)
    assert (pixels.int() - torch.tensor([200, 100, 50])[:, None, None]).abs().max() <= tolerance


def test_transparent_parts_become_white_and_16_bit_is_scaled() -> None:
    assert decode_center(encode(Image.new("RGBA", (20, 20), (0, 0, 0, 0)), "PNG"), 8).min() == 255
    grey = Image.fromarray(np.full((20, 20), 65535, np.uint16))
    assert decode_center(encode(grey, "PNG"), 8).min() >= 254


@pytest.mark.parametrize("data", [b"", b"hello", jpeg()[:200], jpeg()[:500], b"\xff\xd8\xff" + b"\0" * 300])
def test_damaged_pictures_are_refused(data: bytes) -> None:
    with pytest.raises(UnreadableImageError):
        decode_center(data, 16)


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    bomb = encode(Image.new("1", (20_000, 20_000)), "PNG")
    with pytest.raises(UnreadableImageError):
        decode_center(bomb, 16)


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_upright(orientation: int, kind: str) -> None:
    """Cameras store pictures as the sensor lay, and say so in EXIF; what is cropped is what a viewer would show."""
    corners = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8))
    data = encode(corners.resize((64, 64), 0), kind, exif=exif(orientation))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")).astype(int)
    pixels = decode_center(data, 64).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(pixels[8::48, 8::48] - upright[8::48, 8::48]).max() < 30


@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_is_made_upright_is_not_turned_again(orientation: int) -> None:
    corners = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [90, 90, 90]]], np.uint8))
    data = encode(corners.resize((64, 48), 0), "JPEG", exif=exif(orientation), quality=100)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    once = upright(open_image(data))
    assert np.array_equal(np.asarray(once), np.asarray(expected))
    assert np.array_equal(np.asarray(upright(once)), np.asarray(expected))


def turned(kind: str, size: tuple[int, int] = (64, 48)) -> bytes:
    """A picture that lies on its side and says so far from its start."""
    plain, tags = encode(Image.new("RGB", size), kind), exif(6).removeprefix(b"Exif\0\0")
    if kind == "JPEG":
        profile = b"\xff\xe2" + (60_000).to_bytes(2, "big") + bytes(59_998)
        tags = b"\xff\xff\xe1" + (len(tags) + 8).to_bytes(2, "big") + b"Exif\0\0" + tags
        return plain[:2] + profile + tags + plain[2:]
    chunk = b"eXIf" + tags  # behind the pixels, as PNG allows
    return plain[:-12] + len(tags).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + plain[-12:]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_all_readers_see_exif_however_far_it_is(kind: str) -> None:
    data, seen = turned(kind), []

    def choose(width: int, height: int) -> Any:
        seen.append((width, height))
        return (0.0, 0.0, float(width), float(height)), empty(height, width)

    decode_part(data, choose)
    pixels, width, height = decode_upright(data)
    assert {upright_size(data), read_image(data).size, (width, height), pixels.shape[1::-1], *seen} == {(48, 64)}
    assert is_turned(data)
    assert not is_turned(encode(RGB, kind))


def greys(image: Image.Image) -> list[int]:
    return np.asarray(to_rgb(image))[0, :, 0].tolist()


def test_deep_greys_are_scaled_alike_whatever_is_in_the_picture() -> None:
    for high in (65535, 20_000):  # one picture's brightest pixel is no other's white
        numbers = np.array([[0, 256, 5000, high]], np.uint16)
        wanted = [0, 1, 19, round(high / 257)]
        assert greys(Image.open(io.BytesIO(encode(Image.fromarray(numbers), "PNG")))) == wanted
        assert greys(Image.open(io.BytesIO(encode(Image.fromarray(numbers.astype(np.int32)), "TIFF")))) == wanted
    clear = encode(Image.fromarray(np.array([[0, 256, 40_000]], np.uint16)), "PNG", transparency=40_000)
    assert greys(Image.open(io.BytesIO(clear))) == [0, 1, 255]
    for numbers, wanted in (
        ([0.0, 0.25, 0.5, 1.0], [0, 64, 128, 255]), ([0.0, 0.25, 0.5, 0.5], [0, 64, 128, 128]),
        ([-0.02, 0.5, 1.0, 1.03], [0, 128, 255, 255]), ([0.0, 10.0, 20.0, 200.0], [0, 10, 20, 200]),
    ):  # fmt: skip
        image = Image.fromarray(np.array([numbers], np.float32))
        assert greys(Image.open(io.BytesIO(encode(image, "TIFF")))) == wanted
    for numbers in ([0.0, 4000.0], [-0.5, 1.0], [0.0, float("nan")], [0.0, float("inf")]):
        with pytest.raises(UnreadableImageError, match="can be read"):
            to_rgb(Image.fromarray(np.array([numbers], np.float32)))
    with pytest.raises(UnreadableImageError, match=r"grey of 0 to 70000; integers of 0\.\.65535"):
        to_rgb(Image.fromarray(np.array([[0, 70_000]], np.int32)))


def test_broken_exif_does_no_harm() -> None:
    broken = b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 40
    assert decode_center(encode(RGB, "JPEG", exif=broken), 16).shape == (3, 16, 16)


def test_large_and_odd_pictures_are_read_or_refused_quickly() -> None:
    began = time.monotonic()
    wide = encode(Image.new("RGB", (30_000, 60), (200, 100, 50)), "JPEG")
    assert decode_center(wide, 32).shape == (3, 32, 32)
    assert decode_center(encode(Image.new("L", (1, 30_000)), "PNG"), 8).shape == (3, 8, 8)
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16", "I", "F", "CMYK"):
        data = encode(Image.new(mode, (40, 30)), "TIFF")
        assert decode_center(data, 8).shape == (3, 8, 8)
    bomb = encode(Image.new("L", (8, 8)), "PNG")
    bomb = bomb[:16] + (30_000).to_bytes(4, "big") * 2 + bomb[24:]  # says that it is large
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n"
    for refused in (bomb, program, b"GIF89a" + b"\xff" * 20, b"<svg/>", b"%PDF-1.4"):
        with pytest.raises(UnreadableImageError):
            decode_center(refused, 8)
    assert time.monotonic() - began < 10


def test_pack_writes_shards_that_read_back(tmp_path: Path) -> None:
    rows = ["file,caption"]
    for i in range(5):
        (tmp_path / f"my picture.{i}.jpg").write_bytes(jpeg(size=(400, 300), seed=i))
        rows.append(f"my picture.{i}.jpg,a dog number {i}")
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    pack(config=PackConfig(data=str(tmp_path / "t.csv"), out=str(tmp_path / "shards"), size=64, per_shard=2))
    assert len(expand(str(tmp_path / "shards" / "{000000..000002}.tar"))) == 3
    index = json.loads((tmp_path / "shards" / "index.json").read_text())
    assert index["samples"] == 5
    indexed = open_dataset(str(tmp_path / "shards" / "*.tar"))
    (tmp_path / "shards" / "index.json").unlink()
    scanned = open_dataset(str(tmp_path / "shards" / "*.tar"))
    assert [indexed[i] for i in range(5)] == [scanned[i] for i in range(5)]
    assert indexed.shards.tolist() == scanned.shards.tolist() == [2, 2, 1]
    source = open_dataset(str(tmp_path / "shards" / "*.tar"))
    assert list(source.captions()) == [[f"a dog number {i}"] for i in range(5)]
    assert min(Image.open(io.BytesIO(source[0].image)).size) == 64
    with pytest.raises(UsageError, match="not empty"):
        pack(config=PackConfig(data=str(tmp_path / "t.csv"), out=str(tmp_path / "shards")))


def test_an_index_of_other_bytes_is_not_believed(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"1.jpg": jpeg(), "1.txt": b"a dog"})
    (tmp_path / "index.json").write_text(json.dumps({"shards": {"a.tar": {"bytes": 1, "offsets": []}}}))
    assert list(TarDataset([tar], "a").keys()) == ["1"]
    (tmp_path / "index.json").write_text('{"train": {"shards": [["a.tar", 1]]}}')  # somebody else's
    assert list(TarDataset([tar], "a").keys()) == ["1"]


def test_a_tar_that_was_rewritten_is_not_read_by_its_old_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "WORTH_KEEPING", -1)  # a wrong index would stay

    def write(folder: Path, captions: list[bytes]) -> Path:
        return write_tar(folder / "a.tar", {f"{i}.{e}": jpeg() if e == "jpg" else captions[i]
                                            for i in range(len(captions)) for e in ("jpg", "txt")})  # fmt: skip

    (tmp_path / "new").mkdir()
    captions = [b"a dog number %d" % i for i in range(100)]
    write(tmp_path, captions)
    pack(config=PackConfig(data=str(tmp_path / "a.tar"), out=str(tmp_path / "s")))
    tar = tmp_path / "s" / "000000.tar"
    packed = open_dataset(str(tar))
    assert packed.fingerprint()[0][:1] == ["000000.tar"]
    assert len(packed.fingerprint()[0]) == 3, "name, bytes, SHA-256"
    before, index = tar.stat(), (tmp_path / "s" / "index.json").stat()
    other = write(tmp_path / "new", [caption[::-1] + b"!" * (i % 7) for i, caption in enumerate(captions)])
    pack(config=PackConfig(data=str(other), out=str(tmp_path / "t")))
    again = (tmp_path / "t" / "000000.tar").read_bytes()
    assert len(again) == before.st_size
    tar.write_bytes(again)
    for written in (index.st_mtime_ns + 1, index.st_mtime_ns - 1):  # after its index.json, or dated back
        os.utime(tar, ns=(written, written))
        source = open_dataset(str(tar))
        assert list(source.captions()) == list(open_dataset(str(other)).captions())
        assert source.troubles == {"000000.tar": "the index.json beside it is another's; not used"}
        assert source.fingerprint() != packed.fingerprint()
    (tmp_path / "s" / "index.json").unlink()
    assert list(open_dataset(str(tar)).captions()) == list(open_dataset(str(other)).captions())


def test_a_copy_whose_dates_are_other_ones_is_the_same_data(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"1.jpg": jpeg(), "1.txt": b"a dog"})
    pack(config=PackConfig(data=str(tmp_path / "a.tar"), out=str(tmp_path / "s")))
    tar = tmp_path / "s" / "000000.tar"
    packed = open_dataset(str(tar))
    os.utime(tar, (2e9, 2e9))
    copied = open_dataset(str(tar))
    assert copied.fingerprint() == packed.fingerprint()
    assert not copied.troubles
