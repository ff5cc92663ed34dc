"""COCO files against pycocotools and cases by hand; boxes and masks where the picture shows them."""

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as reference
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from catlip.data.boxes import BoxBatch, BoxBatches, decode_placed, on_canvas, place, unpacked
from catlip.data.coco import Instances, picture_source, read_instances
from catlip.data.crops import DRAWS, empty
from catlip.data.images import UnreadableImageError
from catlip.data.objects import RunLengths, bitmap, encoded
from catlip.data.open import open_dataset
from catlip.data.order import Order
from catlip.data.steps import CurriculumConfig, Steps
from catlip.errors import UsageError
from catlip.evaluation.detection import average_precision
from tests.conftest import SHARED, jpeg, write_tar

COCO128 = SHARED / "coco128"
needs_coco128 = pytest.mark.skipif(not COCO128.is_dir(), reason="no shared data")


def annotation(
    image: Any = 7, category: Any = 3, box: tuple[float, ...] = (2, 3, 10, 8), **more: Any
) -> dict[str, Any]:
    return {"id": 0, "image_id": image, "category_id": category, "bbox": list(box), **more}


def table(*annotations: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Two pictures of 48 x 40 pixels and categories with a gap between their ids."""
    images = [{"id": i, "file_name": f"{name}.jpg", "width": 48, "height": 40} for i, name in ((7, "a"), (9, "b"))]
    categories = [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 90, "name": "yak"}]
    return {"images": images, "annotations": list(annotations), "categories": categories, **more}


def write(folder: Path, content: Any) -> Path:
    path = folder / "boxes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_what_a_file_says(tmp_path: Path) -> None:
    square = np.zeros((40, 48), np.uint8)
    square[5:9, 6:10] = 1
    whole = {"size": [40, 48], "counts": [48 * 40]}
    found = read_instances(write(tmp_path, table(
        annotation(box=(-5, 3, 15, 100), segmentation=[[0, 3, 10, 3, 10, 40, 0, 40]], area=370),
        annotation(category=90, box=(6, 5, 4, 4), segmentation=encoded(square)),
        annotation(box=(0, 0, 48, 40), segmentation=whole, iscrowd=1),
        annotation(box=(5, 5, 0, 3)), annotation(box=(50, 5, 4, 3)),
    )))  # fmt: skip
    assert found.names == ["cat", "dog", "yak"]
    assert found.dropped == 2
    assert list(found.pictures) == ["a.jpg", "b.jpg"]
    here = found.pictures["a.jpg"]
    assert here.boxes.tolist() == [[0, 3, 10, 40], [6, 5, 10, 9], [0, 0, 48, 40]]
    assert here.classes.tolist() == [1, 2, 1]
    assert here.crowd.tolist() == [False, False, True]
    assert here.areas.tolist() == [370, 16, 1920]
    assert here.masks[0] is not None
    assert bitmap(here.masks[0], 48, 40).sum() == 370
    assert here.masks[1] is not None
    assert (bitmap(here.masks[1], 48, 40) == square).all()
    assert len(found.pictures["b.jpg"]) == 0
    assert found.described == (
        "2 boxes of 3 classes in 2 pictures (1 pictures without boxes, 1 crowds, 1 classes without a box, 2 boxes "
        "without an area left out)"
    )


@pytest.mark.parametrize(("content", "says"), [
    ("{", "is no COCO file"), ("[]", "is no COCO file"), ({"images": []}, "is no COCO file"),
    (table(annotation(image=8)), "1 of 1 annotations have a image_id that the file does not list, e.g. 8"),
    (table(annotation(category=2)), "category_id that the file does not list, e.g. 2"),
    (table(annotation(box=(1, 2, 3))), "is no COCO file"),
    (table(annotation(box=(1, 2, float("nan"), 3))), "is no COCO file"),
    (table(annotation(segmentation={"size": [48, 40], "counts": [1920]})), r"a.jpg has a mask of \[48, 40\]"),
    (table(annotation(segmentation=[[1, 2, 3, 4, 5, 6, 7]])), "a polygon is a flat list"),
    (table(annotation(segmentation=[[0, 0, 48, 40] * 120])), "a hundred times the picture's"),
    (table(annotation(segmentation="x" * 9)), "is no COCO file"),
    (table(categories=[{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}]), "two categories are called 'cat'"),
    (table(images=[{"id": i, "file_name": "v/x.jpg", "width": 4, "height": 4} for i in (1, 2)]), "two pictures"),
    (table(images=[{"id": 1, "file_name": "x.jpg", "width": 0, "height": 4}]), "is no COCO file"),
    (table(images=[{"id": 1, "file_name": "x.jpg", "width": 10**5, "height": 10**5}]), "is no COCO file"),
])  # fmt: skip
def test_mistakes_in_files(content: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        read_instances(write(tmp_path, content))


def without(entry: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in names}


@pytest.mark.parametrize(("content", "says"), [
    (table(annotation(), without(annotation() | {"id": 5}, "bbox")), r"annotation 5 of a\.jpg has no bbox"),
    (table(annotation() | {"id": 5, "bbox": None}), r"annotation 5 of a\.jpg has no bbox"),
    (table(annotation() | {"id": 5, "bbox": [1, 2, None, 3]}), r"annotation 5 of a\.jpg has the bbox \[1, 2, None, 3"),
    (table(annotation() | {"id": 5, "bbox": [1, 2, 3]}), r"of a\.jpg has the bbox .* left, top, width and height"),
    (table(without(annotation() | {"id": 5}, "image_id")), "annotation 5 has no image_id"),
    (table(without(annotation() | {"id": 5}, "category_id")), "annotation 5 has no category_id"),
    (table(images=[{"id": 7, "file_name": "a.jpg", "height": 4}]), r"a\.jpg has no width and height"),
    (table(images=[{"id": 7, "file_name": "a.jpg", "height": 4, "width": None}]), r"a\.jpg has no width and height"),
])  # fmt: skip
def test_the_annotation_that_is_wrong_is_named(content: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says) as error:
        read_instances(write(tmp_path, content))
    assert "Error" not in str(error.value)


def test_a_file_that_was_cut_is_read_and_says_what_is_left_out(tmp_path: Path) -> None:
    """The same for boxes and for labels; where the list was renumbered, the rest cannot be trusted."""
    entries = [annotation(), annotation(category=2), annotation(category=90, image=9), annotation(image=8)]
    path = write(tmp_path, table(*entries))
    found = read_instances(path)
    assert [found.pictures[name].classes.tolist() for name in ("a.jpg", "b.jpg")] == [[1], [2]]
    notes = [
        "1 of 4 annotations have a image_id that the file does not list, e.g. 8: left out",
        "1 of 3 annotations have a category_id that the file does not list, e.g. 2: left out",
    ]
    assert found.notes == notes
    assert all(note in found.described for note in notes)
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(jpeg())
    labelled = open_dataset(str(path), target="classes")
    assert labelled.labels.tolist() == [1, 2]
    assert labelled.troubles == {"boxes.json": "; ".join(notes)}
    assert notes[0] in labelled.described
    renumbered = [{"id": i, "name": name} for i, name in enumerate(("cat", "dog", "yak"))]
    path = write(tmp_path, table(annotation(category=2), annotation(category=90), categories=renumbered))
    for read in (read_instances, partial(open_dataset, target="classes")):
        with pytest.raises(UsageError, match=r"1 of 2 annotations have a category_id .* may have been renumbered"):
            read(str(path))


def test_boxes_that_are_corners_and_files_of_crowds_are_told(tmp_path: Path) -> None:
    corners = [annotation(box=(10, 12, 30, 39)), annotation(box=(2, 3, 12, 11)), annotation(box=(20, 5, 47, 30))]
    told = read_instances(write(tmp_path, table(*corners))).described
    assert "2 boxes reach beyond their picture and are clipped: all look like left, top, right, bottom" in told
    beside = read_instances(write(tmp_path, table(*corners, annotation(box=(30, 3, 12, 11))))).described
    assert "left, top" not in beside
    crowds = read_instances(write(tmp_path, table(annotation(box=(0, 0, 48, 40), iscrowd=1))))
    with pytest.raises(UsageError, match=r"--boxes .*boxes\.json holds no boxes: 0 boxes .*1 crowds"):
        crowds.check("--boxes")


def test_an_area_that_the_file_lacks_is_the_masks(tmp_path: Path) -> None:
    square = np.zeros((40, 48), np.uint8)
    square[5:9, 6:10] = 1
    triangles = [[0, 0, 8, 0, 0, 6], [20, 20, 24, 20, 20, 24]]
    found = read_instances(write(tmp_path, table(
        annotation(segmentation=triangles), annotation(segmentation=encoded(square)), annotation(),
        annotation(segmentation={"size": [40, 48], "counts": [48 * 40 - 7, 7]}),
        annotation(area=5, segmentation=triangles),
    )))  # fmt: skip
    assert found.pictures["a.jpg"].areas.tolist() == [32, 16, 80, 7, 5]


def test_pictures_are_found_by_their_whole_names(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"v{i}/1.jpg", "width": 48, "height": 40} for i in (7, 9)]
    instances = read_instances(write(tmp_path, table(annotation(), images=images)))
    data = {f"v{i}/1.jpg": jpeg(seed=i) for i in (9, 7)}
    for name, image in data.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        (tmp_path / "photos" / name).write_bytes(image)
    for where in (tmp_path / "photos", write_tar(tmp_path / "x.tar", data)):
        source = picture_source(instances, str(where))
        assert [(r.key, r.image) for r in map(source.__getitem__, range(2))] == [
            (k, data[k]) for k in ("v7/1.jpg", "v9/1.jpg")
        ]
    for where in (tmp_path / "photos" / "v7", write_tar(tmp_path / "y.tar", {"1.jpg": jpeg()})):
        with pytest.raises(UsageError, match=r"'v7/1\.jpg' and 'v9/1\.jpg' would both be '1\.jpg'"):
            picture_source(instances, str(where))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
def test_run_lengths_as_pycocotools_writes_them(seed: int, height: int, width: int, share: float) -> None:
    pixels = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    theirs = reference.encode(np.asfortranarray(pixels))["counts"].decode()
    assert encoded(pixels)["counts"] == theirs
    assert (bitmap(RunLengths(theirs, height, width), width, height) == pixels).all()
    with pytest.raises(ValueError, match="run lengths"):
        bitmap(RunLengths(theirs, height + 1, width), width, height + 1)


@pytest.mark.parametrize("counts", ["\x01", "zzzz", "o" * 40, "PPPPPPPPPPP1", np.array([5, -3, 10])])
def test_damaged_run_lengths(counts: str | np.ndarray) -> None:
    with pytest.raises(ValueError, match="run lengths"):
        bitmap(RunLengths(counts, 3, 4), 4, 3)


COCO_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def coco128(folder: Path) -> Path:
    """The instances of the training half; the list of categories in the shared file has lost its gaps."""
    content = json.loads((COCO128 / "annotations" / "instances_train2017.json").read_text())
    for category, number in zip(content["categories"], COCO_IDS, strict=True):
        category["id"] = number
    content["annotations"][5]["iscrowd"] = content["annotations"][40]["iscrowd"] = 1
    return write(folder, content)


@needs_coco128
@pytest.mark.parametrize("part", ["train", "val"])
def test_cocos_own_list_without_the_gaps_of_its_ids_means_what_its_twin_says(part: str) -> None:
    """One file has the annotations' own ids beside a list that counts from 0 to 79, the other has both renumbered."""
    gaps, twin = (
        read_instances(COCO128 / "annotations" / f"{name}_{part}2017.json") for name in ("instances", "detection")
    )
    assert "read with them" in gaps.notes[0]
    both = [file for file in gaps.pictures if file in twin.pictures]
    assert len(both) > 90
    for file in both:
        found, wanted = ({one.names[c] for c in one.pictures[file].classes} for one in (gaps, twin))
        assert found == wanted


@pytest.mark.parametrize("change", ["names", "ids"])
def test_another_list_of_categories_that_does_not_fit_is_refused(tmp_path: Path, change: str) -> None:
    names = ["person", *(f"c{i}" for i in range(10)), "stop sign", *(f"d{i}" for i in range(67)), "toothbrush"]
    if change == "names":
        names[11] = "street sign"
    beyond = 90 if change == "names" else 83  # 83 is one of COCO's gaps
    (tmp_path / "boxes.json").write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}],
                "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
                "annotations": [
                    {"id": i, "image_id": 1, "category_id": c, "bbox": [0, 0, 5, 5]} for i, c in enumerate([1, beyond])
                ],
            }
        )
    )
    with pytest.raises(UsageError, match="category_id that the file does not list"):
        read_instances(tmp_path / "boxes.json")


