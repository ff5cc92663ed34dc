"""Counting and labelling whole corpora: every kind of file alike, in pieces, after a kill."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catlip.data import corpus
from catlip.data.corpus import VocabularyConfig, build_vocabulary, write_labels
from catlip.data.dataset import Dataset, Sample, lines
from catlip.data.open import open_dataset
from catlip.data.subsets import Subset
from catlip.data.tables import separator_of
from catlip.errors import UsageError
from catlip.labels.labeler import Labeler
from catlip.labels.vocabulary import Vocabulary
from tests.conftest import write_tar

CAPTIONS = [f"a {a} near a {b}" for a in ("dog", "cat", "horse") for b in ("lake", "car", "")] + ["", "running fast"]
LABELER = Labeler()
NAIVE = Counter(label for labels in LABELER(CAPTIONS) for label in labels)
KEYS = [f"k{i}" for i in range(len(CAPTIONS))]


def write(folder: Path, kind: str) -> Path:
    path = folder / f"c.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"uid": KEYS, "TEXT": CAPTIONS}), path, row_group_size=4)
    elif kind == "csv":
        path.write_text("uid,TEXT\n" + "".join(f'{k},"{c}"\n' for k, c in zip(KEYS, CAPTIONS, strict=True)))
    elif kind == "tsv.gz":
        with gzip.open(path, "wt") as file:
            file.write("uid\tTEXT\n" + "".join(f"{k}\t{c}\n" for k, c in zip(KEYS, CAPTIONS, strict=True)))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"uid": k, "TEXT": c}) + "\n" for k, c in zip(KEYS, CAPTIONS, strict=True)))
    else:
        write_tar(path, {f"{k}.txt": c.encode() for k, c in zip(KEYS, CAPTIONS, strict=True)})
    return path


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv.gz", "jsonl", "tar"])
def test_every_kind_of_file_gives_the_same_counts(tmp_path: Path, kind: str) -> None:
    found = build_vocabulary(str(write(tmp_path, kind)), out=str(tmp_path / "v.tsv"), workers=1)
    assert dict(zip(found.synsets, found.counts, strict=True)) == NAIVE
    assert found.samples == len(CAPTIONS)
    assert Vocabulary.load(tmp_path / "v.tsv") == found
    assert not (tmp_path / "v.tsv.parts").exists()


def test_labels_as_parquet_keep_the_keys(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path, "parquet").rename(tmp_path / f"{name}.parquet")
    counts = write_labels(str(tmp_path / "[ab].parquet"), out=str(tmp_path / "out"), workers=2)
    assert counts.samples == 2 * len(CAPTIONS)
    rows = [row for file in sorted((tmp_path / "out").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    assert [row["uid"] for row in rows] == KEYS * 2
    assert [row["synsets"] for row in rows] == LABELER(CAPTIONS) * 2


def test_labels_of_a_vocabulary_only(tmp_path: Path) -> None:
    data = str(write(tmp_path, "csv"))
    build_vocabulary(data, out=str(tmp_path / "v.tsv"), max_size=2, workers=1)
    write_labels(data, out=str(tmp_path / "out"), vocab=str(tmp_path / "v.tsv"), workers=1)
    table = pq.read_table(next((tmp_path / "out").glob("*.parquet"))).to_pylist()
    kept = set(Vocabulary.load(tmp_path / "v.tsv").synsets)
    assert [row["synsets"] for row in table] == [[s for s in found if s in kept] for found in LABELER(CAPTIONS)]


def test_labels_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    data, out = str(write(tmp_path, "csv")), str(tmp_path / "out")
    write_labels(data, out=out, workers=1)
    write_labels(data, out=out, workers=1)  # the same again is done already
    with pytest.raises(UsageError, match=r"`out`.*other captions or settings"):
        write_labels(data, out=out, workers=1, ancestors=1)
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 1


def test_a_killed_run_goes_on_by_file(tmp_path: Path) -> None:
    for i in range(6):
        pq.write_table(pa.table({"caption": CAPTIONS * 3000}), tmp_path / f"{i}.parquet")
    command = [
        sys.executable,
        "-m",
        "catlip.cli",
        "vocab",
        str(tmp_path / "*.parquet"),
        "--out",
        str(tmp_path / "v.tsv"),
        "--workers",
        "1",
    ]
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1]
    )
    parts = tmp_path / "v.tsv.parts"
    while not list(parts.glob("*.json")) and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = {file.name: file.stat().st_mtime_ns for file in parts.glob("*.json")}
    assert 1 <= len(done) < 6
    again = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=True)
    assert f"{len(done)} of 6 files were done before" in again.stdout
    found = Vocabulary.load(tmp_path / "v.tsv")
    assert dict(zip(found.synsets, found.counts, strict=True)) == {s: 18_000 * n for s, n in NAIVE.items()}


def several(folder: Path) -> str:
    for i in range(4):
        write(folder, "csv").rename(folder / f"{i}.csv")
    return str(folder / "?.csv")


def test_processes_are_started_from_any_script(tmp_path: Path) -> None:
    """Also from one whose main module does the work when it is imported."""
    script = tmp_path / "mine.py"
    script.write_text(f"import catlip\nprint(catlip.Vocabulary.count({several(tmp_path)!r}, workers=2).samples)\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(4 * len(CAPTIONS))


def test_a_mistake_in_one_of_many_files_is_told_and_ends_the_processes(tmp_path: Path) -> None:
    data = several(tmp_path)
    (tmp_path / "3.csv").write_bytes(b"uid,text\n1,\xff\n")
    with pytest.raises(UsageError, match=r"3\.csv"):
        build_vocabulary(data, out=str(tmp_path / "v.tsv"), text_col="TEXT", workers=2)
    assert not (tmp_path / "v.tsv").exists()


def test_a_process_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = subprocess.PIPE
    monkeypatch.setattr(
        "catlip.data.caption_workers._start",
        lambda: subprocess.Popen(
            [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], stdin=pipe, stdout=pipe, text=True
        ),
    )
    with pytest.raises(UsageError, match=r"\.csv: the process that labelled it ended \(-9\); fewer `workers`"):
        build_vocabulary(several(tmp_path), out=str(tmp_path / "v.tsv"), workers=2)


def test_a_ray_cluster_does_the_same_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Daft with its own runner in Ray's place."""
    daft = pytest.importorskip("daft")
    asked = []
    monkeypatch.setattr(daft, "set_runner_ray", asked.append)
    found = Vocabulary.count(several(tmp_path), runner="ray", address="ray://head:10001")
    assert dict(zip(found.synsets, found.counts, strict=True)) == {s: 4 * n for s, n in NAIVE.items()}
    assert asked == ["ray://head:10001"]
    monkeypatch.setitem(sys.modules, "daft", None)
    with pytest.raises(UsageError, match=r"`runner` ray: needs Daft and Ray: pip install 'catlip\[ray\]'"):
        Vocabulary.count(several(tmp_path), runner="ray")


