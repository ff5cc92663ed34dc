"""Two versions of catlip side by side: labels, loader and training step, in turns on the same machine.

Everything goes through the command line, whose form is a promise, so that any two versions can be compared. Each turn
runs `catlip bench data` and some steps of `flickr8k_cpu` with each version; the medians count, and their ratio.

    git worktree add ../before SOME_COMMIT
    uv run benchmarks/versions.py ../before . --data 'flickr8k/train-00000[0-2].tar'
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=6400)
    parser.add_argument("--precision", default="auto")
    args = parser.parse_args()
    found: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    with TemporaryDirectory() as folder:
        vocab = Path(folder) / "vocab.tsv"
        catlip(args.before, "vocab", args.data, "--min-count", "8", "--out", str(vocab))
        for turn in range(args.rounds):
            for which, version in enumerate((args.before, args.after)):
                out = Path(folder) / f"{turn}-{which}"
                for name, rate in measured(version, args, vocab, out).items():
                    found[name][which].append(rate)
            sys.stderr.write(f"turn {turn + 1} of {args.rounds}\n")
    print(f"{'':<28}  before    after  ratio   (per second, medians of {args.rounds} turns)")
    for name, both in found.items():
        before, after = (statistics.median(some) for some in both)
        print(f"{name:<28}{before:>8,.0f} {after:>8,.0f}  {after / before:.3f}")


def measured(version: Path, args: argparse.Namespace, vocab: Path, out: Path) -> dict[str, float]:
    """Rates of one version."""
    options = ["--image-size", "64", "--batch-size", "128", "--workers", "1", "--seconds", "2"]
    said = catlip(version, "bench", "data", args.data, *options)
    rates = {
        name: float(rate.replace(",", "")) for name, rate in re.findall(r"^  (\S.*?)  +([\d,]+) \w+/s", said, re.M)
    }
    settings = ["--data", args.data, "--vocab", str(vocab), "--out", str(out), "--samples", str(args.samples)]
    catlip(version, "pretrain", "flickr8k_cpu", *settings, "--precision", args.precision)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    last = [entry for entry in log if "loss" in entry][-1]
    return {**rates, "training, resnet10t at 64 px": last["samples"] / last["seconds"]}


def catlip(version: Path, *args: str) -> str:
    """What a command line of a version prints."""
    env = {**os.environ, "PYTHONPATH": str(version.resolve())}
    done = subprocess.run([sys.executable, "-m", "catlip.cli", *args], env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{version}: catlip {' '.join(args)}\n{done.stdout}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