@needs_coco128
def test_average_precision_is_that_of_pycocotools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, random = coco128(tmp_path), np.random.default_rng(0)
    theirs, ours = COCO(str(path)), read_instances(path)
    results = []
    for entry in theirs.anns.values():
        image = theirs.imgs[entry["image_id"]]
        mine = ours.pictures[image["file_name"]]
        pixels = theirs.annToMask(entry)
        where = [i for i, box in enumerate(mine.boxes) if np.allclose(box[:2], entry["bbox"][:2], atol=1e-3)]
        assert any((bitmap(mine.masks[i], mine.width, mine.height) == pixels).all() for i in where)  # type: ignore[arg-type]
        if random.random() < 0.2:
            continue
        shift = random.normal(0, 2, 4)
        x, y, w, h = np.array(entry["bbox"]) + shift
        category = entry["category_id"] if random.random() < 0.9 else int(random.choice(COCO_IDS))
        results.append({
            "image_id": entry["image_id"], "category_id": category, "bbox": [x, y, max(w, 1), max(h, 1)],
            "score": float(random.random()), "segmentation": encoded(np.roll(pixels, int(random.integers(-3, 4)), 1)),
        })  # fmt: skip
    for kind in ("bbox", "segm"):
        rounds = COCOeval(theirs, theirs.loadRes([dict(one) for one in results]), kind)
        rounds.evaluate()
        rounds.accumulate()
        rounds.summarize()
        found = average_precision(ours, [dict(one) for one in results], kind)  # type: ignore[arg-type]
        assert 10 < found["AP"] < 90
        np.testing.assert_allclose(list(found.values()), 100 * rounds.stats[:6], atol=1e-9)
    capsys.readouterr()


