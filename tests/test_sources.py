"""Everything that --data takes: what is found in it, what is left out and said, and what is refused."""

import base64
import csv
import gzip
import io
import json
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from catlip.atomic import whole
from catlip.data import cache, inline_images
from catlip.data.caption_files import Columns, read_rows
from catlip.data.corpus import corpus_files
from catlip.data.dataset import Dataset, Sample, bounded
from catlip.data.files import IMAGE_EXTENSIONS, OpenFile
from catlip.data.image_lookup import Names
from catlip.data.images import UnreadableImageError, open_image
from catlip.data.open import open_dataset
from catlip.data.pack import PackConfig, pack
from catlip.data.path_tables import NO_CAPTIONS, values_of
from catlip.data.shards import members, split_name
from catlip.data.subsets import Mixture
from catlip.data.tables import chunks
from catlip.data.tars import TarDataset
from catlip.errors import UsageError
from tests.conftest import SHARED, jpeg, write_tar

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def records(source: Dataset) -> list[Sample]:
    """All records, after checking what holds for every source."""
    found = [source[number] for number in range(len(source))]
    assert source.shards.dtype == np.int64
    assert source.shards.sum() == len(source)
    assert list(source.captions()) == [record.captions for record in found]
    assert "\n" not in source.described
    json.dumps([source.fingerprint(), [record.metadata for record in found]])
    source.prefetch(range(len(source.shards)))
    again = pickle.loads(pickle.dumps(source))
    assert [again[number] for number in range(len(source))] == found
    return found


# ---- tars


