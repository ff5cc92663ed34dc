"""Images with masks: what is read, what is refused, and that a picture and its mask are cut along the same edges."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from catlip.data.dataset import Sample
from catlip.data.loader import Loader
from catlip.data.mask_classes import VOID, MaskClasses, class_of_number, find_classes, pixels_of, read_mask, survey
from catlip.data.mask_sets import open_masks
from catlip.data.maskbatches import MaskBatch, MaskBatches, Window, check_window, random_place
from catlip.data.order import Order
from catlip.data.steps import CurriculumConfig, Steps
from catlip.errors import UsageError
from catlip.evaluation.segmentation import as_png, palette
from tests.conftest import SHARED, write_tar

COLOURS = np.array([[20, 20, 20], [230, 30, 30], [30, 200, 40], [40, 60, 230]], np.uint8)


def png(pixels: np.ndarray | Image.Image) -> bytes:
    buffer = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def scene(seed: int, width: int = 60, height: int = 44) -> np.ndarray:
    """uint8 [h, w]: three rectangles of the classes 1, 2, 3 on class 0."""
    random = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    for c in (1, 2, 3):
        w, h = random.integers(width // 5, width // 2), random.integers(height // 5, height // 2)
        x, y = random.integers(0, width - w), random.integers(0, height - h)
        mask[y : y + h, x : x + w] = c
    return mask


def write_scenes(folder: Path, count: int = 12, name: str = "train", start: int = 0) -> str:
    """A tar of pictures that show each class in its own colour."""
    members: dict[str, bytes] = {}
    for i in range(start, start + count):
        mask = scene(i, 60 + i % 3, 44)
        members[f"{i:04d}.jpg"], members[f"{i:04d}.seg.png"] = png(COLOURS[mask]), png(mask)
    return str(write_tar(folder / f"{name}.tar", members))


def write_folder(folder: Path, layout: str, masks: dict[str, np.ndarray | Image.Image]) -> Path:
    """masks by "split/key"; the pictures are grey."""
    for name, mask in masks.items():
        split, key = name.split("/")
        image, label = {
            "ade": (f"images/{split}/{key}.jpg", f"annotations/{split}/{key}.png"),
            "voc": (f"JPEGImages/{key}.jpg", f"SegmentationClass/{key}.png"),
            "cityscapes": (
                f"leftImg8bit/{split}/bonn/{key}_leftImg8bit.png", f"gtFine/{split}/bonn/{key}_gtFine_labelTrainIds.png"
            ),
        }[layout]  # fmt: skip
        for path in (image, label):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
        size = mask.size if isinstance(mask, Image.Image) else mask.shape[::-1]
        Image.new("RGB", size, (90, 90, 90)).save(folder / image)
        (folder / label).write_bytes(png(mask))
        if layout == "voc":
            lists = folder / "ImageSets" / "Segmentation"
            lists.mkdir(parents=True, exist_ok=True)
            with (lists / f"{split}.txt").open("a") as file:
                file.write(f"{key}\n")
    return folder


def loader(data: str, *, workers: int = 0, size: int = 32, window: Window | None = None, batch: int = 6) -> Loader:
    source = open_masks(data, "train")
    steps = Steps(CurriculumConfig(), budget=60, batch_size=batch, image_size=size, seed=3)
    found = survey(source, range(len(source)))
    return Loader(
        MaskBatches(
            source, Order([(len(source), 1.0)], 3), steps, classes=find_classes(found, [], source.void, data),
            window=window or Window(),
        ), workers,
    )  # fmt: skip


def test_a_tar_gives_pictures_with_masks_and_tells_what_it_left_out(tmp_path: Path) -> None:
    mask = scene(1)
    data = write_tar(tmp_path / "a.tar", {
        "x/one.v1.jpg": png(COLOURS[mask]), "x/one.v1.seg.png": png(mask), "two.png": png(COLOURS[mask]),
        "x/._one.v1.jpg": b"mac", "three.seg.png": png(mask), "one.txt": b"words",
    })  # fmt: skip
    source = open_masks(str(data), "train")
    assert list(source.keys()) == ["x/one.v1"]
    record = source[0]
    assert np.array_equal(read_mask(record), mask)
    assert "a.tar: two: no seg.png beside it" in source.described
    assert source.fingerprint() == open_masks(str(data), "test").fingerprint()


@pytest.mark.parametrize(("layout", "void"), [("ade", (0,)), ("voc", (255,)), ("cityscapes", (255,))])
def test_folders_of_the_published_sets(tmp_path: Path, layout: str, void: tuple[int, ...]) -> None:
    names = ("training", "validation") if layout == "ade" else ("train", "val")
    masks: dict[str, np.ndarray | Image.Image] = {f"{names[0]}/a{i}": scene(i) for i in range(3)}
    masks[f"{names[1]}/b"] = as_png(scene(9), palette(4))
    folder = write_folder(tmp_path, layout, masks)
    train, test = open_masks(str(folder), "train"), open_masks(str(folder), "test")
    assert list(train.keys()) == ["a0", "a1", "a2"]
    assert list(test.keys()) == list(open_masks(f"{folder}:{names[1]}", "train").keys()) == ["b"]
    assert train.void == void
    assert np.array_equal(read_mask(test[0]), scene(9))  # a palette's numbers, not its colours
    with pytest.raises(UsageError, match=r"there are .*(val|train)"):
        open_masks(f"{folder}:trainval", "train")


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "1"])
def test_masks_of_any_depth(mode: str) -> None:
    numbers = np.array([[0, 1], [1, 0]]) if mode == "1" else np.array([[0, 1], [7, 200]])
    kind = {"I;16": np.uint16, "1": bool}.get(mode, np.uint8)
    image = Image.fromarray(numbers.astype(kind))
    if mode == "P":
        image.putpalette(palette(4).flatten().tolist())
    assert image.mode == mode
    found = read_mask(Sample("k", b"", [], png(image)))
    assert found.dtype == np.uint16
    assert found.tolist() == numbers.tolist()


@pytest.mark.parametrize(
    ("mask", "names", "says"),
    [
        (COLOURS[scene(0)], (), r"mask of bad is a picture in colours \(RGB\).*turn each colour"),
        (scene(0, 30, 22), (), "mask of bad has 30 x 22 pixels, its picture 60 x 44"),
        (np.full((44, 60), 9, np.uint8), ("a", "b", "c", "d"), r"mask of bad has the value 9, but the 4 .* 0\.\.3"),
        (np.full((44, 60), 300, np.uint16), (), "301 classes .*e.g. in bad"),
    ],
)
def test_bad_masks_are_told(tmp_path: Path, mask: np.ndarray, names: tuple[str, ...], says: str) -> None:
    good = scene(0)
    data = write_tar(tmp_path / "a.tar", {
        "good.jpg": png(COLOURS[good]), "good.seg.png": png(good), "bad.jpg": png(COLOURS[good]),
        "bad.seg.png": png(mask),
    })  # fmt: skip
    source = open_masks(str(data), "train")
    with pytest.raises(UsageError, match=says):
        find_classes(survey(source, range(2)), list(names), (255,), "--train")


def test_one_class_and_no_class_are_told(tmp_path: Path) -> None:
    def found(values: list[int], void: tuple[int, ...]) -> MaskClasses:
        mask = np.array([values], np.uint8)
        data = write_tar(tmp_path / "a.tar", {"k.png": png(COLOURS[mask * 0]), "k.seg.png": png(mask)})
        return find_classes(survey(open_masks(str(data), "train"), [0]), [], void, "--train")

    with pytest.raises(UsageError, match="if 0 and 255 are two classes, write 0 and 1"):
        found([0, 255], (255,))
    with pytest.raises(UsageError, match="not one pixel is of a class"):
        found([255, 255], (255,))
    with pytest.raises(UsageError, match="`void` 70000"):
        found([0, 1], (70_000,))
    assert found([0, 1, 255, 3], (255,)).names == ("class 0", "class 1", "class 2", "class 3")


def test_what_is_no_set_of_masks_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    captions = write_tar(tmp_path / "b.tar", {"1.jpg": png(COLOURS[scene(0)]), "1.txt": b"a dog"})
    city = tmp_path / "city"
    write_folder(city, "cityscapes", {"train/a": scene(0)})
    next(city.rglob("*TrainIds.png")).unlink()
    for data, says in (
        (tmp_path / "empty", "found none of them"), (tmp_path / "notes.txt", "expected .tar files"),
        (captions, "no picture with a mask"), (tmp_path / "nope", "no such file"), (city, "csCreateTrainIdLabelImgs"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=says):
            open_masks(str(data), "train")


def test_a_mask_fits_the_picture_once_it_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    buffer = io.BytesIO()
    Image.new("RGB", (60, 44)).save(buffer, "JPEG", exif=exif)
    for name, shape in (("upright", (60, 44)), ("lying", (44, 60))):
        mask = np.arange(shape[0] * shape[1]).reshape(shape).astype(np.uint8) % 3
        data = write_tar(tmp_path / f"{name}.tar", {"k.jpg": buffer.getvalue(), "k.seg.png": png(mask)})
        found = survey(open_masks(str(data), "train"), [0])
        assert bool(found.problem) == (name == "lying")
        if name == "upright":
            assert len(next(loader(str(data)).batches_from(0))) == 6


def test_void_moves_the_classes(tmp_path: Path) -> None:
    zero_void = MaskClasses(("wall", "sky"), (0, 7))
    assert class_of_number(zero_void)[[0, 1, 2, 3, 7]].tolist() == [VOID, 0, 1, -1, VOID]
    assert zero_void.of(np.array([[2, 0]], np.uint16), "k").tolist() == [[1, VOID]]
    with pytest.raises(UsageError, match=r"mask of k has the value 3, but the 2 classes are 1\.\.2 and void is 0, 7"):
        zero_void.of(np.array([[3]], np.uint16), "k")
    source = open_masks(write_scenes(tmp_path), "train")
    found = survey(source, range(12))
    counted = np.bincount(np.concatenate([scene(i, 60 + i % 3).ravel() for i in range(12)]), minlength=4)
    assert pixels_of(found, find_classes(found, [], (255,), "")).tolist() == counted.tolist()
    assert pixels_of(found, MaskClasses(("a", "b", "c"), (0,))).tolist() == counted[1:].tolist()
    first, second = survey(source, range(5)), survey(source, range(5, 12))
    first.add(second)
    assert np.array_equal(first.pixels, found.pixels)
    assert first.met == 12


@pytest.mark.parametrize("axis", [0, 1])
def test_the_picture_and_its_mask_are_cut_alike(tmp_path: Path, axis: int) -> None:
    """Images whose red says where a pixel stood, and masks that say it too: after all that loader and task do to
    both, they must agree at every pixel, to half a pixel of what was shown."""
    members: dict[str, bytes] = {}
    for i in range(12):
        place = np.indices((44 + i, 60))[axis].astype(np.uint8)
        picture = np.stack([4 * place, place * 0, place * 0], -1)
        members[f"{i}.png"], members[f"{i}.seg.png"] = png(picture), png(place)
    stream = loader(str(write_tar(tmp_path / "a.tar", members)), size=48).batches_from(0)
    flips, padded, whole = 0, 0, 0
    for batch in stream:
        assert isinstance(batch, MaskBatch)
        image = torch.where(batch.flip[:, None, None, None], batch.image.flip(3), batch.image)  # as the task does
        flips += int(batch.flip.sum())
        for pixels, mask in zip(image.numpy().astype(float), batch.mask.numpy(), strict=True):
            inside = mask != VOID
            assert (pixels[:, ~inside] == 128).all()  # grey where it is void, and only there
            assert (pixels[1:, inside] == 0).all()
            padded, whole = padded + bool((~inside).any()), whole + bool(inside.all())
            off = pixels[0][inside] / 4 - mask[inside]
            step = np.diff(mask.astype(int), axis=axis)[inside.take(range(47), axis) & inside.take(range(1, 48), axis)]
            shown = max(1.0, abs(step.mean())) if len(step) else 2.0  # pixels of the original under one of these
            assert np.abs(off).max() <= 0.5 * shown + 0.2, (np.abs(off).max(), shown)
    assert 10 < flips < 50
    assert min(padded, whole) > 5


@given(
    st.integers(1, 400), st.integers(1, 400), st.integers(8, 96), st.sampled_from([0, 64]),
    st.lists(st.floats(0, 0.999), min_size=3, max_size=3),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_a_window_lies_in_the_picture_and_in_the_square(width: int, height: int, size: int, short: int, draws) -> None:
    place = random_place(width, height, size, Window(short_side=short), draws)
    for axis, length in ((0, width), (1, height)):
        low, high = place.of[axis], place.of[axis + 2]
        first, last = place.to[axis], place.to[axis + 2]
        assert 0 <= low < high <= length
        assert 0 <= first < last <= size
        factor = (0.5 + 1.5 * draws[0]) * (short / min(width, height) if short else 1)
        side = max(1, round(size / factor))
        assert high - low == min(length, side)
        assert abs((last - first) - (high - low) * size / side) <= 1
        if length >= side:
            assert (first, last) == (0, size)


def test_batches_are_the_same_from_workers_and_in_slices(tmp_path: Path) -> None:
    data = write_scenes(tmp_path)
    alone, theirs = (list(loader(data, workers=n).batches_from(4)) for n in (0, 2))
    assert len(alone) == 6
    for a, b in zip(alone, theirs, strict=True):
        assert isinstance(a, MaskBatch)
        assert isinstance(b, MaskBatch)
        assert torch.equal(a.mask, b.mask)
        assert torch.equal(a.image, b.image)
        parts = a.split(4)
        assert [len(part) for part in parts] == [4, 2]
        assert torch.equal(torch.cat([part.mask for part in parts if isinstance(part, MaskBatch)]), a.mask)


def test_one_picture_is_a_set(tmp_path: Path) -> None:
    batch = next(loader(write_scenes(tmp_path, count=1)).batches_from(0))
    assert isinstance(batch, MaskBatch)
    assert len(batch) == 6
    assert len({tuple(mask.flatten().tolist()) for mask in batch.mask}) > 3  # the same picture, other windows


def test_masks_of_one_channel_whatever_their_mode() -> None:
    numbers = scene(0)
    grey = Image.fromarray(numbers)
    opaque, clear = Image.new("L", grey.size, 255), Image.new("L", grey.size, 254)

    def read(image: Image.Image) -> np.ndarray:
        return read_mask(Sample("x", b"", [], png(image)))

    for mode, bands in (("LA", [grey, opaque]), ("RGB", [grey] * 3), ("RGBA", [grey, grey, grey, opaque])):
        assert (read(Image.merge(mode, bands)) == numbers).all()
    for mode, bands in (("LA", [grey, clear]), ("RGBA", [grey, grey, grey, clear])):
        with pytest.raises(UsageError, match=rf"mask of x has transparent parts \({mode}\)"):
            read(Image.merge(mode, bands))
    with pytest.raises(UsageError, match=r"mask of x is a picture in colours \(RGBA\)"):
        read(Image.merge("RGBA", [grey, opaque, grey, opaque]))


@pytest.mark.parametrize("void", [(255,), (7,)])
def test_masks_of_0_and_255_are_told_what_to_write(void: tuple[int, ...], tmp_path: Path) -> None:
    mask = np.where(scene(0) > 0, 255, 0).astype(np.uint8)
    members = {"1.png": png(COLOURS[scene(0)]), "1.seg.png": png(mask)}
    found = survey(open_masks(str(write_tar(tmp_path / "a.tar", members)), "train"), range(1))
    with pytest.raises(UsageError, match=r"if 0 and 255 are two classes, write 0 and 1$"):
        find_classes(found, [], void, "--train")


def test_damaged_pictures_are_named_and_too_many_end_the_matter(tmp_path: Path) -> None:
    members = {f"{i}.{kind}": png(data) for i in range(3) for kind, data in
               (("png", COLOURS[scene(i)]), ("seg.png", scene(i)))}  # fmt: skip
    members["1.seg.png"] = members["1.seg.png"][:60]
    source = open_masks(str(write_tar(tmp_path / "a.tar", members)), "train")
    found = survey(source, range(3))
    assert list(found.unreadable) == ["1"]
    with pytest.raises(UsageError, match="1 of 3 pictures cannot be read"):
        find_classes(found, [], (255,), "--train")


@pytest.mark.parametrize("change", [{"scale": (2.0, 0.5)}, {"scale": (0.0, 1.0)}, {"short_side": -1}])
def test_windows_that_make_no_sense(change: dict) -> None:
    with pytest.raises(UsageError, match="`scale`"):
        check_window(Window(**change))


@pytest.mark.skipif(not (SHARED / "camvid").is_dir(), reason="shared data is absent")
def test_camvid() -> None:
    source = open_masks(str(SHARED / "camvid" / "val-000000.tar"), "test")
    found = survey(source, range(len(source)))
    classes = find_classes(found, [], (11,), "--test")
    assert (len(source), len(classes)) == (101, 11)
    assert found.pixels.sum() == 101 * 341 * 256
