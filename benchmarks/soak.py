"""An hour of training while things break: nothing may be lost, nothing repeated, memory must stay flat.

Faults: damaged and empty pictures in the shards (about 0.5 %), loader workers killed every quarter of a minute or
so, the whole run killed (-9) or asked to stop (SIGTERM) every few minutes and started again, and a disk that is full
for a while (files over 2 MB cannot be written, which is every checkpoint and nothing else). What is checked, from
what each life of the run noted down itself: every life goes on exactly at the samples of the last checkpoint, the
samples at all places are those that the pure order says, each place is trained on once in the history that leads to
the final weights, and the resident memory of trainer and workers in the second half is that of the first.

    uv run benchmarks/soak.py 'flickr8k/train-*.tar' --minutes 60
"""

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from catlip.data.corpus import build_vocabulary
from catlip.data.files import expand
from catlip.data.open import open_dataset
from catlip.data.order import Order
from catlip.recipes.flickr8k_cpu import flickr8k_cpu
from catlip.training.state import LoopConfig

SEED, FULL = 0, 2 << 20  # bytes that a file may have while the disk is "full"


def checksum(keys: list[str]) -> int:
    return zlib.crc32("\n".join(keys).encode())


def child(data: str, folder: Path, life: int) -> None:
    """One life of the run: train, kill own workers now and then, fill the disk now and then, note every step."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write that is too long fails instead
    from catlip.tasks.pretrain import pretrain
    from catlip.training import loop
    from catlip.training.state import State

    update, chance = State.update, random.Random(life)

    def noted(self: State, batch, lr):
        found = update(self, batch, lr)
        entry = {
            "life": life,
            "start": batch.step.start,
            "batch": batch.step.batch,
            "keys": checksum(batch.keys),
            "unreadable": list(batch.unreadable),
        }
        with (folder / f"steps.{life}.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        return found

    State.update = noted  # type: ignore[method-assign]
    pids: list[int] = []

    def trouble() -> None:
        import multiprocessing

        while True:
            time.sleep(chance.uniform(5, 25))
            workers = multiprocessing.active_children()
            if workers and chance.random() < 0.7:
                os.kill(chance.choice(workers).pid or 0, signal.SIGKILL)
                pids.append(1)
                (folder / f"deaths.{life}").write_text(str(len(pids)))
            else:
                resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, resource.RLIM_INFINITY))
                time.sleep(chance.uniform(3, 12))
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    threading.Thread(target=trouble, daemon=True).start()
    cfg = flickr8k_cpu()
    cfg.data, cfg.vocab, cfg.out, cfg.device = data, str(folder / "vocab.tsv"), str(folder / "run"), "cpu"
    cfg.samples, cfg.image_size, cfg.batch_size, cfg.workers = 10_000_000, 48, 96, 2
    cfg.loop = LoopConfig(ema=0.998, save_every=960)
    assert loop
    pretrain(config=cfg)


def broken_shards(data: str, folder: Path) -> tuple[str, int]:
    """Copies of the shards in which about one picture in 200 is damaged, empty or missing; (pattern, how many)."""
    chance, bad = random.Random(SEED), 0
    for i, path in enumerate(expand(data)):
        with tarfile.open(path) as old, tarfile.open(folder / f"{i:03d}.tar", "w") as new:
            for member in old:
                content = old.extractfile(member).read()  # type: ignore[union-attr]
                if member.name.endswith(".jpg") and chance.random() < 0.005:
                    bad += 1
                    kind = chance.choice(["cut", "empty", "noise", "missing"])
                    if kind == "missing":
                        continue
                    content = {"cut": content[: len(content) // 2], "empty": b"", "noise": chance.randbytes(5000)}[kind]
                info = tarfile.TarInfo(member.name)
                info.size = len(content)
                new.addfile(info, BytesIO(content))
    return str(folder / "*.tar"), bad


def resident(pid: int) -> float:
    """MB of a process and its children."""
    total = 0
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for process in [str(pid), *children]:
            total += int(Path(f"/proc/{process}/statm").read_text().split()[1])
            total -= int(Path(f"/proc/{process}/statm").read_text().split()[2]) if process != str(pid) else 0
    except OSError:
        return 0.0
    return total * 4096 / 1e6


def soak(data: str, folder: Path, minutes: float) -> None:
    (folder / "shards").mkdir()
    broken, bad = broken_shards(data, folder / "shards")
    build_vocabulary(broken, out=str(folder / "vocab.tsv"), min_count=8)
    chance, end, memory = random.Random(SEED), time.time() + 60 * minutes, []
    lives, kills, stops, resumed = 0, 0, 0, []
    while time.time() < end:
        command = [sys.executable, __file__, broken, "--child", str(folder), str(lives)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "CATLIP_CACHE": str(folder / "cache")}
        with (folder / "err.txt").open("a") as err:
            process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=err)
        until = min(end, time.time() + chance.uniform(90, 300))
        while time.time() < until and process.poll() is None:
            time.sleep(5)
            memory.append((lives, time.time(), resident(process.pid)))
        if process.poll() is None:
            hard = chance.random() < 0.6 and time.time() < end
            process.send_signal(signal.SIGKILL if hard else signal.SIGTERM)
            kills, stops = kills + hard, stops + (not hard)
        code = process.wait()
        state = folder / "run" / "resume" / "state.pt"
        resumed.append(torch.load(state, weights_only=True)["samples"] if state.exists() else 0)
        lives += 1
        print(f"life {lives}: exit {code}, checkpoint at {resumed[-1]:,} samples", flush=True)
    judge(broken, folder, resumed)
    deaths = sum(int(file.read_text()) for file in folder.glob("deaths.*"))
    said = (folder / "err.txt").read_text()
    full = said.count("could not be written")
    print(
        f"{minutes:.0f} minutes, {resumed[-1]:,} samples: {kills} times kill -9, {stops} times SIGTERM, {deaths} "
        f"workers killed, {full} checkpoints on a full disk, {bad} damaged pictures"
    )
    flat(memory)


def judge(data: str, folder: Path, resumed: list[int]) -> None:
    """The steps that lead to the final checkpoint, against the pure order."""
    source = open_dataset(data)
    order = Order(source.parts, 0)
    history: dict[int, dict] = {}
    for life, end in enumerate(resumed):
        begin, notes = (resumed[life - 1] if life else 0), folder / f"steps.{life}.jsonl"
        mine = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
        assert not mine or mine[0]["start"] == begin, f"life {life} began at {mine[0]['start']}, not at {begin}"
        for line in mine:
            if line["start"] < end:
                assert line["start"] not in history, f"place {line['start']} was trained on twice"
                history[line["start"]] = line
    place = 0
    while place < resumed[-1]:
        line = history[place]
        expected = [source[int(n)].key for n in order.samples(np.arange(place, place + line["batch"]))]
        bad = set(line["unreadable"])
        assert checksum([key for key in expected if key not in bad]) == line["keys"], f"other samples at place {place}"
        place += line["batch"]
    print(f"{len(history):,} steps lead to the final weights: every place once, every sample the right one", flush=True)


def flat(memory: list[tuple[int, float, float]]) -> None:
    """Memory late in a life against early in it, over all lives: within a life it must not grow."""
    early, late = [], []
    for life in {entry[0] for entry in memory}:
        mine = [entry for entry in memory if entry[0] == life]
        began = mine[0][1]
        early += [mb for _, at, mb in mine if 40 < at - began < 80 and mb]
        late += [mb for _, at, mb in mine if at - began > 150 and mb]
    if early and late:
        print(
            f"resident memory, trainer and workers: median {np.median(early):,.0f} MB in the first minute, "
            f"{np.median(late):,.0f} MB later, {max(late):,.0f} MB at most"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.data, Path(args.child[0]), int(args.child[1]))
        return
    with TemporaryDirectory() as folder:
        soak(args.data, Path(folder), args.minutes)


if __name__ == "__main__":
    main()
