"""A whole corpus of captions -> counts, or labels, on one machine or a cluster; memory does not grow with it.

Daft runs the work: embedded in this process' children by default, on Ray with `--runner ray`, the same code. A task is
a file (of a large Parquet file, some row groups). Its result is written beside the output in one step, so a run that
was killed goes on with the files that are left when the same command is given again.

Why whole files as tasks and not Daft's own readers and group-by: a task that can be repeated alone is what makes a
kill harmless, and the result of one is 80,000 counters at most, whatever its size.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catlip import machine
from catlip.atomic import whole, write_text
from catlip.data.captionfiles import Columns, Rows, describe, read_rows, row_groups
from catlip.data.dataset import bounded
from catlip.data.files import is_url
from catlip.data.open import located, mixed
from catlip.errors import UsageError, refusal
from catlip.labels.labeler import Labeler
from catlip.labels.vocabulary import Vocabulary
from catlip.notices import say

FORMAT = 2  # of a task's result: those of another one are not added up
GROUPS_PER_TASK_ROWS = 2_000_000  # row groups of a Parquet file are bundled up to so many rows
LANGUAGE_SAMPLE = 512  # captions of every chunk whose language is looked at
MAX_FOREIGN = 0.1  # share of captions that are not English by their words, from which on we say so


@dataclass(kw_only=True, slots=True)
class Corpus:
    """Captions and how to label them."""

    data: str  # what `catlip pretrain` takes, on this machine; also tables without pictures. Weights do not count here
    text_col: str | None = None  # column with the captions; default: guessed by its name, and stated
    key_cols: str | None = None  # columns copied to the output of `catlip label`, comma-separated; default: guessed
    rule: Literal["nouns", "corenet"] = "nouns"
    ancestors: int = 0  # add hypernyms up to so many levels
    lexicon: str | None = None  # TSV of your own terms: phrase, label
    runner: Literal["native", "ray"] = "native"  # this machine, or a Ray cluster
    address: str | None = None  # of the Ray cluster; default: one is started here
    workers: int = 0  # processes on this machine; 0: one a core


@dataclass(kw_only=True, slots=True)
class VocabularyConfig(Corpus):
    """Count the labels of a corpus and keep the frequent ones."""

    out: str = "vocab.tsv"
    min_count: int = 1  # keep labels that occur so often or more (the paper: more than 500)
    max_size: int | None = None  # keep so many of the most frequent


@dataclass(kw_only=True, slots=True)
class LabelConfig(Corpus):
    """Write the labels of every caption as Parquet."""

    out: str  # folder for the Parquet files
    vocab: str | None = None  # keep only labels of this vocabulary


@dataclass(slots=True)
class Counts:
    """What was counted. Adds up over files."""

    samples: int = 0
    captions: int = 0
    missing: int = 0  # of the captions: one for each sample without any
    unlabelled: int = 0  # samples without a label
    labels: int = 0
    looked: int = 0  # captions whose language was looked at: the first of every few thousand
    foreign: int = 0  # of those, not English by their words
    by_synset: dict[str, int] = field(default_factory=dict)
    troubles: dict[str, str] = field(default_factory=dict)  # what was left out of the files, and why

    def add(self, other: dict[str, Any]) -> None:
        for name in ("samples", "captions", "missing", "unlabelled", "labels", "looked", "foreign"):
            setattr(self, name, getattr(self, name) + other[name])
        for synset, count in other["by_synset"].items():
            self.by_synset[synset] = self.by_synset.get(synset, 0) + count
        self.troubles.update(other["troubles"])


def build_vocabulary(cfg: VocabularyConfig) -> Vocabulary:
    """`catlip vocab`: count, prune, write vocab.tsv. Raises UsageError before the work starts where it can."""
    if cfg.min_count < 1:
        raise UsageError(f"`min_count` {cfg.min_count}: 1 or more")
    parts = Path(cfg.out + ".parts")
    counts, labeler = run(cfg, parts, labels_folder=None)
    shutil.rmtree(parts)  # the counts are complete: whatever fails from here on leaves nothing behind
    vocabulary = Vocabulary.from_counts(
        counts.by_synset,
        labeler,
        samples=counts.samples,
        captions=counts.captions,
        source=cfg.data,
        min_count=cfg.min_count,
        max_size=cfg.max_size,
    )
    vocabulary.save(cfg.out)
    kept = sum(vocabulary.counts)
    say(
        f"{cfg.out}: {len(vocabulary):,} of {len(counts.by_synset):,} labels kept; they cover "
        f"{kept / max(counts.labels, 1):.1%} of {counts.labels:,} label uses"
    )
    say("most frequent: " + ", ".join(name.replace("_", " ") for name in vocabulary.names[:12]))
    return vocabulary


def write_labels(cfg: LabelConfig) -> Counts:
    """`catlip label`: Parquet with the key columns of the input and a column `synsets`, one file per task."""
    if cfg.vocab:
        Vocabulary.load(cfg.vocab)  # a mistake is better found before the work than after it
    out = Path(cfg.out)
    counts, _ = run(cfg, out / "_parts", labels_folder=out)
    say(f"{out}: labels of {counts.samples:,} samples as Parquet")
    return counts


def run(cfg: Corpus, parts: Path, labels_folder: Path | None) -> tuple[Counts, Labeler]:
    """Do the tasks that are not done yet and add up the results of all."""
    labeler = Labeler(cfg.rule, ancestors=cfg.ancestors, lexicon=cfg.lexicon)
    inputs = corpus_files(cfg.data, cfg.text_col, cfg.key_cols)
    for paths, columns in inputs:
        say(describe(paths, columns))
    settings = {
        "rule": cfg.rule,
        "ancestors": cfg.ancestors,
        "terms": cfg.lexicon and os.path.abspath(cfg.lexicon),
        "terms_hash": labeler.terms_hash,
        "lexicon": labeler.wordnet.hash,
        "format": FORMAT,
        "parts": str(parts.absolute()),
        "labels": str(labels_folder.absolute()) if labels_folder else None,
        "vocab": getattr(cfg, "vocab", None) and os.path.abspath(cfg.vocab),  # pyright: ignore
    }
    tasks = [
        _task(path, columns, groups, settings)
        for paths, columns in inputs
        for path in paths
        for groups in row_groups(path, GROUPS_PER_TASK_ROWS)
    ]
    parts.mkdir(parents=True, exist_ok=True)
    todo = [task for task in tasks if not Path(task["part"]).is_file()]
    if len(todo) < len(tasks):
        say(f"{len(tasks) - len(todo)} of {len(tasks)} files were done before; going on with the others")
    try:
        _run_tasks(todo, settings, cfg)
    except UsageError:
        if not any(parts.glob("*.json")):
            shutil.rmtree(parts)  # nothing was done that a second try could build on
        raise
    counts = Counts()
    for task in tasks:
        counts.add(json.loads(Path(task["part"]).read_text(encoding="utf-8")))
    _summary(counts)
    return counts, labeler


def corpus_files(data: str, text_col: str | None, key_cols: str | None) -> list[tuple[list[Path], Columns]]:
    """The files that each part of `data` names, and which of their columns are read. Raises UsageError."""
    found = []
    for part, _ in mixed(data):
        _, names = located(part)
        if url := next(filter(is_url, names), None):
            raise UsageError(f"{url}: files on this machine are needed here; copy them first")
        paths = list(map(Path, names))
        found.append((paths, Columns.of(paths[0], text_col, key_cols)))
    return found


def _task(path: Path, columns: Columns, groups: list[int] | None, settings: dict[str, Any]) -> dict[str, Any]:
    """A unit of work, with the file its result goes to: named by everything that decides the result."""
    stat = path.stat()
    identity = [str(path.absolute()), stat.st_size, stat.st_mtime_ns, groups, columns.text, columns.keys, settings]
    digest = sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    name = f"{path.name.split('.')[0]}-{digest}"
    return {
        "path": str(path.absolute()),
        "text": columns.text,
        "keys": columns.keys,
        "groups": groups,
        "name": name,
        "part": f"{settings['parts']}/{name}.json",
    }


def do_task(task: dict[str, Any], settings: dict[str, Any], labeler: Labeler) -> None:
    """Label one file, write its labels if asked for, and then its counts: a task is done when its counts are there."""
    total = np.zeros(len(labeler.synsets), np.int64)
    counts = Counts()
    keep = None
    names = pa.array(labeler.synsets, pa.string())
    if settings["vocab"]:
        keep = Vocabulary.load(settings["vocab"]).classes_of(labeler) >= 0
    columns, troubles = Columns(task["text"], tuple(task["keys"])), dict[str, str]()
    with ExitStack() as files:
        writer: pq.ParquetWriter | None = None
        if settings["labels"]:
            labels_file = files.enter_context(whole(Path(settings["labels"], task["name"] + ".parquet")))
        for rows in read_rows(Path(task["path"]), columns, task["groups"], troubles):
            indices, offsets = _count(rows, labeler, keep, counts)
            total += np.bincount(indices, minlength=len(total))
            if settings["labels"]:
                table = _labels_table(rows.keys, indices, offsets, names)
                writer = writer or files.enter_context(pq.ParquetWriter(labels_file, table.schema))
                writer.write_table(table)
    counts.troubles = bounded(troubles)
    counts.labels = int(total.sum())
    counts.by_synset = {labeler.synsets[i]: int(total[i]) for i in np.flatnonzero(total)}
    write_text(Path(task["part"]), json.dumps({n: getattr(counts, n) for n in counts.__slots__}))


def _count(rows: Rows, labeler: Labeler, keep: np.ndarray | None, counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    """(labels of all samples, where those of each end), counted; keep: which labels are wanted."""
    sample_of = np.repeat(np.arange(len(rows)), [len(captions) for captions in rows.captions])
    captions = [caption for several in rows.captions for caption in several]
    indices, offsets = labeler.sparse(captions, sample_of)
    offsets = np.append(offsets, np.full(len(rows) + 1 - len(offsets), len(indices), offsets.dtype))
    if keep is not None:
        offsets = np.concatenate([[0], np.cumsum(keep[indices])])[offsets].astype(np.int32)
        indices = indices[keep[indices]]
    missing = sum(not several for several in rows.captions)
    counts.samples += len(rows)
    counts.captions += len(captions) + missing
    counts.missing += missing
    counts.unlabelled += int((np.diff(offsets) == 0).sum())
    counts.looked += len(captions[:LANGUAGE_SAMPLE])
    counts.foreign += labeler.foreign(captions[:LANGUAGE_SAMPLE])
    return indices, offsets


def _labels_table(keys: dict[str, pa.Array], indices: np.ndarray, offsets: np.ndarray, names: pa.Array) -> pa.Table:
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), names.take(pa.array(indices)))
    return pa.table({**keys, "synsets": lists})


def _run_tasks(tasks: list[dict[str, Any]], settings: dict[str, Any], cfg: Corpus) -> None:
    """Hand the tasks to Daft; raise the first error that a task met."""
    if not tasks:
        return
    os.environ["DO_NOT_TRACK"] = "true"  # before Daft is imported, or it reports to its makers
    import daft
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if cfg.runner == "ray":
        daft.set_runner_ray(cfg.address)
    workers = min(cfg.workers or machine.cores(), len(tasks))

    @daft.cls(use_process=cfg.runner == "native", max_concurrency=workers)
    class Worker:
        def __init__(self, settings_json: str) -> None:
            self.settings = json.loads(settings_json)
            self.labeler: Labeler | None = None

        @daft.method(return_dtype=daft.DataType.string())
        def __call__(self, task_json: str) -> str:
            s = self.settings
            try:
                self.labeler = self.labeler or Labeler(s["rule"], ancestors=s["ancestors"], lexicon=s["terms"])
                do_task(json.loads(task_json), s, self.labeler)
            except (UsageError, OSError) as error:
                return str(error) if isinstance(error, UsageError) else refusal(error)
            return ""

    worker = Worker(json.dumps(settings))
    frame = daft.from_pydict({"task": [json.dumps(task) for task in tasks]}).into_batches(1)
    results: Iterator[dict[str, str]] = frame.select(worker(frame["task"]).alias("error")).iter_rows(
        results_buffer_size=2 * workers
    )
    look = (TextColumn("labelling"), BarColumn(), MofNCompleteColumn(), TextColumn("files"), TimeRemainingColumn())
    with Progress(*look, transient=True) as progress:
        for result in progress.track(results, total=len(tasks)):
            if result["error"]:
                raise UsageError(result["error"])


def _summary(counts: Counts) -> None:
    say(
        f"{counts.samples:,} samples, {counts.captions:,} captions ({counts.missing:,} missing); "
        f"{counts.labels / max(counts.samples, 1):.2f} labels a sample, "
        f"{counts.unlabelled / max(counts.samples, 1):.1%} of the samples without a label"
    )
    if counts.troubles:
        first, why = next(iter(counts.troubles.items()))
        say(f"{len(counts.troubles):,} troubles, e.g. {first}: {why}")
    share = counts.foreign / max(counts.looked, 1)
    if share > MAX_FOREIGN:
        say(f"warning: {share:.1%} of the captions are not English by their words; their labels will be poor")