def test_mistakes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("words,price\na dog,3\n")
    with pytest.raises(UsageError, match=r"words, price.*`text_col`"):
        build_vocabulary(str(tmp_path / "a.csv"), out=str(tmp_path / "v.tsv"))
    pq.write_table(pa.table({"caption": [1, 2, 3]}), tmp_path / "n.parquet")
    with pytest.raises(UsageError, match=r"column 'caption' holds int64, not text"):
        build_vocabulary(str(tmp_path / "n.parquet"), out=str(tmp_path / "v.tsv"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UsageError, match=r"broken\.parquet"):
        build_vocabulary(str(tmp_path / "broken.parquet"), out=str(tmp_path / "v.tsv"))
    (tmp_path / "x.jsonl").write_text('{"text": "a dog"}\nno json\n')
    with pytest.raises(UsageError, match=r"x\.jsonl, line 2"):
        build_vocabulary(str(tmp_path / "x.jsonl"), out=str(tmp_path / "v.tsv"))
    with pytest.raises(UsageError, match="`min_count` 99"):
        build_vocabulary(str(write(tmp_path, "csv")), out=str(tmp_path / "w.tsv"), min_count=99)
    assert not list(tmp_path.glob("w.tsv*")), "nothing half-written"
    assert not list(tmp_path.glob("v.tsv*"))


def test_missing_captions_are_counted(tmp_path: Path, capsys) -> None:
    pq.write_table(pa.table({"caption": ["a dog", None, ""]}), tmp_path / "m.parquet")
    build_vocabulary(str(tmp_path / "m.parquet"), out=str(tmp_path / "v.tsv"))
    assert "3 captions (2 missing)" in capsys.readouterr().out


def test_what_is_left_out_is_said_and_the_same_as_for_training(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "tars").mkdir()
    cut = write_tar(tmp_path / "tars" / "a.tar", {f"{i}.{e}": b"a dog" * (e == "txt" and i != 1) for i in range(3)
                                                  for e in ("jpg", "txt")})  # fmt: skip
    cut.write_bytes(cut.read_bytes()[:3590])
    (tmp_path / "t.csv").write_text('image,caption\n1.jpg,"a cat"\n2.jpg,a,b\n3.jpg,nan\n4.jpg,"a lone horse\n')
    data = f"{tmp_path}/tars + {tmp_path}/t.csv"
    found = build_vocabulary(data, out=str(tmp_path / "v.tsv"), workers=1)
    said = capsys.readouterr().out
    source = open_dataset(data)
    captions = list(source.captions())
    assert (found.samples, found.captions) == (len(captions), len(captions))
    assert dict(zip(found.synsets, found.counts, strict=True)) == Counter(
        label for some in captions for label in {name for found in LABELER(some) for name in found}
    )
    assert f"{sum(not some for some in captions)} missing" in said
    assert f"{len(source.troubles)} troubles, e.g. a.tar" in said


def test_foreign_captions_are_warned_of(tmp_path: Path, capsys) -> None:
    pq.write_table(
        pa.table({"caption": ["ein Hund läuft über die Wiese", "a dog runs over the grass"] * 50}),
        tmp_path / "f.parquet",
    )
    build_vocabulary(str(tmp_path / "f.parquet"), out=str(tmp_path / "v.tsv"))
    assert "50.0% of the captions are not in English" in capsys.readouterr().out


class Captions(Dataset):
    """A dataset of one's own: images that nobody reads while captions are counted."""

    name = "mine"

    def __len__(self) -> int:
        return len(CAPTIONS)

    def __getitem__(self, index: int) -> Sample:
        return Sample(str(index), b"", lines(CAPTIONS[index]))


def pairs() -> list[tuple[np.ndarray, str]]:
    return [(np.zeros((2, 2, 3), np.uint8), caption) for caption in CAPTIONS]


@pytest.mark.parametrize(
    "data",
    [CAPTIONS, [[caption] for caption in CAPTIONS], iter(CAPTIONS), tuple(CAPTIONS), pairs(), Captions(),
     Subset(Captions(), np.arange(len(CAPTIONS)))],
    ids=["list", "lists", "iterator", "tuple", "pairs", "dataset", "subset"],
)  # fmt: skip
def test_captions_in_memory_are_counted_as_files_are(data: Any, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = Vocabulary.count(data)
    assert dict(zip(found.synsets, found.counts, strict=True)) == NAIVE
    assert found.samples == len(CAPTIONS)
    assert not list(tmp_path.iterdir()), "nothing is written unless asked for"


@pytest.mark.parametrize(("data", "samples"), [(iter([]), 0), ([], 0), (iter([None]), 1)])
def test_nothing_counts_as_nothing(data: Any, samples: int) -> None:
    config = VocabularyConfig(data=data)
    counts, _ = corpus._count_in_memory(config, config.labeler())
    assert counts.samples == samples


def test_several_captions_of_an_image_count_once() -> None:
    found = Vocabulary.count([["a dog", "the dog and a cat"], [], None, "a cat"])
    assert dict(zip(found.names, found.counts, strict=True)) == {"cat": 2, "dog": 1}
    assert (found.samples, found.captions) == (4, 5)


def test_counting_files_from_python_takes_the_settings_of_the_verb(tmp_path: Path) -> None:
    path = write(tmp_path, "csv")
    found = Vocabulary.count(str(path), min_count=3, rule="corenet", workers=1)
    assert (found.rule, min(found.counts) >= 3) == ("corenet", True)
    assert list(tmp_path.iterdir()) == [path]
    assert Vocabulary.count(path, out=tmp_path / "v.tsv", max_size=2) == Vocabulary.load(tmp_path / "v.tsv")
    with pytest.raises(UsageError, match="there is no setting `min_counts`, did you mean 'min_count'"):
        Vocabulary.count(path, min_counts=3)
    with pytest.raises(UsageError, match=r"catlip\.Labeler\(\)"):
        write_labels(CAPTIONS, out="labels")  # pyright: ignore[reportArgumentType]


def test_a_vocabulary_shows_itself(tmp_path: Path, capsys) -> None:
    found = Vocabulary.count(CAPTIONS)
    assert str(found).startswith(f"Vocabulary of {len(found)} labels, counted on {len(CAPTIONS)} samples")
    assert f"dog {NAIVE['n02084071']}" in repr(found)
    alone = found.report(tmp_path / "alone.html", min_count=2).read_text()
    assert "no examples: 'captions in memory'" in capsys.readouterr().out
    page = found.report(tmp_path / "labels.html", pairs()).read_text()
    assert "The long tail" in alone
    assert "Captions without a label" not in alone
    assert "running fast" in page
    assert "Search labels" in page
    assert page.count("data:image/jpeg") > 10


def test_a_label_is_called_by_the_word_that_captions_use_most(tmp_path: Path) -> None:
    captions = [
        "two boys and a toy",
        "a boy on a bike",
        "boys on a bike",
        "a bicycle",
        "a toy",
        "toys",
        "a cyclist",
        "a bike",
    ]
    vocabulary = build_vocabulary([[caption] for caption in captions], out=str(tmp_path / "vocab.tsv"))
    names = dict(zip(vocabulary.synsets, vocabulary.names, strict=True))
    assert [names[synset] for synset in ("n10285313", "n02834778", "n03964744")] == ["boy", "bike", "toy"]
    assert len(names) == 4
    assert "cyclist" in names.values()  # too rare: WordNet's own
    assert Vocabulary.load(tmp_path / "vocab.tsv").name("n10285313") == "boy"


@pytest.mark.parametrize("separator", ["; ", "|", ","])
def test_a_column_of_tags_is_read_tag_by_tag(tmp_path: Path, separator: str, capsys) -> None:
    rows = [("dog", "red ball", "beach"), ("golden retriever", "lawn"), ("cat",)]
    pq.write_table(
        pa.table({"uid": ["1", "2", "3"], "tags": [separator.join(row) for row in rows]}), tmp_path / "t.parquet"
    )
    write_labels(str(tmp_path / "t.parquet"), out=str(tmp_path / "out"), workers=1)
    assert f"tags separated by {separator.strip()!r}" in capsys.readouterr().out
    found = pq.read_table(next((tmp_path / "out").glob("*.parquet"))).to_pylist()
    assert [set(row["synsets"]) for row in found] == [{s for some in LABELER(list(row)) for s in some} for row in rows]


@pytest.mark.parametrize(
    "texts",
    [
        ["a dog, a cat and a bird", "two men, one in red, run", "a lake"],
        ["dog", "red ball", "cat"],
        ["one cell; says nothing"],
        ["Sunset over the lake; photo by Ann", "Dogs; playing in the snow on a cold day"],
        [],
    ],
)
def test_sentences_are_no_tags(texts: list[str]) -> None:
    assert separator_of(texts) == ""


def test_labels_that_are_everywhere_can_be_left_out(tmp_path: Path) -> None:
    found = Vocabulary.count(["a dog on a lawn"] * 6 + ["a cat"] * 4, max_share=0.5)
    assert found.names == ["cat"]
    with pytest.raises(UsageError, match="`max_share` 0"):
        Vocabulary.count(["a dog"], max_share=0)
