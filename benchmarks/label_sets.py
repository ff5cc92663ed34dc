"""What labels are worth to an encoder: the same run with other labels of the same captions.

    uv run benchmarks/label_sets.py ../shared/data runs/label-sets --processes 2
        resnet10t, 64 px, 90,000 samples of Flickr8k (`flickr8k_cpu`), three seeds: seven minutes a run on a core.
    uv run benchmarks/label_sets.py ../shared/data runs/label-sets-small --small --processes 2
        32 px and 24,576 samples: a minute a run.

Variants: `one` (today's default: one concept, one label), `several` (--no-canonical --no-heads), `thin 300`, `thin 100`
and `thin 10` (--per-label), and `english` and `german`: one caption a picture, of the 5,146 that Multi30k has both of.

Judges: CIFAR-10, COCO128, and the nouns of Flickr8k test, counted with one label a concept and with several. The head
itself is judged by the average precision of rare labels on Flickr8k test, which 100 training pictures or fewer have.
Deviations are over seeds; gains are over `one` (over `english` for `german`) with their standard errors.
"""

import argparse
import glob
import gzip
import json
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from objectives import prepare, write_tar
from pool import run_all

from catlip.atomic import write_text
from catlip.data.open import open_dataset
from catlip.evaluation.held_out import open_held_out, score
from catlip.labels.vocabulary import Vocabulary
from catlip.models.weights import load
from catlip.recipes import load_recipe
from catlip.recipes.judges import open_judges
from catlip.report.comparison import ComparedRun, gain_over
from catlip.tasks.pretrain import pretrain

SETTINGS: dict[str, dict[str, Any]] = {
    "one": {},
    "several": {"canonical": False, "heads": False},
    "thin 300": {},
    "thin 100": {},
    "thin 10": {},
    "english": {},
    "german": {"language": "de"},
}
PER_LABEL = {"thin 300": 300, "thin 100": 100, "thin 10": 10}
RARE = 100  # pictures with a label, at most
MIN_COUNT = 8


def parallel(data: Path, shards: Path, out: Path) -> None:
    """english.tar and german.tar: the packed pictures that Multi30k has a caption of in both languages."""

    def lines(name: str) -> list[str]:
        with gzip.open(data / name, "rt", encoding="utf-8") as file:
            return [line.strip() for line in file]

    rows = [line.split("\t", 1) for line in lines("captions/flickr30k.tsv.gz")[1:]]
    picture = {caption.strip(): key.partition(".")[0] for key, caption in reversed(rows)}
    pairs = zip(lines("multi30k/train.en.gz"), lines("multi30k/train.de.gz"), strict=True)
    both = {picture[english]: (english, german) for english, german in pairs if english in picture}
    dataset = open_dataset(str(shards))
    for number, language in enumerate(("english", "german")):
        keyed = ((Path(sample.metadata["file"]).stem, sample) for sample in dataset)
        found = (
            (key, bytes(sample.image), both.get(key.partition("_")[0])) for key, sample in keyed
        )  # Flickr's number
        write_tar(out / f"{language}.tar", ((key, image, [pair[number]]) for key, image, pair in found if pair))


def source_of(variant: str, out: Path) -> Path:
    return out / f"{variant}.tar" if variant in ("english", "german") else out / "shards-128"


def vocabulary_of(variant: str, out: Path) -> Path:
    """Counted on the variant's captions, if it is not there."""
    path = out / f"{variant}.tsv"
    if not path.exists():
        pattern = "/*.tar" if source_of(variant, out).is_dir() else ""
        Vocabulary.count(f"{source_of(variant, out)}{pattern}", min_count=MIN_COUNT, out=str(path), **SETTINGS[variant])
    return path


