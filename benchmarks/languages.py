"""Captions in other languages: do they get the labels of the same captions in English, and how fast?

    uv run benchmarks/languages.py ../shared/data/multi30k                    # val, which nothing was tuned on
    uv run benchmarks/languages.py ../shared/data/multi30k --part development
    uv run --with lingua-language-detector --with py3langid benchmarks/languages.py ../shared/data/multi30k --detect

The labels of the parallel English caption are the reference, so whatever the translators changed counts as a fault.
"development" is every fifth training caption; the tables were made from the other four fifths (tools/build_senses.py).
Rates are of one core, the languages in turns, words known (see `benchmarks/labels.py`), the median of the repeats.
"""

import argparse
import gzip
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from catlip import Labeler
from catlip.labels.languages.language import SHIPPED

WORDS = (3, 5, 8)  # of a caption, to tell its language by


def captions_of(folder: Path, name: str, language: str) -> list[str]:
    with gzip.open(folder / f"{name}.{language}.gz", "rt", encoding="utf-8") as lines:
        return [line.rstrip("\n") for line in lines]


def agreement(wanted: list[list[str]], found: list[list[str]]) -> tuple[float, float]:
    """(precision, recall) over all labels of all captions."""
    right = sum(len(set(a) & set(b)) for a, b in zip(wanted, found, strict=True))
    return right / max(sum(map(len, found)), 1), right / max(sum(map(len, wanted)), 1)


def rate(labeler: Labeler, captions: list[str], batch: int = 4096) -> float:
    began = time.perf_counter()
    for start in range(0, len(captions), batch):
        labeler.sparse(captions[start : start + batch])
    return len(captions) / (time.perf_counter() - began)


def detectors(codes: Sequence[str]) -> dict[str, Callable[[list[str]], list[str]]]:
    """Name -> captions to languages: ours, and what is installed of others."""
    auto: Any = Labeler(language="auto")._rule
    found: dict[str, Callable[[list[str]], list[str]]] = {
        "catlip auto": lambda captions: [("en", *SHIPPED)[i] for i in auto.languages(captions)]
    }
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier  # pyright: ignore[reportMissingImports]

        py3langid = LanguageIdentifier.from_model_file(MODEL_FILE)
        py3langid.set_languages(list(codes))
        found["py3langid"] = lambda captions: [py3langid.classify(caption)[0] for caption in captions]
    except ImportError:
        pass
    try:
        from lingua import IsoCode639_1, LanguageDetectorBuilder  # pyright: ignore[reportMissingImports]

        names = [getattr(IsoCode639_1, code.upper()) for code in codes]
        lingua = LanguageDetectorBuilder.from_iso_codes_639_1(*names).build()
        found["lingua"] = lambda captions: [
            language.iso_code_639_1.name.lower() if (language := lingua.detect_language_of(caption)) else ""
            for caption in captions
        ]
    except ImportError:
        pass
    return found


def detect(captions: dict[str, list[str]]) -> None:
    heads = "".join(f"{f'{n} words':>10}" for n in WORDS)
    print(f"\nlanguage told{'':8}{heads}   captions/s")
    for name, told in detectors(tuple(captions)).items():
        shares, seconds, count = [], 0.0, 0
        for words in WORDS:
            right = 0
            for language, some in captions.items():
                cut = [" ".join(caption.split()[:words]) for caption in some]
                began = time.perf_counter()
                right += sum(answer == language for answer in told(cut))
                seconds += time.perf_counter() - began
                count += len(cut)
            shares.append(right / sum(map(len, captions.values())))
        print(f"{name:<21}{''.join(f'{share:>10.1%}' for share in shares)}   {count / seconds:10,.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("multi30k", type=Path)
    parser.add_argument("--part", choices=("val", "development"), default="val")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--detect", action="store_true", help="compare ways to tell the language")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    languages = [code for code in ("en", *SHIPPED) if (args.multi30k / f"train.{code}.gz").is_file()]
    name, step = ("val", 1) if args.part == "val" else ("train", 5)
    captions = {code: captions_of(args.multi30k, name, code)[::step] for code in languages}
    train = {code: captions_of(args.multi30k, "train", code) for code in languages}
    labelers = {code: Labeler(language=code) for code in languages}
    rates: dict[str, list[float]] = {code: [] for code in languages}
    for _ in range(1 + args.repeats):  # the first time, words are new
        for code in languages:
            rates[code].append(rate(labelers[code], train[code]))
    wanted = labelers["en"](captions["en"])
    auto = Labeler(language="auto")
    print(f"{args.part}: {len(wanted):,} captions, {sum(map(len, wanted)) / len(wanted):.2f} labels each in English")
    print("language   precision   recall   auto: P    R   captions/s   of English   first pass")
    for code in languages:
        precision, recall = agreement(wanted, labelers[code](captions[code]))
        by_auto = "  ".join(f"{number:.3f}" for number in agreement(wanted, auto(captions[code])))
        own, english = (statistics.median(rates[key][1:]) for key in (code, "en"))
        speed = f"{own:>13,.0f}{own / english:>12.0%}{rates[code][0]:>13,.0f}"
        print(f"{code:<8}{precision:>12.3f}{recall:>9.3f}   {by_auto}{speed}")
    if args.detect:
        detect(captions)


if __name__ == "__main__":
    main()
