"""Captions a second: catlip's rule against the official rule as NLTK runs it, in one run, on one core.

    uv run --with nltk benchmarks/labels.py CAPTIONS.tsv.gz

The official rule is timed through NLTK if its data is installed (`nltk.download` of punkt_tab, wordnet and
averaged_perceptron_tagger_eng). Without the tagger's data (a third of the official rule's time) the
rest is timed, which flatters NLTK, and the output says so.
"""

import argparse
import gzip
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

DATACOMP = 1_280_000_000  # captions


def captions_of(path: Path) -> list[str]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        return [line.rstrip("\n").split("\t")[-1] for line in lines][1:]


def rate(label: Callable[[list[str]], object], captions: list[str], batch: int = 4096) -> float:
    began = time.perf_counter()
    for start in range(0, len(captions), batch):
        label(captions[start : start + batch])
    return len(captions) / (time.perf_counter() - began)


def official(captions: list[str], vocabulary: list[str]) -> tuple[str, float] | None:
    """The official rule's steps with NLTK: what could be run here, and its captions a second."""
    try:
        import nltk  # pyright: ignore[reportMissingImports]
        from nltk.corpus import wordnet  # pyright: ignore[reportMissingImports]
        from nltk.stem import WordNetLemmatizer  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None

    def labels(tokens: list[str]) -> list[int]:
        found = []
        for token in tokens:
            lemma = WordNetLemmatizer().lemmatize(token)  # a new one each time, as there
            try:
                synset: Any = wordnet.synset(f"{lemma}.n.01")
            except Exception:
                continue
            key = f"{synset.pos()}{synset.offset()}"
            if synset.name() == f"{lemma}.n.01" and key in vocabulary:  # a list, searched from its start, as there
                found.append(vocabulary.index(key))
        return found

    def whole(caption: str) -> list[int]:
        tokens = nltk.word_tokenize(caption.lower())
        nltk.pos_tag(tokens)  # computed and never used, there too
        return labels(tokens)

    def untagged(caption: str) -> list[int]:
        return labels(nltk.tokenize.NLTKWordTokenizer().tokenize(caption.lower()))

    for name, step in (("all of it", whole), ("without sentences and tagging: NLTK's data is absent", untagged)):
        try:
            step(captions[0])
        except (LookupError, OSError):
            continue
        return name, rate(lambda part, step=step: [step(c) for c in part], captions[:2000], 1000)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("captions", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    captions = captions_of(args.captions)
    began = time.perf_counter()
    from catlip import Labeler

    labeler = Labeler()
    labeler(["a dog"])
    start_up = time.perf_counter() - began
    first = rate(labeler, captions)
    warm = [rate(labeler, captions) for _ in range(args.repeats)]
    sparse = [rate(labeler.sparse, captions) for _ in range(args.repeats)]
    ours = statistics.median(warm)
    print(f"{len(captions):,} captions, one core, Python {sys.version.split()[0]}")
    print(f"nouns    start-up                {start_up:10.2f} s")
    print(f"nouns    first pass (words new)  {first:10,.0f} captions/s")
    print(f"nouns    lists of synsets        {ours:10,.0f} captions/s ({min(warm):,.0f} to {max(warm):,.0f})")
    print(f"nouns    sparse arrays           {statistics.median(sparse):10,.0f} captions/s")
    corenet = rate(Labeler("corenet"), captions[:20_000])
    print(f"corenet  catlip's own            {corenet:10,.0f} captions/s")
    counts = Counter(label for labels in Labeler("corenet")(captions[:50_000]) for label in labels)
    # The official vocabulary has 24,320 entries by frequency; ours begins with this corpus' and is filled up.
    ranked = list(dict.fromkeys([*(label for label, _ in counts.most_common()), *labeler.synsets]))[:24_320]
    peer = official(captions, [f"n{int(label[1:])}" for label in ranked])
    if peer is None:
        print("corenet  NLTK                    not installed: uv run --with nltk benchmarks/labels.py ...")
    else:
        print(f"corenet  NLTK                    {peer[1]:10,.0f} captions/s   ({peer[0]})")
        print(f"ratio nouns : NLTK               {ours / peer[1]:10,.0f}")
    print(f"DataComp-1.3B, at this rate      {DATACOMP / ours / 3600:10.1f} core-hours")


if __name__ == "__main__":
    main()