def found_at(box: tuple[float, ...], score: float = 0.9, category: Any = 3, image: Any = 7) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": list(box), "score": score}


def test_average_precision_by_hand(tmp_path: Path) -> None:
    truth = read_instances(write(tmp_path, table(
        annotation(box=(0, 0, 10, 10)), annotation(box=(20, 20, 10, 10)), annotation(category=1, box=(0, 0, 40, 36)),
        annotation(image=9, box=(0, 0, 48, 40), iscrowd=1),
    )))  # fmt: skip
    assert average_precision(truth, [], "bbox")["AP"] == 0
    everything = [found_at((0, 0, 10, 10)), found_at((20, 20, 10, 10)), found_at((0, 0, 40, 36), category=1)]
    best = average_precision(truth, everything, "bbox")
    assert best == {"AP": 100, "AP50": 100, "AP75": 100, "small": 100, "medium": 100, "large": None}
    # A detection inside a crowd is neither right nor wrong; one in an empty place, and sure of itself, is wrong.
    inside = [*everything, found_at((3, 3, 9, 9), 0.99, image=9)]
    assert average_precision(truth, inside, "bbox") == best
    outside = [*everything, found_at((3, 3, 9, 9), 0.99, category=1, image=9)]
    assert average_precision(truth, outside, "bbox")["AP"] == pytest.approx(75, abs=1)
    # A box shifted by a fifth: IoU 8 / 12.
    shifted = [found_at((2, 0, 10, 10)), *everything[1:]]
    assert average_precision(truth, shifted, "bbox")["AP50"] == 100
    assert average_precision(truth, shifted, "bbox")["AP75"] < 80


