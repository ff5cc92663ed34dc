"""The report on a corpus' labels: look at them before paying for a GPU. One HTML file, nothing to install or serve."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from catlip import page
from catlip.data.caption_files import read_rows
from catlip.data.corpus import corpus_files
from catlip.data.dataset import Dataset
from catlip.data.images import UnreadableImageError, open_image, upright
from catlip.data.open import open_dataset
from catlip.errors import UsageError
from catlip.labels.labeler import Labeler
from catlip.labels.vocabulary import Vocabulary
from catlip.notices import say
from catlip.report.run_report import is_run, write_report

LOOKED_AT = 20_000  # samples read for examples and for the words that were dropped
PICTURES = 96  # with their captions and labels
FIRST = 10  # of them, above everything else
LISTED = 20_000  # labels in the table
PAGES = 40  # labels with a page of pictures of their own
PER_PAGE = 9
THUMBNAIL = 160  # pixels


@dataclass(kw_only=True, slots=True)
class ReportConfig:
    """Write a report on a run, or on a corpus and its vocabulary."""

    data: str  # a run folder, or the corpus that the vocabulary was counted on
    vocab: str = (
        ""  # for a corpus: vocab.tsv, best made without --min-count, so that the cut is seen as a line in the tail
    )
    out: str = "report.html"
    min_count: int = 1  # where the cut is drawn
    text_col: str | None = None
    image_col: str | None = None


@dataclass(slots=True)
class Examples:
    """What a look at the first samples brought."""

    samples: int
    without: int  # of them, without a label
    unlabelled: list[str]  # some of their captions
    dropped: dict[str, Counter[str]]  # reason -> words


def report(config: ReportConfig) -> Path:
    """The file written. Raises UsageError before anything is written."""
    if is_run(Path(config.data)):
        path = write_report(Path(config.data))
        say(f"{path}: curves, labels, pictures")
        return path
    if not config.vocab:
        raise UsageError(f"{config.data} is no run folder; for a report on a corpus, `vocab` is needed")
    columns = {"text_col": config.text_col, "image_col": config.image_col}
    return label_report(Vocabulary.load(config.vocab), config.data, config.out, min_count=config.min_count, **columns)


def label_report(
    vocabulary: Vocabulary,
    data: Any,
    out: str | Path,
    *,
    min_count: int = 1,
    text_col: str | None = None,
    image_col: str | None = None,
) -> Path:
    """The page on a vocabulary, written. data: where examples come from; None: the vocabulary's source, if it is there.

    Raises UsageError for data that cannot be read, before anything is written.
    """
    labeler = vocabulary.labeler()
    try:
        captions = list(islice(_captions(vocabulary.source if data is None else data, text_col), LOOKED_AT))
    except UsageError:
        if data is not None:
            raise
        say(f"no examples: {vocabulary.source!r}, which the vocabulary was counted on, cannot be opened; give `data`")
        captions = []
    examples = _look(captions, labeler)
    pictures = vocabulary.source if data is None else data
    sheet, by_label = _cards(pictures, text_col, image_col, vocabulary, labeler) if captions else ([], {})
    parts = [
        *_numbers(vocabulary, min_count, examples),
        *([page.grid(sheet[:FIRST])] if sheet else []),
        page.heading("The long tail"),
        _tail(np.array(vocabulary.counts), min_count),
        page.heading("Labels"),
        _labels(vocabulary),
        *_by_label(vocabulary, by_label),
        *_alike(vocabulary),
    ]
    if captions:
        parts += [*_unlabelled(examples), *_dropped(examples)]
    if sheet[FIRST:]:
        parts += [page.heading("More pictures"), page.folded(f"{len(sheet) - FIRST} more", page.grid(sheet[FIRST:]))]
    name = data if isinstance(data, str | os.PathLike) else vocabulary.source
    out = page.write(Path(out), page.page(f"Labels of {Path(name).name}", *parts))
    say(f"{out}: {len(vocabulary):,} labels, {examples.samples:,} samples looked at")
    return out


def _captions(data: Any, text_col: str | None) -> Iterator[list[str]]:
    """The captions of each sample; those of files need no images."""
    if not isinstance(data, str | os.PathLike):
        yield from open_dataset(data, text_col=text_col).captions()
        return
    for paths, columns in corpus_files(str(data), text_col, None):
        for path in paths:
            for rows in read_rows(path, columns):
                yield from rows.captions


def _look(captions: list[list[Any]], labeler: Labeler) -> Examples:
    flat = [caption for several in captions for caption in several]
    labels = iter(labeler(flat))
    without, unlabelled, dropped = 0, [], {}
    for several in captions:
        found = [next(labels) for _ in several]
        without += not any(found)
        if several and not any(found) and len(unlabelled) < 40:
            unlabelled.append(" / ".join(str(caption) for caption in several if caption))
    for caption in flat[:2000]:
        for word in labeler.explain(caption) if isinstance(caption, str) else []:
            if not word.labels:
                reason = "too seldom a visible noun, here" if word.why.startswith("visible") else word.why
                dropped.setdefault(reason, Counter())[word.text] += 1
    return Examples(len(captions), without, unlabelled, dropped)


def _numbers(vocabulary: Vocabulary, min_count: int, examples: Examples) -> list[page.Html]:
    counts = np.array(vocabulary.counts)
    kept = counts >= min_count
    said = [
        f"{vocabulary.samples:,} samples with {vocabulary.captions:,} captions",
        f"{counts.sum() / max(vocabulary.samples, 1):.2f} labels a sample",
        f"{len(counts):,} different labels",
    ]
    if min_count > 1:
        covered = counts[kept].sum() / max(counts.sum(), 1)
        said.append(f"{kept.sum():,} of them occur {min_count:,} times or more and cover {covered:.2%} of the uses")
    if examples.samples:
        said.append(f"{examples.without / examples.samples:.1%} of the first {examples.samples:,} samples have none")
    return [
        page.paragraph("; ".join(said) + "."),
        page.paragraph(
            f"Rule {vocabulary.rule!r}, lexicon {vocabulary.lexicon}, source {vocabulary.source}. "
            "Labels in the vocabulary are green.",
            soft=True,
        ),
    ]


def _tail(counts: np.ndarray, min_count: int) -> page.Html:
    """Counts by rank, both axes logarithmic, and where `min_count` cuts."""
    ranks = np.unique(np.geomspace(1, len(counts), 300).astype(int))
    points = [(int(rank), max(int(counts[rank - 1]), 1)) for rank in ranks]
    cut = None
    if min_count > 1:
        kept = max(int((counts >= min_count).sum()), 1)
        cut = (kept, f"{kept:,} labels cover {counts[:kept].sum() / counts.sum():.1%} of the uses")
    series = [page.Series("labels", points)]
    return page.chart(series, "rank of the label", "samples", log_x=True, log_y=True, cut=cut, height=3.4)


def _labels(vocabulary: Vocabulary) -> page.Html:
    """All labels, to be searched."""
    top = islice(zip(vocabulary.names, vocabulary.synsets, vocabulary.counts, strict=True), LISTED)
    rows = [[n.replace("_", " "), s, f"{c:,}", f"{c / max(vocabulary.samples, 1):.2%}"] for n, s, c in top]
    return page.searchable("labels", ["label", "synset", "samples", "share"], rows)


def _alike(vocabulary: Vocabulary) -> list[page.Html]:
    """Labels of the same name, but for plural and spelling: perhaps one thing under two ids, perhaps two senses."""
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(vocabulary.names):
        groups.setdefault("".join(filter(str.isalnum, name.lower())).removesuffix("s"), []).append(i)
    several = sorted((g for g in groups.values() if len(g) > 1), key=lambda g: -vocabulary.counts[g[1]])[:40]
    if not several:
        return []
    rows = [
        [
            ", ".join(dict.fromkeys(vocabulary.names[i].replace("_", " ") for i in group)),
            ", ".join(f"{vocabulary.synsets[i]} ({vocabulary.counts[i]:,})" for i in group),
        ]
        for group in several
    ]
    title, told = "Labels of one name", "A line of your own terms (--lexicon) makes one label of two."
    return [page.heading(title), page.paragraph(told), page.table(title, ["name", "labels"], rows, text=True)]


def _unlabelled(examples: Examples) -> list[page.Html]:
    items = "".join(f"<li>{page.escape(text[:300])}</li>" for text in examples.unlabelled)
    return [page.heading("Captions without a label"), page.Html(f"<ul>{items}</ul>" if items else "<p>None.</p>")]


def _dropped(examples: Examples) -> list[page.Html]:
    ranked = sorted(examples.dropped.items(), key=lambda item: -item[1].total())[:12]
    rows = [
        [reason, f"{words.total():,}", ", ".join(word[:40] for word, _ in words.most_common(12))]
        for reason, words in ranked
    ]
    title = "Words that give no label, by reason"
    return [page.heading(title), page.table(title, ["reason", "uses", "most frequent"], rows, text=True)]


def _cards(
    data: Any, text_col: str | None, image_col: str | None, vocabulary: Vocabulary, labeler: Labeler
) -> tuple[list[page.Html], dict[str, list[page.Html]]]:
    """(cards of pictures drawn at random, cards of the most frequent labels); nothing where there are no images."""
    try:
        source = open_dataset(data, image_col=image_col, text_col=text_col)
    except UsageError:
        return [], {}
    numbers = np.random.default_rng(0).permutation(len(source))[:2000].tolist()
    by_label: dict[str, list[page.Html]] = {synset: [] for synset in vocabulary.synsets[:PAGES]}
    sheet = []
    for number in numbers:
        if len(sheet) >= PICTURES and all(len(cards) >= PER_PAGE for cards in by_label.values()):
            break
        card, labels = _card(source, number, vocabulary, labeler)
        if card is None:
            continue
        if len(sheet) < PICTURES:
            sheet.append(card)
        for label in labels:
            if len(by_label.get(label, [None] * PER_PAGE)) < PER_PAGE:
                by_label[label].append(card)
    return sheet, by_label


def _by_label(vocabulary: Vocabulary, by_label: dict[str, list[page.Html]]) -> list[page.Html]:
    """Pictures of each of the most frequent labels, folded."""
    parts = []
    for synset, cards in by_label.items():
        if cards:
            name, count = vocabulary.name(synset).replace("_", " "), vocabulary.counts[vocabulary.index(synset)]
            parts.append(page.folded(f"{name} ({synset}, {count:,})", page.grid(cards)))
    return [page.heading("Pictures of the most frequent labels"), *parts] if parts else []


def _card(source: Dataset, number: int, vocabulary: Vocabulary, labeler: Labeler) -> tuple[page.Html | None, list[str]]:
    record = source[number]
    try:
        picture = upright(open_image(record.image))
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
    except (UnreadableImageError, OSError, ValueError, SyntaxError):
        return None, []
    labels = sorted({label for found in labeler(record.captions) for label in found})
    names = [(vocabulary.name(s) if s in vocabulary else labeler.name(s)).replace("_", " ") for s in labels]
    kept = {name for label, name in zip(labels, names, strict=True) if label in vocabulary}
    caption = " / ".join(record.captions)
    picture_html = page.drawing(picture, caption, quality=75)
    return page.card(picture_html, caption, [("", page.tags(names, good=kept))]), labels
