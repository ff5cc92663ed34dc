"""A folder with the files that the documentation speaks of, in their smallest form: where test_docs.py runs it."""

import csv
import io
import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn

import catlip
from catlip.models.encoder import Encoder
from tests.conftest import jpeg, write_tar
from tests.test_export_corenet import official
from tests.test_sentences import make_store

NOUNS = {"cat": (200, 120, 40), "fire hydrant": (210, 20, 20)}
SYNSETS = {
    "n02121620": "cat", "n03346898": "fire_hydrant", "n04096066": "road", "n02084071": "dog", "n02958343": "car"
}  # fmt: skip
FINDINGS = {"pleural effusion": 220, "consolidation": 160, "pneumothorax": 40, "enlarged heart": 100}
PICTURES = 48
BOX = (8, 6, 30, 28)  # x, y, width, height
CAPTIONS = [
    "a cat on a fire hydrant", "a dog on the road", "ein Hund am Strand", "eine Katze auf der Straße",
    "un chien sur la plage", "un chat dans la rue", "en hund på stranden", "en pojke med en boll",
]  # fmt: skip


def noun(i: int) -> str:
    return list(NOUNS)[i % 2]


def picture(i: int) -> bytes:
    return jpeg(NOUNS[noun(i)], seed=i)


def caption(i: int) -> str:
    return f"a {noun(i)} on the road"


def mask(i: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (48, 40), i % 2).save(buffer, "PNG")
    return buffer.getvalue()


def make_world(folder: Path, page: str) -> dict[str, Any]:
    """Fill the folder with what a page needs. Returns what its blocks of Python take for granted, by name."""
    _make_runs(folder, ["mine"] if "convert" in page else ["mine", "official"])
    if "datacomp" in page:
        _make_official(folder)
    if "flickr30k" in page:
        rows = [{"image": picture(i), "caption": caption(i)} for i in range(PICTURES)]
        datasets.Dataset.from_list(rows).save_to_disk(folder / "flickr30k")
    _make_pictures(folder)
    _make_tables(folder)
    _make_tars(folder)
    _make_coco(folder)
    _make_captions(folder)
    image = Image.open(folder / "photo.jpg")
    return {"catlip": catlip, "image": image, "images": [image]}


def _make_runs(folder: Path, names: list[str]) -> None:
    torch.manual_seed(0)
    encoder = Encoder.create("test_resnet", image_size=32)
    encoder.save(folder / "START")
    for name in names:
        encoder.save(
            folder / "runs" / name / "encoder",
            nn.Linear(encoder.width, len(SYNSETS)),
            label_names=list(SYNSETS),
            label_descriptions=SYNSETS,
        )
    make_store(folder / "sentences", [[caption(i) for i in range(2)]])


def _make_official(folder: Path) -> None:
    """Checkpoints as Apple's code writes them, and the names of their classes."""
    for name, classes in (("official_vit_base", 5), ("vit_base", 5), ("in1k_vit_base", 1000), ("places_vit_base", 3)):
        torch.save(official(classes=classes), folder / f"{name}.pt")
    (folder / "places365.txt").write_text("airfield\nalley\nattic\n")
    counts = {"n2084071": 9, "n10287213": 8, "n7697537": 7, "n4610879": 6, "n12102133": 5}
    (folder / "datacomp_1_2B_vocab.pkl").write_bytes(pickle.dumps(counts))


def _make_pictures(folder: Path) -> None:
    """Folders of pictures, of classes, and with a caption each."""
    (folder / "photo.jpg").write_bytes(picture(0))
    for i in range(PICTURES):
        for name in ("photos", "products", "train", "val", "val2017"):
            _write(folder / name / f"{i}.jpg", picture(i))
        _write(folder / "scans" / f"{i}.png", picture(i))
        for name in ("photos/train", "photos/test", "general", "imagenet/train", "imagenet/val"):
            _write(folder / name / noun(i) / f"{i}.jpg", picture(1000 + i))


def _make_tables(folder: Path) -> None:
    numbers = range(PICTURES)
    _table(folder / "pictures.csv", ["image", "caption"], ((f"photos/{i}.jpg", caption(i)) for i in numbers))
    _table(folder / "products.csv", ["image", "title"], ((f"products/{i}.jpg", caption(i)) for i in numbers))
    names = list(FINDINGS)
    said = ((f"scans/{i}.png", f"{names[i % 4].capitalize()}. No {names[(i + 1) % 4]}.") for i in numbers)
    _table(folder / "reports.csv", ["image", "report"], said)
    _table(
        folder / "befunde.csv",
        ["Datei", "Befund"],
        [(f"{i}.png", "Kein Pneumothorax. Pleuraergüsse.") for i in numbers],
    )
    (folder / "befunde.tsv").write_text("Pneumothorax\tRID5352\nPleuraerguss\tRID34539\n", encoding="utf-8")
    (folder / "names.txt").write_text("\n".join(NOUNS) + "\n")
    catlip.Vocabulary.count(map(caption, numbers), min_count=2).save(folder / "vocab.tsv")


def _make_tars(folder: Path) -> None:
    """Tars with caption, class and mask of each picture."""
    for name in ("shards/0", "train", "test", "val", "camvid/train", "camvid/test"):
        members: dict[str, bytes] = {}
        for i in range(PICTURES):
            members |= {f"{i}.jpg": picture(i), f"{i}.txt": caption(i).encode(), f"{i}.cls": str(i % 2).encode()}
            members[f"{i}.seg.png"] = mask(i)
        (folder / name).parent.mkdir(exist_ok=True)
        write_tar(folder / f"{name}.tar", members)


def _make_coco(folder: Path) -> None:
    x, y, w, h = BOX
    corners = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 48, "height": 40} for i in range(PICTURES)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": BOX, "area": w * h, "iscrowd": 0}
            | {"segmentation": corners}
            for i in range(PICTURES)
        ],
        "categories": [{"id": 1 + i, "name": name} for i, name in enumerate(NOUNS)],
    }
    for name in ("train", "val", "boxes", "instances"):
        (folder / f"{name}.json").write_text(json.dumps(content))
    said = [{"id": i, "image_id": i, "caption": caption(i)} for i in range(PICTURES)]
    (folder / "captions_val2017.json").write_text(json.dumps({"images": content["images"], "annotations": said}))


def _make_captions(folder: Path) -> None:
    table = pa.table({"url": [f"{i}.jpg" for i in range(10 * len(CAPTIONS))], "caption": CAPTIONS * 10})
    (folder / "captions").mkdir()
    pq.write_table(table, folder / "captions" / "0.parquet")


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _table(path: Path, header: list[str], rows: Iterable[tuple[str, str]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