def one_box(width: int, height: int, box: tuple[int, int, int, int], folder: Path) -> tuple[Instances, bytes]:
    """A grey picture with a white box, and the file that says so: the box, and its mask as a polygon."""
    x0, y0, x1, y1 = box
    pixels = np.full((height, width, 3), 60, np.uint8)
    pixels[y0:y1, x0:x1] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    content = table(annotation(box=(x0, y0, x1 - x0, y1 - y0), segmentation=[[x0, y0, x1, y0, x1, y1, x0, y1]]))
    content["images"] = [{"id": 7, "file_name": "a.png", "width": width, "height": height}]
    return read_instances(write(folder, content)), buffer.getvalue()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(20, 90), st.integers(20, 90), st.floats(0.4, 2.5), st.floats(0, 0.999), st.floats(0, 0.999),
    st.booleans(), st.integers(0, 1000),
)  # fmt: skip
def test_boxes_and_masks_are_where_the_picture_shows_them(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, factor: float, left: float, top: float,
    mirrored: bool, seed: int,
) -> None:  # fmt: skip
    random, size = np.random.default_rng(seed), 64
    x0, y0 = int(random.integers(0, width - 8)), int(random.integers(0, height - 8))
    box = (x0, y0, int(random.integers(x0 + 5, width + 1)), int(random.integers(y0 + 5, height + 1)))
    instances, data = one_box(width, height, box, tmp_path_factory.mktemp("box"))
    canvas = empty(size)
    placed = decode_placed(data, instances.pictures["a.png"], canvas, factor, (left, top))
    boxes, classes, masks = on_canvas(instances.pictures["a.png"], placed, size, mirrored=mirrored, masks=True)
    seen = canvas.flip(2) if mirrored else canvas
    white = (seen[0] > 190).numpy()
    if not len(boxes):
        assert white.sum() <= 2 * size  # at most a line at the edge
        return
    assert classes.tolist() == [1]
    mask = unpacked(torch.from_numpy(masks), size)[0].numpy().astype(bool)
    # The filter of the resize blurs a pixel or so at each side, as many as one pixel of the picture covers.
    slack = 1.0 + max(placed.scale)
    rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    if len(rows):
        around = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert np.abs(boxes[0] - around).max() <= slack
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    around = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    assert np.abs(boxes[0] - around).max() <= 1.5
    edge = 2 * slack * (boxes[0][2] - boxes[0][0] + boxes[0][3] - boxes[0][1] + 2 * slack)
    assert (white != mask).sum() <= edge


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([64, 256, 1024]), st.floats(0.1, 2))
def test_places_stay_inside(width: int, height: int, size: int, factor: float) -> None:
    placed = place(width, height, size, factor, (0.999999, 0.999999))
    left, top, right, bottom = placed.box
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert 1 <= placed.width <= size
    assert 1 <= placed.height <= size
    if factor <= 1:
        assert placed.box == (0, 0, width, height)