def run(data: Path, out: Path, recipe: str, variant: str, seed: int) -> dict[str, Any]:
    """Train and judge, unless that was done."""
    folder = out / "runs" / f"{variant.replace(' ', '-')}-{seed}"
    if (folder / "judged.json").exists():
        return json.loads((folder / "judged.json").read_text(encoding="utf-8"))
    vocabulary, source = Vocabulary.load(vocabulary_of(variant, out)), source_of(variant, out)
    settings = replace(
        load_recipe(recipe), data=str(source), seed=seed, out=str(folder), per_label=PER_LABEL.get(variant, 0)
    )
    trained = pretrain(config=replace(settings, vocab=str(vocabulary_of(variant, out)), device="cpu"))
    encoder, flickr = load(folder), data / "flickr8k"
    nouns = (str(flickr / "val-000000.tar"), str(flickr / "test-000000.tar"))
    judges = open_judges(
        (str(data / "cifar10/train-000000.tar"), str(data / "coco128/annotations/detection_train2017.json")),
        (str(data / "cifar10/test-000000.tar"), str(data / "coco128/annotations/detection_val2017.json")),
    )
    verdicts = {judge.name: asdict(judge(encoder, torch.device("cpu"))) for judge in judges}
    for name in ("one", "several"):
        (judge,) = open_judges((), (), nouns, Vocabulary.load(vocabulary_of(name, out)))
        verdicts[f"nouns ({name})"] = asdict(judge(encoder, torch.device("cpu")))
    found: dict[str, Any] = {"judges": verdicts, "seconds": trained.seconds, "seed": seed}
    if vocabulary.language == "en":  # the test pictures have English captions
        test = open_held_out(open_dataset(nouns[1]), vocabulary, encoder.pixels)
        with torch.no_grad():
            logits = [encoder.logits(encoder.normalize(part)) for part in test.pixels.split(64)]
        scores = score(torch.cat(logits).float(), test)
        rare = torch.tensor(vocabulary.counts)[scores.classes] <= RARE
        found["head"] = {"rare": 100 * scores.average_precision[rare].mean().item(), "classes": int(rare.sum())}
        found["head"]["all"] = 100 * scores.mean_ap
    write_text(folder / "judged.json", json.dumps(found) + "\n")
    return found


def as_run(found: dict[str, Any]) -> ComparedRun:
    return ComparedRun("runs", "", 0.0, 0, 0, found["seed"], found["judges"])


def told(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The table, in Markdown."""
    names = list(next(iter(runs.values()))[0]["judges"])
    lines = [
        f"| labels | mean | gain | {' | '.join(names)} | head: rare | head: all | seeds |",
        "|---" * (6 + len(names)) + "|",
    ]
    for variant, some in runs.items():
        means = [as_run(found).score for found in some]
        base = "english" if variant == "german" else "one"
        gain = gain_over([*map(as_run, runs.get(base, []))], [*map(as_run, some)]) if variant != base else None
        judged = [f"{statistics.mean(f['judges'][name]['value'] for f in some):.2f}" for name in names]
        heads = [f["head"] for f in some if "head" in f]
        head = [f"{statistics.mean(h[k] for h in heads):.2f}" if heads else "" for k in ("rare", "all")]
        spread = f" ± {statistics.stdev(means):.2f}" if len(means) > 1 else ""
        row = [variant, f"{statistics.mean(means):.2f}{spread}", str(gain or ""), *judged, *head, str(len(some))]
        lines.append(f"| {' | '.join(row)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with flickr8k/, cifar10/, coco128/, captions/ and multi30k/")
    parser.add_argument("out", type=Path)
    parser.add_argument("--variants", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="32 px and a quarter of the samples")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e9, help="after which no run is begun")
    args = parser.parse_args()
    until = time.time() + 60 * args.minutes
    shards, _ = prepare(args.data, args.out)
    if not (args.out / "german.tar").exists():
        parallel(args.data, shards, args.out)
    for variant in {*args.variants, "one", "several"}:
        vocabulary_of(variant, args.out)
    recipe = f"{Path(__file__).with_name('objectives.py')}:small" if args.small else "flickr8k_cpu"
    tasks = [(args.data, args.out, recipe, variant, seed) for seed in range(args.seeds) for variant in args.variants]
    run_all(run, tasks, args.processes, until, lambda: None)
    runs: dict[str, list[dict[str, Any]]] = {}
    for variant in SETTINGS:
        paths = sorted(glob.glob(str(args.out / "runs" / f"{variant.replace(' ', '-')}-[0-9]" / "judged.json")))
        found = [json.loads(Path(path).read_text(encoding="utf-8")) for path in paths]
        runs |= {variant: found} if found else {}
    print("\n".join(told(runs)))


if __name__ == "__main__":
    main()
