"""20 million captions counted, and balanced, in bounded memory, by this machine and on a local Ray, and after a kill.

    uv run --extra ray benchmarks/corpus.py CAPTIONS.tsv.gz --captions 20000000

The captions are those of the file, repeated, every tenth with a number of its own (a word never met before, as web text
is full of), written to Parquet files of a million each. Prints wall-clock, captions a second and the largest resident
memory of any process, and compares the counts.
"""

import argparse
import gzip
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

PER_FILE = 1_000_000


def write(source: Path, folder: Path, total: int) -> None:
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        captions = [line.rstrip("\n").split("\t")[-1] for line in lines][1:]
    for number, start in enumerate(range(0, total, PER_FILE)):
        numbers = range(start, min(start + PER_FILE, total))
        texts = [f"{captions[i % len(captions)]}{'' if i % 10 else f', {i}'}" for i in numbers]
        pq.write_table(pa.table({"uid": pa.array(numbers), "caption": texts}), folder / f"{number:04d}.parquet")


def resident(pid: int) -> int:
    """Largest resident memory, in bytes, of any process of a process group."""
    most = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
            if int(fields[2]) == pid:
                most = max(most, int(fields[21]) * os.sysconf("SC_PAGE_SIZE"))
        except (OSError, IndexError):
            continue
    return most


def count(
    folder: Path, out: Path, *options: str, kill_after: float | None = None, verb: str = "vocab"
) -> tuple[float, int]:
    """(seconds, largest resident bytes) of a verb; killed after some seconds if asked for."""
    command = [sys.executable, "-m", "catlip.cli", verb, str(folder / "*.parquet"), "--out", str(out), *options]
    began = time.perf_counter()
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    most, stop = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not stop.wait(0.5):
            most = max(most, resident(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        process.wait(kill_after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    stop.set()
    watcher.join()
    if kill_after is None and process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
    return time.perf_counter() - began, most


def counts(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()[1:]


def rows(folder: Path) -> str:
    """A hash of the rows of all files of a folder."""
    found = sha256()
    for path in sorted(folder.glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches():
            found.update(repr(batch.to_pylist()).encode())
    return found.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("captions", type=Path)
    parser.add_argument("--captions", dest="total", type=int, default=20_000_000)
    parser.add_argument("--per-label", type=int, default=20_000)
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--no-kill", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "in")
        folder.mkdir()
        write(args.captions, folder, args.total)
        seconds, most = count(folder, Path(scratch, "native.tsv"))
        print(f"native    {seconds:7.1f} s  {args.total / seconds:9,.0f} captions/s  {most / 1e9:5.2f} GB at most")
        if not args.no_kill:
            count(folder, Path(scratch, "killed.tsv"), kill_after=seconds / 2)
            done = len(list(Path(scratch, "killed.tsv.parts").glob("*.json")))
            again, _ = count(folder, Path(scratch, "killed.tsv"))
            same = counts(Path(scratch, "native.tsv")) == counts(Path(scratch, "killed.tsv"))
            print(
                f"killed    after {seconds / 2:.1f} s with {done} files done, then {again:.1f} s; same counts: {same}"
            )
        balance = ("--vocab", str(Path(scratch, "native.tsv")), "--per-label", str(args.per_label))
        took, most = count(folder, Path(scratch, "balanced"), *balance, verb="balance")
        kept = sum(pq.ParquetFile(path).metadata.num_rows for path in Path(scratch, "balanced").glob("*.parquet"))
        print(f"balance   {took:7.1f} s  {args.total / took:9,.0f} captions/s  {most / 1e9:5.2f} GB; {kept:,} kept")
        if not args.no_ray:
            seconds, most = count(folder, Path(scratch, "ray.tsv"), "--runner", "ray")
            same = counts(Path(scratch, "native.tsv")) == counts(Path(scratch, "ray.tsv"))
            print(f"local Ray {seconds:7.1f} s  {args.total / seconds:9,.0f} captions/s; same counts: {same}")
            took, most = count(folder, Path(scratch, "by-ray"), *balance, "--runner", "ray", verb="balance")
            same = rows(Path(scratch, "balanced")) == rows(Path(scratch, "by-ray"))
            print(f"balance on local Ray {took:7.1f} s  {args.total / took:9,.0f} captions/s; same rows: {same}")


if __name__ == "__main__":
    main()