def test_turned_pictures(tmp_path: Path) -> None:
    instances, data = one_box(40, 30, (5, 6, 20, 25), tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    buffer = io.BytesIO()
    stored = Image.open(io.BytesIO(data)).transpose(Image.Transpose.ROTATE_90)
    stored.save(buffer, "JPEG", quality=95, exif=exif.tobytes())
    canvas = empty(64)
    placed = decode_placed(buffer.getvalue(), instances.pictures["a.png"], canvas)
    boxes, _, _ = on_canvas(instances.pictures["a.png"], placed, 64)
    x0, y0, x1, y1 = boxes[0].round().astype(int)
    assert canvas[:, y0 + 2 : y1 - 2, x0 + 2 : x1 - 2].min() > 200
    objects = instances.pictures["a.png"]
    objects.width, objects.height = 30, 40  # boxes drawn on the picture as stored
    with pytest.raises(UnreadableImageError, match="turned as its EXIF says; the boxes are for 30 x 40"):
        decode_placed(buffer.getvalue(), instances.pictures["a.png"], canvas)
    with pytest.raises(UnreadableImageError, match="40 x 30 pixels, width and height exchanged; the boxes are for"):
        decode_placed(data, objects, canvas)


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, Path]:
    """(COCO file, tar) of two pictures, one of them without boxes."""
    full = {"segmentation": [[2, 3, 12, 3, 12, 11, 2, 11]]}
    path = write(tmp_path, table(
        annotation(**full), annotation(category=90, **full), annotation(box=(0, 0, 48, 40), iscrowd=1, **full)
    ))  # fmt: skip
    return path, write_tar(tmp_path / "p.tar", {f"{key}.jpg": jpeg(seed=i) for i, key in enumerate("abc")})