def naive(tar: Path) -> dict[str, dict[str, bytes]]:
    """Samples of a tar by the book: tarfile, dictionaries, nothing else. Only names without dots in their stems."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(tar) as file:
        for info in file:
            key, extension = split_name(info.name)
            role = "image" if extension.lower() in IMAGE_EXTENSIONS else extension.lower()
            if (
                info.isfile()
                and role in ("image", "txt", "json", "cls")
                and not info.name.split("/")[-1].startswith(".")
            ):
                found.setdefault(key, {}).setdefault(role, file.extractfile(info).read())
    return {key: sample for key, sample in found.items() if "image" in sample} or found


stems = st.text(st.characters(exclude_characters="/\0.", exclude_categories=("Cs", "Cc")), min_size=1, max_size=130)
folders = st.sampled_from(["", "a/", "a.b/", "../../etc/", "/abs/", "long" * 30 + "/", "ünï/"])
names = st.tuples(folders, stems, st.sampled_from([".jpg", ".txt", ".json", ".cls", ".JPG", ".npy", "", ".png"]))


@quick
@given(
    st.lists(st.tuples(names, st.binary(max_size=700)), min_size=1, max_size=12, unique_by=lambda m: m[0]),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_any_tar_gives_what_a_naive_reading_gives(tmp_path: Path, content: list, format: int) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in content:
            info = tarfile.TarInfo("".join(name))
            info.size = len(data)
            try:
                tar.addfile(info, io.BytesIO(data))
            except ValueError:  # too long for ustar
                continue
    expected = naive(path)
    try:
        source = TarDataset([path], "a")
    except UsageError:
        assert not expected
        return
    assert list(source.keys()) == list(expected)
    for number, sample in enumerate(expected.values()):
        record = source[number]
        assert record.image == sample.get("image", b"")
        if "txt" in sample:
            text = sample["txt"].decode("utf-8", "replace")
            assert record.captions == [line.strip() for line in text.splitlines() if line.strip()]


@quick
@given(st.binary(max_size=3000), st.integers(0, 20_000), st.integers(0, 3000))
def test_no_bytes_make_the_tar_reader_do_anything_but_read_or_refuse(
    tmp_path: Path, noise: bytes, at: int, drop: int
) -> None:
    path = write_tar(tmp_path / "a.tar", {f"{i}.{e}": jpeg(seed=i) for i in range(3) for e in ("jpg", "txt")})
    data = bytearray(path.read_bytes())
    data[at : at + len(noise)] = noise
    path.write_bytes(data[: len(data) - drop])
    try:
        source = TarDataset([path], "a")
    except UsageError:
        return
    for number in range(len(source)):
        source[number]


def test_members_that_are_no_plain_files(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind in (("d", tarfile.DIRTYPE), ("l.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "x" * 200
            tar.addfile(info)
        for name in ("ü" * 120 + ".jpg", "._1.jpg", "1.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    assert list(TarDataset([path], "a").keys()) == ["ü" * 120, "1"]
    file = OpenFile(os.open(path, os.O_RDONLY))
    with tarfile.open(path) as tar:
        assert [(m.name, m.offset_data, m.size) for m in tar if m.isfile()] == list(members(file))


def test_keys_that_are_apart_or_double(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in (("1.jpg", b"A"), ("2.jpg", b"B"), ("1.txt", b"one"), ("2.txt", b"two"), ("1.jpg", b"C")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    source = open_dataset(str(path))
    assert [(r.key, r.image, r.captions) for r in records(source)] == [("1", b"A", ["one"]), ("2", b"B", ["two"])]
    assert list(source.troubles) == ["a.tar: 1.jpg"]
    assert "1 troubles" in source.described


def test_names_with_dots(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {
        "photo.v1.jpg": b"1", "photo.v1.txt": b"one", "photo.v2.jpg": b"2", "photo.v2.txt": b"two",
        "street.jpg": b"3", "street.seg.png": b"mask", "street.txt": b"three",
        "x.jpg": b"4", "x.txt": b"four", "x.2.jpg": b"5", "x.2.txt": b"five",
    })  # fmt: skip
    assert [(r.key, r.image, r.captions) for r in records(open_dataset(str(tar)))] == [
        ("photo.v1", b"1", ["one"]), ("photo.v2", b"2", ["two"]), ("street", b"3", ["three"]),
        ("x", b"4", ["four"]), ("x.2", b"5", ["five"]),
    ]  # fmt: skip


def test_what_is_left_out_of_a_tar_is_named(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {
        "README.txt": b"about these pictures", "1.jpg": b"1", "1.png": b"second", "1.txt": b"one", "1.caption": b"uno",
        "shot.jpg": b"2", "shot.crop.jpg": b"3", "shot.seg.png": b"mask", "__MACOSX/._1.jpg": b"x", ".DS_Store": b"x",
        "LICENSE.TXT": b"CC0",
    })  # fmt: skip
    source = open_dataset(str(tar))
    assert [(r.key, r.image, r.captions) for r in records(source)] == [("1", b"1", ["one"]), ("shot", b"2", [])]
    assert source.troubles == {
        "a.tar: 1.png": "2 second pictures or texts of a key are left out",
        "a.tar: shot.crop.jpg": "1 pictures that are parts of another sample, as they have no caption of their own, "
        "are left out",
        "a.tar: README": "2 samples without a picture are left out",
    }
    captions = write_tar(tmp_path / "b.tar", {"1.txt": b"a dog", "2.json": b'{"caption": "a cat"}'})
    assert list(open_dataset(str(captions)).captions()) == [["a dog"], ["a cat"]], "captions may be all there is"


def test_dotted_keys_keep_their_capitals(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {
        "Dog.V1.JPG": b"1", "Dog.V1.TXT": b"one", "Dog.v1.jpg": b"2", "Dog.v1.txt": b"two", "Dr. Who.Jpg": b"3",
    })  # fmt: skip
    assert [(r.key, r.image, r.captions) for r in records(open_dataset(str(tar)))] == [
        ("Dog.V1", b"1", ["one"]), ("Dog.v1", b"2", ["two"]), ("Dr. Who", b"3", []),
    ]  # fmt: skip


# ---- names


@quick
@given(
    st.lists(st.lists(st.sampled_from("ab"), max_size=2), min_size=1, max_size=6),
    st.lists(st.lists(st.sampled_from("ab"), max_size=2), min_size=1, max_size=4),
    st.lists(st.sampled_from(["1.jpg", "1.b.jpg", "1.JPG", "1", "1.png"]), min_size=10, max_size=10),
)
def test_a_name_is_found_as_a_naive_search_finds_it(known: list, wanted: list, bases: list[str]) -> None:
    known = ["/".join([*folders, base]) for folders, base in zip(known, bases, strict=False)]
    wanted = ["/".join([*folders, base]) for folders, base in zip(wanted, bases[6:], strict=False)]

    def ends_alike(one: str, other: str) -> bool:
        return f"/{one}".endswith(f"/{other}") or f"/{other}".endswith(f"/{one}")

    def stem(name: str) -> str:
        return name.removesuffix(".jpg").removesuffix(".JPG").removesuffix(".png")

    for name in wanted:
        for fits in (
            lambda k, name=name: k == name, lambda k, name=name: ends_alike(k, name),
            lambda k, name=name: stem(name) in (k, name) and stem(k) == stem(name),
            lambda k, name=name: k == stem(name),
            lambda k, name=name: stem(name) == name and ends_alike(stem(k), name),
            lambda k, name=name: ends_alike(k, stem(name)),
        ):  # fmt: skip
            several = [number for number, k in enumerate(known) if fits(k)]
            if several:
                break
        if len(several) > 1:
            with pytest.raises(UsageError, match=r"here: .* could be"):
                Names(known, "here").find(name)
        else:
            assert Names(known, "here").find(name) == (several[0] if several else None)


def test_names_that_mean_one_picture_are_refused() -> None:
    names = Names(["1.jpg", "train/2.jpg"], "x.tar")
    assert names.find_all(["./train/1.jpg", "2.jpg", "3.jpg", "other/2.jpg"]) == [0, 1, None, None]
    with pytest.raises(UsageError, match=r"x\.tar: 'v1/1\.jpg' and 'v2/1\.jpg' would both be '1\.jpg'.*folders"):
        names.find_all(["v1/1.jpg", "v2/1.jpg"])
    with pytest.raises(UsageError, match=r"x: '1\.jpg' could be 'v1/1\.jpg' or 'v2/1\.jpg'"):
        Names(["v1/1.jpg", "v2/1.jpg"], "x").find("1.jpg")
    with pytest.raises(UsageError, match=r"'1\.jpg' could be several of this name"):
        Names(["1.jpg", "1.jpg"], "x").find("1.jpg")


def test_json_gives_captions_and_metadata(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {
        "1.jpg": b"", "1.txt": b"a dog", "1.json": b'{"url": "https://x", "caption": "other", "license": "CC0"}',
        "2.jpg": b"x", "2.json": b'{"caption": "a cat"}', "3.jpg": b"x", "3.json": b"[1]", "4.jpg": b"x",
        "4.json": b"{broken", "5.jpg": b"x", "5.json": b'{"text": 7}', "6.jpg": b"x", "6.json": b"[" * 100_000,
    })  # fmt: skip
    found = records(open_dataset(str(tar)))
    assert found[0] == Sample("1", b"", ["a dog"], None, {"url": "https://x", "license": "CC0"})
    assert [r.captions for r in found[1:]] == [["a cat"], [], [], [], []]


def test_compressed_and_unreadable_tars_are_named(tmp_path: Path) -> None:
    for name in ("a.tar.gz", "b.tar"):
        with tarfile.open(tmp_path / name, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("1.jpg"))
        with pytest.raises(UsageError, match=rf"{name}.*compressed.*unpack"):
            open_dataset(str(tmp_path / name))
    good = write_tar(tmp_path / "c.tar", {"1.jpg": jpeg()})
    (tmp_path / "d.tar").write_bytes(b"")
    with pytest.raises(UsageError, match=r"/d\.tar is not a readable tar file \(it is empty"):
        TarDataset([good, tmp_path / "d.tar"], "x")


def test_an_index_is_kept_and_made_anew_for_other_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "WORTH_KEEPING", -1)
    paths = [write_tar(tmp_path / f"{i}.tar", {f"{i}{j}.jpg": jpeg(seed=j) for j in range(3)}) for i in range(3)]
    first = TarDataset(paths, "x")
    kept = sorted((cache.cache_folder() / "index").iterdir())
    assert [path.suffix for path in kept] == [".arrow"] * 4
    monkeypatch.setattr("catlip.data.tars.scan", lambda *_: pytest.fail("scanned again"))
    again = TarDataset(paths, "x")
    assert len(pickle.dumps(again)) - sum(len(str(path)) for path in paths) < 1500  # the index stays in its file
    assert records(again) == [first[i] for i in range(9)]
    monkeypatch.undo()
    write_tar(paths[0], {"new.jpg": jpeg(), "new.txt": b"a dog"})
    assert len(TarDataset(paths, "x")) == 7
    for path in kept:
        path.write_bytes(b"damaged")
    assert len(TarDataset(paths, "x")) == 7


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "WORTH_KEEPING", -1)
    (tmp_path / "file").touch()
    monkeypatch.setenv("CATLIP_CACHE", str(tmp_path / "file"))
    write_tar(tmp_path / "a.tar", {"1.jpg": jpeg()})
    (tmp_path / "t.csv").write_text("image,text\n1.jpg,a dog\n")
    assert len(records(open_dataset(str(tmp_path / "a.tar")))) == 1
    assert len(records(open_dataset(str(tmp_path / "t.csv")))) == 1


def test_two_may_keep_the_same_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    with whole(path, rivals=True) as one, whole(path, rivals=True) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"  # the last to end
    with pytest.raises(OSError, match="elsewhere"), whole(path, rivals=True) as part, part.open("w") as file:
        print("half", (tmp_path / "elsewhere").read_bytes(), file=file)
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]
    with pytest.raises(OSError), whole(path / "below", rivals=True) as part:
        part.write_text("half")


def test_many_threads_and_more_tars_than_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catlip.data.files.OPEN_FILES", 3)
    paths = [write_tar(tmp_path / f"{i}.tar", {f"{i}.jpg": jpeg(seed=i)}) for i in range(20)]
    source = TarDataset(paths, "x")
    with ThreadPoolExecutor(8) as pool:
        for number, record in zip(
            list(range(20)) * 20, pool.map(source.__getitem__, list(range(20)) * 20), strict=True
        ):
            assert record.image == jpeg(seed=number)
    assert len(source.files._open) <= 4


def test_troubles_are_bounded() -> None:
    assert len(bounded({str(i): "why" for i in range(5000)})) == 1001


# ---- tables


def write_pictures(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(seed=len(name)))


ROWS = [
    {"image": "p/1.jpg", "text": "a dog", "licence": "CC0"},
    {"image": "p/2.jpg", "text": 'a "big" cat, \nasleep', "licence": ""},
    {"image": "p/1.jpg", "text": "a brown dog", "licence": "CC0"},
    {"image": "", "text": "nothing", "licence": ""},
    {"image": "p/missing.jpg", "text": "", "licence": "x"},
]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_tables_of_paths(tmp_path: Path, kind: str) -> None:
    write_pictures(tmp_path, "p/1.jpg", "p/2.jpg")
    path, rows = tmp_path / f"t.{kind}", ROWS
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        rows = [{k: v.replace("\n", "") for k, v in row.items()} for row in rows] if kind == "tsv" else rows
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    source = open_dataset(str(path))
    assert "'image'" in source.described
    assert "'text'" in source.described
    assert records(source) == [
        Sample("p/1.jpg", jpeg(seed=7), ["a dog", "a brown dog"], None, {"licence": "CC0"}),
        Sample("p/2.jpg", jpeg(seed=7), [rows[1]["text"]]),
        Sample("p/missing.jpg", b"", [], None, {"licence": "x"}),
    ]
    assert list(source.troubles.values()) == ["1 rows without a picture are left out"]


def test_several_tables_and_columns_by_flag(tmp_path: Path) -> None:
    for part in ("a", "b"):
        write_pictures(tmp_path / part, "1.jpg", "2.jpg")
        (tmp_path / part / "t.csv").write_text(
            f"what,where,text\na {part} dog,1.jpg,no\na cat,2.jpg,no\na pig,1.jpg,\n"
        )
    source = open_dataset(f"{tmp_path}/?/t.csv", image_col="where", text_col="what")
    assert source.shards.tolist() == [2, 2]
    assert list(source.captions()) == [["a a dog", "a pig"], ["a cat"], ["a b dog", "a pig"], ["a cat"]]
    records(source)
    (tmp_path / "b" / "t.csv").write_text("x,y\n1,2\n")
    with pytest.raises(UsageError, match=r"b/t\.csv: no column '(what|where)', which the first"):
        open_dataset(f"{tmp_path}/?/t.csv", image_col="where", text_col="what")


def test_cells_of_all_kinds(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    write_pictures(outside, "1.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "in").mkdir()
    places = [f"file://{outside}/1.jpg", f"{outside}/1.jpg", "../outside/1.jpg", "../pipe.jpg", "/dev/zero", "..",
              "../../../../etc/nothing", "nul\\0.jpg", "x" * 5000, "https://x/1.jpg"]  # fmt: skip
    table = tmp_path / "in" / "t.jsonl"
    rows = [{"image": p.replace("\\0", "\0"), "captions": ["a dog", 3, None, " "]} for p in places]
    rows += [{"image": {"path": "../outside/1.jpg"}, "captions": '["a cat", "a pig"]'}, {"image": 7}, {"other": 1}]
    table.write_text("\n".join(map(json.dumps, rows)))
    found = records(open_dataset(str(table)))
    assert [len(r.image) > 0 for r in found] == [True] * 3 + [False] * 7
    assert [r.captions for r in found[:2]] == [["a dog"], ["a dog"]]
    assert found[2].captions == ["a dog", "a cat", "a pig"]  # the struct's path is the third row's


def test_damaged_tables(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(b"\xef\xbb\xbfimage,text\n1.jpg,caf\xe9\n2.jpg,a,b,c\n3.jpg\n4.jpg,a dog\n")
    source = open_dataset(str(table))
    assert [r.captions for r in records(source)] == [["café"], ["a dog"]]
    assert len(source.troubles) == 3
    assert source.troubles.pop("t.csv") == "1 lines are no UTF-8 and were read as Windows-1252; save it as UTF-8"
    assert all("cells instead of 2" in why for why in source.troubles.values())
    table.write_bytes("image,text\n1.jpg,a\n".encode("utf-16-le"))
    with pytest.raises(UsageError, match=r"t\.csv is no UTF-8 text"):
        open_dataset(str(table))
    (tmp_path / "u.csv").write_text("url,caption\nhttps://x.org/1.jpg,a dog\nhttp://x.org/2.jpg,a cat\n")
    with pytest.raises(UsageError, match=r"column 'url' holds URLs.*img2dataset"):
        open_dataset(str(tmp_path / "u.csv"))
    (tmp_path / "e.jsonl").write_text("\n")
    with pytest.raises(UsageError, match="is empty"):
        open_dataset(str(tmp_path / "e.jsonl"))
    (tmp_path / "h.csv").write_text("image,text\n")
    with pytest.raises(UsageError, match="not one row has a picture"):
        open_dataset(str(tmp_path / "h.csv"))
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match=r"b\.parquet is no readable Parquet"):
        open_dataset(str(tmp_path / "b.parquet"))


def captions_both_ways(path: Path) -> list[list[str]]:
    """As `pack` and `pretrain` read them, after checking that `vocab`, `label` and `report` read the same."""
    found = list(open_dataset(str(path)).captions())
    files = corpus_files(str(path), None, None)
    rows = (part for paths, columns in files for file in paths for part in read_rows(file, columns))
    assert [captions for part in rows for captions in part.captions] == found
    return found


cells = st.text(st.sampled_from([*' "",\t;|\n\r\'a', "é", "\U0001f415", "\x85", "\u2028"]), max_size=7)


@quick
@given(
    st.lists(st.tuples(cells, cells, cells), max_size=20), st.sampled_from(",\t;|"), st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    st.booleans(),
)  # fmt: skip
def test_what_csv_writes_is_read_back(
    tmp_path: Path, rows: list, separator: str, end: str, quoting: int, encoding: str, large: bool
) -> None:
    if end == "\n":  # then csv before Python 3.13 does not quote the other one
        rows = [tuple(cell.replace("\r", "") for cell in row) for row in rows]
    if large:  # beyond what is read at a time
        rows = [*rows, *[(("line " * 2000 + "\n") * 25, '""' * 100, separator * 9)] * 5, *rows]
    path = tmp_path / "t.csv"
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=separator, lineterminator=end, quoting=quoting)
        writer.writerows([("image", "text", "more"), *rows])
    read = [dict(zip(chunk, row, strict=True)) for chunk in chunks(path) for row in zip(*chunk.values(), strict=True)]
    assert [tuple(row.values()) for row in read] == rows


@pytest.mark.parametrize("separator", ["\t", ",", ";"])
@pytest.mark.parametrize("filler", [0, 40_000])
def test_quotes_that_nobody_closes_are_text(tmp_path: Path, separator: str, filler: int) -> None:
    captions = ["a dog", '"a red car', "a cat", 'a 15" pipe', '"Wow" she said', 'a "big" boat', '"', 'x"y', '"a "b" c"',
                *["a long line of filler"] * filler, '"a blue car', "a boat"]  # fmt: skip
    lines = [separator.join(["image", "caption"]), *(f"{i}.jpg{separator}{c}" for i, c in enumerate(captions))]
    (tmp_path / "t.tsv").write_text("\n".join(lines) + "\n")
    source = open_dataset(str(tmp_path / "t.tsv"))
    assert list(source.captions()) == [[caption] for caption in captions]
    assert not source.troubles


def test_a_quote_that_could_be_two_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text('image\tcaption\n0.jpg\ta dog\n1.jpg\t"a red car\n2.jpg\ta pipe of 15"\n')
    source = open_dataset(str(tmp_path / "t.tsv"))
    assert list(source.captions()) == [["a dog"], ["a red car\n2.jpg\ta pipe of 15"]]
    assert list(source.troubles.values()) == [
        "one cell over 2 lines, as a quote says, that look like rows of their own"
    ]


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "cp1252"])
def test_texts_of_other_encodings(tmp_path: Path, kind: str, encoding: str) -> None:
    rows = [{"image": f"{i}.jpg", "text": f"a café “{i}”"} for i in range(20)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    if kind != "jsonl":
        text = "image,text\r\n" + "".join(f"{row['image']},{row['text']}\r\n" for row in rows)
    data = (("\ufeff" if encoding == "utf-16-be" else "") + text).encode(encoding)
    path = tmp_path / f"t.{kind}"
    path.write_bytes(gzip.compress(data) if kind == "csv.gz" else data)
    assert captions_both_ways(path) == [[row["text"]] for row in rows]
    assert list(open_dataset(str(path)).troubles) == [path.name] * (encoding == "cp1252")


def test_the_text_nan_is_a_missing_caption_among_sentences(tmp_path: Path) -> None:
    for kind in ("csv", "jsonl", "parquet"):
        for words, found in ((["a dog", "nan", "a red car", "NaN", " nan", "NA", "dusk"],
                              [["a dog"], [], ["a red car"], [], [], ["NA"], ["dusk"]]),
                             (["nan", "naan", "roti"], [["nan"], ["naan"], ["roti"]]),
                             (["nan", "nan"], [[], []])):  # fmt: skip
            rows = [{"image": f"{i}.jpg", "text": word} for i, word in enumerate(words)]
            path = tmp_path / f"{len(words)}.{kind}"
            if kind == "parquet":
                pq.write_table(pa.Table.from_pylist(rows), path)
            elif kind == "jsonl":
                path.write_text("\n".join(map(json.dumps, rows)))
            else:
                path.write_text("image,text\n" + "".join(f"{row['image']},{row['text']}\n" for row in rows))
            assert captions_both_ways(path) == found
            without = sum(not captions for captions in found)
            assert (f"{without} of them without a caption" in open_dataset(str(path)).described) == (without > 0)


@pytest.mark.parametrize("pictures", ["paths", "bytes"])
@pytest.mark.parametrize(
    "cells", [[b"a dog", b"a cat"], [3, None], [2.5, 1.0], [[{"text": "a dog"}], []], [{"text": "a dog"}, None]]
)
def test_a_column_of_other_things_than_captions_is_refused(tmp_path: Path, cells: list, pictures: str) -> None:
    images = ["1.jpg", "2.jpg"] if pictures == "paths" else [jpeg(), jpeg()]
    pq.write_table(pa.table({"image": images, "caption": cells}), tmp_path / "t.parquet")
    for read in (
        lambda: open_dataset(str(tmp_path / "t.parquet")),
        lambda: list(read_rows(tmp_path / "t.parquet", Columns.of(tmp_path / "t.parquet", None, None))),
    ):
        with pytest.raises(UsageError, match=r"t\.parquet: column 'caption' holds .*, not text.*`text_col`"):
            read()
    if not isinstance(cells[0], bytes):
        (tmp_path / "t.jsonl").write_text("".join(json.dumps({"image": "1.jpg", "caption": c}) + "\n" for c in cells))
        with pytest.raises(UsageError, match=r"t\.jsonl: column 'caption' holds .*, not text"):
            open_dataset(str(tmp_path / "t.jsonl"))
    source = open_dataset(str(tmp_path / "t.parquet"), text_col=NO_CAPTIONS)
    assert [record.captions for record in records(source)] == [[], []]


def test_corpora_are_what_sources_are(tmp_path: Path) -> None:
    """vocab, label and report read what pack and pretrain read."""
    write_pictures(tmp_path / "meta", "1.jpg", "2.jpg")
    (tmp_path / "meta" / "1.txt").write_text("a sidecar that the table overrules")
    (tmp_path / "meta" / "metadata.csv").write_text("file_name,text\n1.jpg,a dog\n2.jpg,a cat\n")
    assert captions_both_ways(tmp_path / "meta") == [["a dog"], ["a cat"]]
    for number in range(2):
        (tmp_path / "tars").mkdir(exist_ok=True)
        write_tar(tmp_path / "tars" / f"{number}.tar", {"1.jpg": jpeg(), "1.txt": f"a dog {number}".encode()})
    assert captions_both_ways(tmp_path / "tars") == [["a dog 0"], ["a dog 1"]]
    (tmp_path / "twice.csv").write_text("image,caption,caption\n1.jpg,a dog,ein Hund\n")
    assert captions_both_ways(tmp_path / "twice.csv") == [["a dog"]]
    assert open_dataset(str(tmp_path / "twice.csv"))[0].metadata == {"caption.2": "ein Hund"}
    (tmp_path / "cells.csv").write_text('image,caption\n1.jpg,a dog\n2.jpg,a,b\n3.jpg,"[""a cat"", ""a pig""]"\n')
    assert captions_both_ways(tmp_path / "cells.csv") == [["a dog"], ["a cat", "a pig"]]
    lines = [{"image": f"{i}.jpg", "text": c} for i, c in enumerate(["a dog", 7, ["a", 3, None], None, {"a": 1}])]
    (tmp_path / "n.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert captions_both_ways(tmp_path / "n.jsonl") == [["a dog"], [], ["a"], [], []]
    (tmp_path / "half.jsonl").write_text('{"image": "\\ud83d.jpg", "text": "half a \\ud83d face", "id": "\\ud83d"}')
    assert captions_both_ways(tmp_path / "half.jsonl") == [["half a ? face"]]
    both = f"{tmp_path}/cells.csv + {tmp_path}/tars@2"
    assert captions_both_ways(Path(both)) == [["a dog"], ["a cat", "a pig"], ["a dog 0"], ["a dog 1"]]


def test_a_wrong_guess_shows_columns_and_values(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("photo_id,words,n\n1.jpg,a dog,3\n2.jpg,a cat,4\n")
    with pytest.raises(UsageError, match=r"photo_id, words, n \(photo_id holds '1.jpg', '2.jpg';.*`image_col`"):
        open_dataset(str(tmp_path / "t.csv"))
    with pytest.raises(UsageError, match=r"holds the caption\? .*\(words holds 'a dog', 'a cat'.*`text_col`"):
        open_dataset(str(tmp_path / "t.csv"), image_col="photo_id")


SHOP = [
    {"image": "1.jpg", "category": "dog toys", "colour": "red", "material": "soft rubber"},
    {"image": "2.jpg", "category": "chair", "colour": None, "material": "wood"},
    {"image": "3.jpg", "category": None, "colour": "nan", "material": None},
]
TAGS = [["dog toys", "red", "soft rubber"], ["chair", "wood"], []]


@pytest.mark.parametrize("kind", ["shop.csv", "shop.tsv", "shop.jsonl", "shop.parquet", "bytes.parquet", "bytes.jsonl"])
def test_several_columns_of_tags(tmp_path: Path, kind: str) -> None:
    """Each cell is a caption of its own, or several, whatever the table; names with spaces around them are found."""
    rows, path = [dict(row) for row in SHOP], tmp_path / kind
    for i, row in enumerate(rows):
        if kind == "bytes.parquet":
            row["image"] = jpeg(seed=i)
        elif kind == "bytes.jsonl":
            row["image"] = base64.b64encode(jpeg(seed=i)).decode()
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps({k: v for k, v in row.items() if v}) for row in rows))
    else:
        separator = "," if path.suffix == ".csv" else "\t"
        path.write_text(
            "\n".join(separator.join(v or "" for v in row) for row in [list(rows[0]), *map(dict.values, rows)])
        )
    source = open_dataset(str(path), text_col="category, colour,material")
    assert [record.captions for record in records(source)] == TAGS
    if not kind.startswith("bytes"):
        columns = Columns.of(path, "category, colour,material", None)
        assert [captions for rows in read_rows(path, columns) for captions in rows.captions] == TAGS
    with pytest.raises(UsageError, match=r"no column 'size' .*`text_col`"):
        open_dataset(str(path), text_col="category,size")
    with pytest.raises(UsageError, match="no column 'image,colour'"):
        open_dataset(str(path), image_col="image,colour")


def test_a_column_whose_name_has_a_comma_is_one_column(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('image,"a,b",a,b\n1.jpg,a dog,a cat,a cow\n')
    assert open_dataset(str(tmp_path / "t.csv"), text_col="a,b")[0].captions == ["a dog"]
    assert open_dataset(str(tmp_path / "t.csv"), text_col="a, b")[0].captions == ["a cat", "a cow"]


def test_several_columns_of_what_is_in_memory() -> None:
    rows = [{**row, "image": jpeg(seed=i)} for i, row in enumerate(SHOP)]
    for data in (rows, pytest.importorskip("datasets").Dataset.from_list(rows)):
        source = open_dataset(data, text_col="category,colour,material")
        assert [source[i].captions for i in range(3)] == list(source.captions()) == [*TAGS[:2], ["nan"]]


# No tags, which are split, no halves of characters, which become ?, and not an empty cell's word.
letters = st.characters(exclude_characters=";|,", exclude_categories=["Cs"])
words = st.text(letters, max_size=8).filter(lambda s: s.strip().lower() != "nan")


@quick
@given(st.lists(st.tuples(st.sampled_from("abcd"), words, st.sampled_from("xy")), min_size=1, max_size=30))
def test_rows_of_a_picture_come_together(tmp_path: Path, rows: list[tuple[str, str, str]]) -> None:
    for folder in "xy":
        (tmp_path / folder).mkdir(exist_ok=True)
        lines = [json.dumps({"image": image, "text": text}) for image, text, where in rows if where == folder]
        (tmp_path / folder / "t.jsonl").write_text("\n".join(lines or ['{"image": "e", "text": "f"}']))
    expected: dict[tuple[str, str], list[str]] = {}
    for where in "xy":
        some = [(image, text) for image, text, w in rows if w == where] or [("e", "f")]
        for image, text in some:
            expected.setdefault((where, image), []).extend([text] if text.strip() else [])
    source = open_dataset(f"{tmp_path}/{{x,y}}/t.jsonl")
    found = [(source[i].key, source[i].captions) for i in range(len(source))]
    assert found == [(image, captions) for (_, image), captions in expected.items()]
    assert source.shards.sum() == len(source)


# ---- pictures inside tables


@pytest.mark.parametrize("form", ["struct", "bytes", "large"])
def test_parquet_with_pictures(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path, "beside.jpg")
    for part in range(2):
        pictures = [jpeg(seed=10 * part + i) for i in range(7)]
        struct = [{"bytes": b, "path": f"{part}-{i}.jpg"} for i, b in enumerate(pictures[:-1])]
        cells = {
            "struct": pa.array([*struct, {"bytes": None, "path": "beside.jpg"}]),
            "bytes": pa.array([*pictures[:-1], None], pa.binary()),
            "large": pa.array([*pictures[:-1], b""], pa.large_binary()),
        }[form]
        table = {"jpg": cells, "caption": [[f"dog {i}", "x"] for i in range(6)] + [None], "licence": ["CC0"] * 7}
        pq.write_table(pa.table(table), tmp_path / f"{part}.parquet", row_group_size=3)
    source = open_dataset(str(tmp_path / "*.parquet"))
    assert source.remote
    assert source.window == 3 * 32
    assert source.shards.tolist() == [3, 3, 1] * 2
    pq.write_table(pa.table({"jpg": [jpeg()] * 3, "caption": ["a dog", None, "a cat"]}), tmp_path / "n.pq")
    assert "1 of them without a caption" in open_dataset(str(tmp_path / "n.pq")).described
    found = records(source)
    assert [r.image for r in found[:6] + found[7:13]] == [jpeg(seed=10 * p + i) for p in range(2) for i in range(6)]
    assert found[6].image == (jpeg(seed=10) if form == "struct" else b"")
    assert found[0].captions == ["dog 0", "x"]
    assert found[6].captions == []
    assert found[0].metadata == {"licence": "CC0"}
    monkeypatch.setattr(source, "_keep", 2)
    with ThreadPoolExecutor(8) as pool:
        numbers = np.random.default_rng(0).integers(0, 14, 200).tolist()
        assert list(pool.map(source.__getitem__, numbers)) == [found[number] for number in numbers]
    assert len(source._slots) <= 2


def test_a_row_group_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"image": [b"x" * 100], "text": ["a"]}), tmp_path / "a.parquet")
    monkeypatch.setattr(inline_images, "MAX_GROUP", 50)
    with pytest.raises(UsageError, match=r"a\.parquet: a row group of .*row_group_size"):
        open_dataset(str(tmp_path / "a.parquet"))


def test_jsonl_with_base64(tmp_path: Path) -> None:
    text = base64.b64encode(jpeg()).decode()
    rows = [{"image": text, "text": "a dog", "id": 5}, {"image": f"data:image/jpeg;base64,{text}", "text": ["a", "b"]},
            {"image": {"bytes": text, "path": "x.jpg"}, "text": None}, {"image": "not base64!"}]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    found = records(open_dataset(str(tmp_path / "a.jsonl")))
    assert [r.image for r in found] == [jpeg(), jpeg(), jpeg(), b""]
    assert [r.captions for r in found] == [["a dog"], ["a", "b"], [], []]
    assert [r.key for r in found] == ["5", "1", "x.jpg", "3"]


def test_jsonl_with_base64_in_other_encodings(tmp_path: Path) -> None:
    line = json.dumps({"image": base64.b64encode(jpeg()).decode(), "text": "a café"}, ensure_ascii=False) + "\n"
    path = tmp_path / "a.jsonl"
    for encoding in ("utf-8-sig", "cp1252"):
        path.write_bytes((line * 3).encode(encoding))
        assert [(r.image, r.captions) for r in records(open_dataset(str(path)))] == [(jpeg(), ["a café"])] * 3
    path.write_bytes(line.encode("utf-16"))
    with pytest.raises(UsageError, match=r"a\.jsonl is UTF-16, and its pictures are inside: save it as UTF-8"):
        open_dataset(str(path))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_sidecars_of_other_encodings(tmp_path: Path, encoding: str) -> None:
    write_pictures(tmp_path, "1.jpg")
    (tmp_path / "1.txt").write_bytes("a café\r\na dog".encode(encoding))
    assert records(open_dataset(str(tmp_path)))[0].captions == ["a café", "a dog"]
    write_tar(tmp_path / "a.tar", {"1.jpg": jpeg(), "1.txt": (tmp_path / "1.txt").read_bytes()})
    assert records(open_dataset(str(tmp_path / "a.tar")))[0].captions == ["a café", "a dog"]


# ---- folders and COCO


def test_a_folder_with_captions_beside_the_pictures(tmp_path: Path) -> None:
    write_pictures(tmp_path, "b.jpg", "a.b.png", "sub/c.JPEG", "sub/d.webp", ".hidden.jpg")
    (tmp_path / "b.txt").write_text("\ufeffa dog\n\na brown dog\n")
    (tmp_path / "a.b.caption").write_text("a cat")
    (tmp_path / "sub" / "c.txt").write_bytes(b"\xff")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    source = open_dataset(str(tmp_path))
    assert [(r.key, r.captions) for r in records(source)] == [
        ("a.b.png", ["a cat"]), ("b.jpg", ["a dog", "a brown dog"]), ("sub/c.JPEG", ["�"]), ("sub/d.webp", []),
    ]  # fmt: skip
    assert list(source.troubles) == ["sub/loop"]
    assert "1 of them without" in source.described


@pytest.mark.parametrize("ending", sorted(IMAGE_EXTENSIONS))
def test_every_ending_of_a_picture(tmp_path: Path, ending: str) -> None:
    kind = {"jpg": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}.get(ending, ending.upper())
    Image.open(io.BytesIO(jpeg())).save(tmp_path / f"1.{ending.upper()}", kind)
    (tmp_path / "1.TXT").write_text("a dog")
    (tmp_path / "2.png").write_bytes(b"")
    (tmp_path / "2.Caption").write_text("a cat")
    found = records(open_dataset(str(tmp_path)))
    assert [r.captions for r in found] == [["a dog"], ["a cat"]]
    assert open_image(found[0].image).size == (48, 40)
    write_tar(tmp_path / "a.tar", {f"1.{ending.upper()}": found[0].image, "1.TXT": b"a dog"})
    assert [r.image for r in records(open_dataset(str(tmp_path / "a.tar")))] == [found[0].image]


def test_what_a_folder_holds_besides_is_counted(tmp_path: Path) -> None:
    write_pictures(tmp_path, "1.jpg", "sub/2.jpg", "sub/3.jpg", "__MACOSX/._1.jpg", "__MACOSX/4.jpg")
    (tmp_path / "1.txt").write_text("a dog")
    for name in ("1.heic", "sub/2.HEIC", "sub/notes", ".DS_Store"):
        (tmp_path / name).touch()
    source = open_dataset(str(tmp_path))
    assert [r.key for r in records(source)] == ["1.jpg", "sub/2.jpg", "sub/3.jpg"]
    assert source.described.startswith(
        "3 pictures with captions in .txt files beside them, 2 of them without a caption"
    )
    assert source.troubles == {
        "3 other files": "left alone, neither pictures nor captions: 2 .heic, 1 without an ending"
    }
    (tmp_path / "metadata.csv").write_text("file_name,text\n./1.jpg,a dog\n")
    source = open_dataset(str(tmp_path))
    assert source.troubles == {"sub/2.jpg": "2 pictures of the folder have no row in metadata.csv"}
    assert "2 pictures of the folder have no row" in source.described


def why_not(record: Sample) -> str:
    with pytest.raises(UnreadableImageError) as error:
        open_image(record.image)
    return str(error.value)


def test_what_is_missing_is_said_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path, "p/1.jpg")
    (tmp_path / "p" / "empty.jpg").touch()
    relative = "(paths are relative to the table's folder)"
    expected = {
        "p/2.jpg": f"no such file: {tmp_path}/p/2.jpg {relative}",
        "p\\1.jpg": f"no such file: {tmp_path}/p\\1.jpg (write / instead of \\)",
        "~/1.jpg": f"no such file: {tmp_path}/~/1.jpg (~ is not expanded: write the whole path)",
        "p/1.JPG": f"no such file: {tmp_path}/p/1.JPG (there is 1.jpg)",
        "https://x.org/1.jpg": "a URL, and catlip downloads no pictures: fetch them first",
        "p": f"{tmp_path}/p is no file with a picture",
        "p/empty.jpg": "an empty file",
    }
    (tmp_path / "t.csv").write_text("image,text\np/1.jpg,a dog\n" + "".join(f"{name},a cat\n" for name in expected))
    source = open_dataset(str(tmp_path / "t.csv"))
    assert {r.key: why_not(r) for r in records(source)[1:]} == expected
    with pytest.raises(UsageError, match=r"1 of 8 pictures cannot be read.* no such file: .*; 5 files are not there"):
        pack(config=PackConfig(data=str(tmp_path / "t.csv"), out=str(tmp_path / "s")))
    assert not (tmp_path / "s").exists()
    pq.write_table(pa.table({"image": [{"bytes": None, "path": "p/1.jpg"}, {"bytes": None, "path": "no.jpg"}],
                             "text": ["a dog", "a cat"]},
                            schema=pa.schema({"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
                                              "text": pa.string()})), tmp_path / "x.parquet")  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("x.parquet", "./x.parquet", f"{tmp_path}/x.parquet"):
        found = records(open_dataset(name))
        assert found[0].image == jpeg(seed=7)
        assert why_not(found[1]).startswith("no such file: ")


def test_pack_says_how_many_have_no_caption(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "a.tar", {"1.jpg": jpeg(), "1.txt": b"a dog", "2.jpg": jpeg(), "2.txt": b"", "3.jpg": jpeg(),
                                   "4.jpg": jpeg(), "4.json": b'{"url": "x"}'})  # fmt: skip
    pack(config=PackConfig(data=str(tmp_path / "a.tar"), out=str(tmp_path / "s")))
    said = capsys.readouterr().out
    assert "4 samples in 1 tar, 2 of them without a caption" in said
    assert "3 of 4 samples have no caption, e.g. 2" in said


def test_folders_of_other_things(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no pictures"):
        open_dataset(str(tmp_path))
    write_pictures(tmp_path, "1.jpg")
    with pytest.raises(UsageError, match=r"1 pictures but not one caption; expected .*metadata\.csv"):
        open_dataset(str(tmp_path))
    (tmp_path / "metadata.csv").write_text("file_name,text\n1.jpg,a dog\n")
    assert [r.captions for r in records(open_dataset(str(tmp_path)))] == [["a dog"]]
    (tmp_path / "metadata.csv").unlink()
    write_tar(tmp_path / "a.tar", {"1.jpg": jpeg(), "1.txt": b"a cat"})
    assert [r.captions for r in records(open_dataset(str(tmp_path)))] == [["a cat"]]


@pytest.mark.parametrize("where", ["annotations", "val2017", "images", "images/val2017", "../val2017.tar", "nowhere"])
def test_coco_captions(tmp_path: Path, where: str) -> None:
    (tmp_path / "annotations").mkdir()
    if where.endswith(".tar"):
        write_tar(tmp_path / "val2017.tar", {"000.jpg": jpeg(seed=7), "001.jpg": jpeg(seed=7)})
    elif where != "nowhere":
        write_pictures(tmp_path / where, "000.jpg", "001.jpg")
    path = tmp_path / "annotations" / "captions_val2017.json"
    path.write_text(json.dumps({
        "images": [{"id": 9, "file_name": "000.jpg", "license": 3}, {"id": 8, "file_name": "001.jpg"}],
        "annotations": [{"image_id": 9, "caption": "a dog"}, {"image_id": 9, "caption": "a brown dog"}],
    }))  # fmt: skip
    if where == "nowhere":
        with pytest.raises(UsageError, match=r"000\.jpg is in none of .*val2017"):
            open_dataset(str(path))
        return
    first, second = records(open_dataset(str(path)))
    assert first == Sample("000.jpg", jpeg(seed=7), ["a dog", "a brown dog"], None, {"id": 9, "license": 3})
    assert (second.image, second.captions) == (jpeg(seed=7), [])


def test_captions_find_the_pictures_of_their_own_names(tmp_path: Path) -> None:
    names = ["v1/1.jpg", "v2/1.jpg", "shot.jpg", "shot.crop.jpg", "Track 2.0.jpg", "Track 2.1.jpg", "a.png", "a.jpg",
             "photo.v1.JPG"]  # fmt: skip
    write_tar(tmp_path / "images.tar", {name: name.encode() for name in names})
    (tmp_path / "captions.json").write_text(json.dumps({name: [f"a {name}"] for name in reversed(names)}))
    found = records(open_dataset(str(tmp_path / "captions.json")))
    assert [(r.key, r.image.decode(), r.captions) for r in found] == [(n, n, [f"a {n}"]) for n in reversed(names)]


@pytest.mark.parametrize(
    ("members", "wanted", "says"),
    [
        (["1.jpg"], ["v1/1.jpg", "v2/1.jpg"], "'v1/1.jpg' and 'v2/1.jpg' would both be '1.jpg'"),
        (["v1/1.jpg", "v2/1.jpg"], ["1.jpg"], "'1.jpg' could be 'v1/1.jpg' or 'v2/1.jpg'"),
        (["v2/1.jpg"], ["v1/1.jpg"], "v1/1.jpg is in none of"),
        (["1.png"], ["1.jpg"], "1.jpg is in none of"),
    ],
)
def test_captions_of_a_namesake_are_refused(tmp_path: Path, members: list[str], wanted: list[str], says: str) -> None:
    write_tar(tmp_path / "images.tar", dict.fromkeys(members, b"x"))
    (tmp_path / "captions.json").write_text(json.dumps({name: ["a dog"] for name in wanted}))
    with pytest.raises(UsageError, match=says):
        open_dataset(str(tmp_path / "captions.json"))


def test_pictures_that_a_tar_lacks_are_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "images.tar", {"train/1.jpg": b"1"})
    (tmp_path / "captions.json").write_text('{"1.jpg": ["a dog"], "2.jpg": ["a cat"]}')
    source = open_dataset(str(tmp_path / "captions.json"))
    assert [r.image for r in records(source)] == [b"1", b""]
    assert source.troubles == {"2.jpg": "is not in images.tar"}


def test_other_json_is_refused(tmp_path: Path) -> None:
    for text, says in (("[", "cannot be read as JSON"), ("[1]", "found list"), ("{}", "found dict"),
                       ('{"images": [], "annotations": [{"image_id": 1}], "categories": []}', "boxes"),
                       ('{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1}]}', "'caption'"),
                       ('{"a": 1}', "no pictures"), ('{"1.jpg": [{"text": "a dog"}]}', "not one caption"),
                       ('{"images": [{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "a"}], "annotations": []}',
                        "two pictures are called 'a'"),
                       ('{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "annotations": []}',
                        "two pictures are called 'id 1'")):  # fmt: skip
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(UsageError, match=says):
            open_dataset(str(tmp_path / "a.json"))


@pytest.mark.skipif(not (SHARED / "coco128").is_dir(), reason="no shared data")
def test_real_coco_captions() -> None:
    source = open_dataset(str(SHARED / "coco128" / "annotations" / "captions_val2017.json"))
    assert len(source) == 128
    assert all(len(source[i].image) > 1000 and len(source[i].captions) >= 5 for i in range(0, 128, 16))


# ---- mixtures


def test_mixtures(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", {f"{name}{i}.jpg": jpeg() for i in range(3)})
    write_pictures(tmp_path, "1.jpg")
    (tmp_path / "c.csv").write_text("image,text\n1.jpg,a dog\n")
    source = open_dataset(f"{tmp_path}/[ab].tar@2.5 + {tmp_path}/c.csv")
    assert isinstance(source, Mixture)
    assert source.parts == [(6, 2.5), (1, 1.0)]
    assert source.shards.tolist() == [3, 3, 1]
    assert [r.key for r in records(source)] == ["a0", "a1", "a2", "b0", "b1", "b2", "1.jpg"]
    alone = open_dataset(f"{tmp_path}/a.tar")
    assert alone.parts == [(3, 1.0)]
    (tmp_path / "a.tar").rename(tmp_path / "a.tar@2")
    with pytest.raises(UsageError, match="greater than 0"):
        open_dataset(f"{tmp_path}/b.tar@0")


def test_files_of_several_kinds_are_refused(tmp_path: Path) -> None:
    for name in ("a.tar", "b.csv", "c.xyz"):
        (tmp_path / name).touch()
    for pattern in ("*", "c.xyz"):
        with pytest.raises(UsageError, match=r"expected files of one kind.*found.*\.xyz"):
            open_dataset(f"{tmp_path}/{pattern}")


def test_pack_keeps_metadata(tmp_path: Path) -> None:
    write_pictures(tmp_path, "1.jpg")
    (tmp_path / "t.csv").write_text("image,text,licence,url\n1.jpg,a dog,CC0,https://x.org\n")
    pack(config=PackConfig(data=str(tmp_path / "t.csv"), out=str(tmp_path / "s")))
    pack(config=PackConfig(data=str(tmp_path / "s"), out=str(tmp_path / "again")))
    record = open_dataset(str(tmp_path / "again"))[0]
    assert record.metadata == {"key": "1.jpg", "licence": "CC0", "url": "https://x.org"}
    assert record.captions == ["a dog"]


# ---- captions alone


def test_captions_are_read_without_the_pictures(tmp_path: Path) -> None:
    coco = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "caption": "a dog"}]}
    (tmp_path / "c.json").write_text(json.dumps(coco))
    (tmp_path / "d.json").write_text('{"1.jpg": ["a dog"], "2.jpg": []}')
    write_pictures(tmp_path / "folder", "1.jpg", "2.jpg")
    (tmp_path / "folder" / "1.txt").write_text("a dog")
    table = {"image": [{"bytes": jpeg(), "path": "1.jpg"}], "uid": ["1"], "text": [["a dog", "a cat"]]}
    pq.write_table(pa.table(table), tmp_path / "p.parquet")
    (tmp_path / "j.jsonl").write_text('{"uid": 7, "text": "a dog"}\n{"text": ["a", "b"]}\n')
    for name, keys, captions in (
        ("c.json", {"key": ["1.jpg"]}, [["a dog"]]), ("d.json", {"key": ["1.jpg", "2.jpg"]}, [["a dog"], []]),
        ("folder", {"key": ["1.jpg", "2.jpg"]}, [["a dog"], []]), ("p.parquet", {"uid": ["1"]}, [["a dog", "a cat"]]),
        ("j.jsonl", {"uid": ["7", None]}, [["a dog"], ["a", "b"]]),
    ):  # fmt: skip
        (rows,) = read_rows(tmp_path / name, Columns.of(tmp_path / name, None, None))
        assert {key: list(values_of(column)) for key, column in rows.keys.items()} == keys
        assert rows.captions == captions


def test_long_work_shows_how_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tar(tmp_path / "a.tar", {"1.jpg": jpeg()})
    for silent, rank, shown in ((9.0, "0", False), (0.0, "1", False), (0.0, "0", True)):
        monkeypatch.setattr("catlip.notices.SILENT", silent)
        monkeypatch.setenv("RANK", rank)
        assert len(TarDataset([path], "a")) == 1
        captured = capsys.readouterr()
        assert ("indexing" in captured.err) == shown
        assert not captured.out
