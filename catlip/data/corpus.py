"""A whole corpus of captions -> a vocabulary, labels, or a balanced part of it, on one machine or a cluster.

Memory does not grow with the corpus.

A task is a file (of a large Parquet file, some row groups), done by a process of this machine or of a Ray cluster
(`caption_workers`). Its result is written beside the output in one step, so a run that was killed resumes with the
files that are left when the same command is given again.

Why whole files as tasks and not a data frame's readers and group-by: a task that can be repeated alone is what makes a
kill harmless, and the result of one is 80,000 counters at most, whatever its size.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catlip import machine
from catlip.atomic import whole, write_text
from catlip.config import configure
from catlip.data.balance import keep_probabilities, told
from catlip.data.caption_files import Columns, Rows, describe, read_rows, row_groups
from catlip.data.caption_workers import on_ray, on_this_machine
from catlip.data.counts import Counts, uses_of
from catlip.data.dataset import bounded
from catlip.data.files import is_url
from catlip.data.open import located, mixed, open_dataset
from catlip.data.order import uniforms
from catlip.errors import UsageError
from catlip.labels.labeler import SETTINGS, Labeler
from catlip.labels.vocabulary import Vocabulary
from catlip.notices import Progress, say, warn

FORMAT = 6  # of a task's result: those of another one are not added up
GROUPS_PER_TASK_ROWS = 2_000_000  # row groups of a Parquet file are bundled up to so many rows
ROWS_AT_ONCE = 4096  # samples, of captions in memory


@dataclass(kw_only=True, slots=True)
class CaptionsConfig:
    """Captions, and who reads them."""

    # What `catlip pretrain` takes, on this machine; also tables without images. Weights do not count here. In Python
    # also a Dataset, what `catlip.open` takes, or an iterable of the caption, or list of captions, of each image
    data: str
    text_col: str | None = None  # column with the captions, or several: category,colour; default: guessed, and stated
    key_cols: str | None = None  # columns copied to the output, comma-separated; default: guessed
    runner: Literal["native", "ray"] = "native"  # this machine, or a Ray cluster
    address: str | None = None  # of the Ray cluster; default: one is started here
    workers: int = 0  # processes on this machine; 0: one a core


@dataclass(kw_only=True, slots=True)
class CorpusConfig(CaptionsConfig):
    """Captions and how to label them."""

    rule: Literal["nouns", "corenet"] = "nouns"
    canonical: bool = True  # near-synonyms (girl, female child, lass) share one label
    heads: bool = True  # a phrase also carries the label of what it is a kind of (swimming pool: pool)
    language: str = "en"  # of the captions: en, de, ..., auto, a folder, or auto,FOLDER (docs/labels.md)
    ancestors: int = 0  # add hypernyms up to so many levels
    lexicon: str | None = None  # TSV of your own terms: phrase, label

    def labeler(self) -> Labeler:
        return Labeler(**{name: getattr(self, name) for name in SETTINGS})


@dataclass(kw_only=True, slots=True)
class VocabularyConfig(CorpusConfig):
    """Count the labels of a corpus and keep the frequent ones."""

    out: str = "vocab.tsv"
    min_count: int = 1  # keep labels that occur so often or more (the paper: more than 500)
    max_size: int | None = None  # keep so many of the most frequent
    max_share: float = 1.0  # leave out labels that more than this share of the samples have: they tell nothing apart


@dataclass(kw_only=True, slots=True)
class LabelConfig(CorpusConfig):
    """Write the labels of every caption as Parquet."""

    out: str  # folder for the Parquet files
    vocab: str | None = None  # keep only labels of this vocabulary, made as it was counted unless you say otherwise


@dataclass(kw_only=True, slots=True)
class BalanceConfig(CaptionsConfig):
    """Write the samples that are left when common labels are thinned, as Parquet."""

    # Folder for the Parquet files: the key columns, `captions`, and `keep`, the probability that a sample had
    out: str
    vocab: str  # vocab.tsv with the counts of these captions' labels
    per_label: int = 20_000  # samples from which on a label is thinned to about so many (MetaCLIP)
    seed: int = 0  # of the draw


def build_vocabulary(data: Any = None, *, config: VocabularyConfig | None = None, **settings: Any) -> Vocabulary:
    """`catlip vocab`: count the labels of captions, prune, and save vocab.tsv (`out=""`: do not save).

    `runner`, `address` and `workers` are for files; captions in memory are counted in this process. Raises UsageError
    before the work starts where it can.
    """
    cfg = configure(VocabularyConfig, config, data=data, **settings)
    if cfg.min_count < 1:
        raise UsageError(f"`min_count` {cfg.min_count}: 1 or more")
    if not 0 < cfg.max_share <= 1:
        raise UsageError(f"`max_share` {cfg.max_share:g}: above 0 and at most 1")
    labeler = cfg.labeler()
    if isinstance(cfg.data, str | os.PathLike):
        source = str(cfg.data)
        with TemporaryDirectory() as folder:
            parts = Path(f"{cfg.out}.parts") if cfg.out else Path(folder, "parts")
            counts = _count_files(cfg, labeler, parts)
            shutil.rmtree(parts)  # the counts are complete: whatever fails from here on leaves nothing behind
    else:
        counts, source = _count_in_memory(cfg, labeler)
    say(str(counts))
    vocabulary = Vocabulary.from_counts(
        counts.by_synset,
        labeler,
        names=counts.names(),
        samples=counts.samples,
        captions=counts.captions,
        source=source,
        min_count=cfg.min_count,
        max_size=cfg.max_size,
        max_share=cfg.max_share,
    )
    if cfg.out:
        vocabulary.save(cfg.out)
    say(
        f"{cfg.out or 'vocabulary'}: {len(vocabulary):,} of {len(counts.by_synset):,} labels kept; they cover "
        f"{sum(vocabulary.counts) / max(counts.labels, 1):.1%} of {counts.labels:,} label uses"
    )
    return vocabulary


def write_labels(
    data: str | None = None, out: str | None = None, *, config: LabelConfig | None = None, **settings: Any
) -> Counts:
    """`catlip label`: Parquet with the key columns of the input and a column `synsets`, a file for each task.

    data: files; captions in memory are labelled by calling a `Labeler`. Raises UsageError before the work starts where
    it can.
    """
    cfg = configure(LabelConfig, config, data=data, out=out, **settings)
    if not isinstance(cfg.data, str | os.PathLike):
        raise UsageError("`data`: files are labelled here; for captions in memory call catlip.Labeler()(captions)")
    labeler = cfg.labeler()
    if cfg.vocab:
        vocabulary = Vocabulary.load(cfg.vocab)  # a mistake is better found before the work than after it
        labeler = labeler if labeler.settings != Labeler().settings else vocabulary.labeler()
    counts = _count_files(cfg, labeler, Path(cfg.out, "_parts"), writes=Path(cfg.out), vocab=cfg.vocab)
    say(f"{cfg.out}: labels of {counts.samples:,} samples as Parquet")
    return counts


def balance(
    data: str | None = None, out: str | None = None, *, config: BalanceConfig | None = None, **settings: Any
) -> Counts:
    """`catlip balance`: the samples that are kept (`data/balance.py`), as Parquet, a file for each task.

    Which are drawn depends on the seed, the file's name and the place in it, not on who does the work. Raises
    UsageError before the work starts where it can.
    """
    cfg = configure(BalanceConfig, config, data=data, out=out, **settings)
    if cfg.per_label < 1:
        raise UsageError(f"`per_label` {cfg.per_label}: 1 or more")
    vocabulary = Vocabulary.load(cfg.vocab)
    draw = {"vocab": cfg.vocab, "per_label": cfg.per_label, "seed": cfg.seed}
    counts = _count_files(cfg, vocabulary.labeler(), Path(cfg.out, "_parts"), writes=Path(cfg.out), **draw)
    if counts.samples != vocabulary.samples:
        warn(
            f"`vocab` {cfg.vocab} was counted on {vocabulary.samples:,} samples, and here are {counts.samples:,}: its "
            "counts decide what is common"
        )
    before, after = (
        np.array([uses[synset] for synset in vocabulary.synsets]) for uses in (counts.by_synset, counts.kept_by_synset)
    )
    say(f"{cfg.out}: {counts.kept:,} of {counts.samples:,} samples kept\n{told(vocabulary, before, after)}")
    return counts


def corpus_files(data: str, text_col: str | None, key_cols: str | None) -> list[tuple[list[Path], Columns]]:
    """The files that each part of `data` names, and which of their columns are read. Raises UsageError."""
    found = []
    for part, _ in mixed(str(data)):
        _, names = located(part)
        if url := next(filter(is_url, names), None):
            raise UsageError(f"{url}: files on this machine are needed here; copy them first")
        paths = list(map(Path, names))
        found.append((paths, Columns.of(paths[0], text_col, key_cols)))
    return found


def _count_in_memory(cfg: VocabularyConfig, labeler: Labeler) -> tuple[Counts, str]:
    """(counts, name of the data)."""
    data: Any = cfg.data
    if not hasattr(data, "captions"):
        first = data[0] if hasattr(data, "__getitem__") and len(data) else None
        if isinstance(data, Iterator):
            begun = list(islice(data, 1))
            first, data = begun[0] if begun else None, chain(begun, data)
        if not isinstance(first, str | list | None):
            data = open_dataset(data, text_col=cfg.text_col)
    captions: Iterable[Any] = data.captions() if hasattr(data, "captions") else data
    several = ([one] if isinstance(one, str) else list(one or []) for one in captions)
    counts = Counts(language=cfg.language, troubles=bounded(getattr(data, "troubles", {})))
    while some := list(islice(several, ROWS_AT_ONCE)):
        counts.count(some, labeler)
    return counts, getattr(data, "name", "captions in memory")


def _count_files(
    cfg: CaptionsConfig,
    labeler: Labeler,
    parts: Path,
    *,
    writes: Path | None = None,
    vocab: str | None = None,
    **draw: int,
) -> Counts:
    """Do the tasks that are not done yet and add up the results of all.

    writes: folder for a Parquet file of each task. vocab: the file of the labels that count; None: all do. draw: of
    `Draw`, if not every sample is written.
    """
    inputs = corpus_files(cfg.data, cfg.text_col, cfg.key_cols)
    for paths, columns in inputs:
        say(describe(paths, columns))
    job = {
        "labeler": labeler.absolute_settings,
        "version": labeler.version,
        "terms_hash": labeler.terms_hash,
        "lexicon": labeler.data_hash,
        "format": FORMAT,
        "parts": str(parts.absolute()),
        "writes": str(writes.absolute()) if writes else None,
        "vocab": vocab and os.path.abspath(vocab),
        "vocab_hash": vocab and sha256(Path(vocab).read_bytes()).hexdigest(),
        "draw": draw,
    }
    tasks = [
        _task({**job, "path": str(path.absolute()), **asdict(columns), "groups": groups})
        for paths, columns in inputs
        for path in paths
        for groups in row_groups(path, GROUPS_PER_TASK_ROWS)
    ]
    if writes and (others := {p.stem for p in writes.glob("*.parquet")} - {t["name"] for t in tasks}):
        raise UsageError(
            f"`out` {writes} has files of other captions or settings, e.g. {min(others)}.parquet; name another "
            "folder, or delete it"
        )
    parts.mkdir(parents=True, exist_ok=True)
    todo = [task for task in tasks if not Path(task["part"]).is_file()]
    if len(todo) < len(tasks):
        say(f"{len(tasks) - len(todo)} of {len(tasks)} files were done before; going on with the others")
    try:
        _run_tasks(todo, cfg)
    except UsageError:
        if not any(parts.glob("*.json")):
            shutil.rmtree(parts)  # nothing was done that a second try could build on
        raise
    counts = Counts(language=labeler.language)
    for task in tasks:
        counts.add(json.loads(Path(task["part"]).read_text(encoding="utf-8")))
    return counts


def _task(task: dict[str, Any]) -> dict[str, Any]:
    """A unit of work, with the file its result goes to: named by everything that decides the result."""
    path = Path(task["path"])
    stat = path.stat()
    identity = json.dumps([task, stat.st_size, stat.st_mtime_ns], sort_keys=True)
    name = f"{path.name.split('.')[0]}-{sha256(identity.encode()).hexdigest()[:16]}"
    return {**task, "name": name, "part": f"{task['parts']}/{name}.json"}


def do_task(task: dict[str, Any], labeler: Labeler) -> None:
    """Label one file, write what the verb writes, and then the counts: a task is done when its counts are there."""
    vocabulary = Vocabulary.load(task["vocab"]) if task["vocab"] else None
    classes = None if vocabulary is None else vocabulary.classes_of(labeler)
    keep = None if classes is None else classes >= 0
    if vocabulary is not None and classes is not None and task["draw"]:
        table_of: Any = Draw(vocabulary.counts, classes, labeler, task)
    else:
        table_of = LabelTable(labeler)
    columns, counts, troubles = Columns(task["text"], tuple(task["keys"])), Counts(), dict[str, str]()
    with ExitStack() as files:
        writer: pq.ParquetWriter | None = None
        if task["writes"]:
            written = files.enter_context(whole(Path(task["writes"], task["name"] + ".parquet")))
        for rows in read_rows(Path(task["path"]), columns, task["groups"], troubles):
            indices, offsets = counts.count(rows.captions, labeler, keep)
            if task["writes"]:
                table = table_of(rows, indices, offsets, counts)
                writer = writer or files.enter_context(pq.ParquetWriter(written, table.schema))
                writer.write_table(table)
    counts.troubles = bounded(troubles)
    write_text(Path(task["part"]), json.dumps({name: getattr(counts, name) for name in counts.__slots__}))


class LabelTable:
    """Rows of `label`: the key columns, and the synsets of each sample."""

    def __init__(self, labeler: Labeler) -> None:
        self.synsets = pa.array(labeler.synsets, pa.string())

    def __call__(self, rows: Rows, indices: np.ndarray, offsets: np.ndarray, counts: Counts) -> pa.Table:
        synsets = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), self.synsets.take(pa.array(indices)))
        return pa.table({**rows.keys, "synsets": synsets})


class Draw:
    """Rows of `balance`: which samples of a file are kept."""

    def __init__(self, counts: list[int], classes: np.ndarray, labeler: Labeler, task: dict[str, Any]) -> None:
        """counts: of each class. classes: of each of the labeler's labels."""
        self.labeler, self.per_label, self.place = labeler, task["draw"]["per_label"], 0
        self.uses = np.where(classes >= 0, np.array(counts)[classes], 0)
        where = json.dumps([Path(task["path"]).name, task["groups"], task["draw"]["seed"]])
        self.seed = int(sha256(where.encode()).hexdigest()[:12], 16)

    def __call__(self, rows: Rows, indices: np.ndarray, offsets: np.ndarray, counts: Counts) -> pa.Table:
        keep = keep_probabilities(indices, offsets, self.uses, self.per_label)
        drawn = uniforms(np.arange(self.place, self.place + len(rows)), 1, self.seed)[:, 0] < keep
        self.place += len(rows)
        counts.kept += int(drawn.sum())
        counts.kept_by_synset.update(uses_of(indices[np.repeat(drawn, np.diff(offsets))], self.labeler))
        captions = pa.array(rows.captions, pa.list_(pa.string()))
        return pa.table({**rows.keys, "captions": captions, "keep": keep.astype(np.float32)}).filter(pa.array(drawn))


def _run_tasks(tasks: list[dict[str, Any]], cfg: CaptionsConfig) -> None:
    """Have the tasks done; raise the first error that one of them met."""
    if not tasks:
        return
    workers = min(cfg.workers or machine.cores(), len(tasks))
    errors = on_ray(tasks, workers, cfg.address) if cfg.runner == "ray" else on_this_machine(tasks, workers)
    with closing(errors), Progress("files labelled", len(tasks)) as progress:
        for error in errors:
            if error:
                raise UsageError(error)
            progress.advance(1)