def test_batches(pictures: tuple[Path, Path]) -> None:
    instances = read_instances(pictures[0])
    source = picture_source(instances, str(pictures[1]))
    assert len(source) == 2
    order = Order(source.parts, 3, source.shards.tolist())
    steps = Steps(CurriculumConfig(), budget=12, batch_size=6, image_size=64, seed=3)
    batches = BoxBatches(source, order, steps, scale=(1.0, 1.0), masks=True)
    batch = batches[0]
    assert isinstance(batch, BoxBatch)
    lengths = batch.offsets.diff().tolist()
    assert sorted(lengths) == [0, 0, 0, 2, 2, 2]
    assert batch.labels.tolist() == [1, 2] * 3
    assert batch.masks.shape == (6, 64, 8)
    for b, flip in enumerate(batch.flip.tolist()):
        for box in batch.boxes[batch.offsets[b] : batch.offsets[b + 1]]:
            there = torch.tensor([2, 3, 12, 11]) * 64 / 48
            expected = torch.stack([64 - there[2], there[1], 64 - there[0], there[3]]) if flip else there
            torch.testing.assert_close(box, expected, atol=0.5, rtol=0)
    pieces = batch.split(4)
    assert [len(piece) for piece in pieces] == [4, 2]
    assert torch.equal(torch.cat([piece.boxes for piece in pieces]), batch.boxes)  # type: ignore[attr-defined]
    assert torch.equal(torch.cat([piece.masks for piece in pieces]), batch.masks)  # type: ignore[attr-defined]
    assert DRAWS >= 4


def test_pictures_from_folders_and_missing_ones(pictures: tuple[Path, Path], tmp_path: Path) -> None:
    instances = read_instances(pictures[0])
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(jpeg())
    with pytest.raises(UsageError, match=r"1 of the 2 pictures that .* lists are not there, e.g. b.jpg"):
        picture_source(instances, str(tmp_path / "photos"))
    (tmp_path / "photos" / "b.jpg").write_bytes(jpeg())
    assert picture_source(instances, str(tmp_path / "photos"))[1].key == "b.jpg"
    with pytest.raises(UsageError, match="a folder with the pictures, or tars"):
        picture_source(instances, str(pictures[0]))


def test_a_coco_file_is_a_dataset_of_objects(pictures: tuple[Path, Path]) -> None:
    instances, (boxes, images) = read_instances(pictures[0]), pictures
    dataset = open_dataset(boxes, target="objects", images=str(images))
    assert dataset.classes == instances.names
    found = [sample.image for sample in dataset]
    for sample in dataset:
        assert sample.target.name == sample.key
        assert np.array_equal(sample.target.boxes, instances.pictures[sample.key].boxes)
    assert dataset.fingerprint() == picture_source(instances, str(images)).fingerprint()
    images.rename(images.with_name("boxes.tar"))
    assert [s.image for s in open_dataset(boxes, target="objects")] == found, "where COCO's images usually lie"
