"""Processes that label files of captions: this machine's, or those of a Ray cluster.

A process is given a task as a line of JSON and answers with a line: what was wrong, or nothing. It is a Python of its
own and not a fork or a spawned copy of this one, so it loads no torch and does not import the main module again: a
notebook may start it, and a script without `if __name__ == "__main__"`.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor, as_completed
from queue import SimpleQueue
from typing import Any

from catlip.errors import UsageError, refusal
from catlip.labels.labeler import Labeler


class CaptionWorker:
    """Does tasks of `corpus.do_task`, with one labeler for all of them."""

    def __init__(self) -> None:
        self.labeler: Labeler | None = None

    def __call__(self, task: dict[str, Any]) -> str:
        """What was wrong with the user's files; "" if nothing was."""
        from catlip.data.corpus import do_task

        try:
            self.labeler = self.labeler or Labeler(**task["labeler"])
            do_task(task, self.labeler)
        except (UsageError, OSError) as error:
            return str(error) if isinstance(error, UsageError) else refusal(error)
        return ""


def on_this_machine(tasks: list[dict[str, Any]], workers: int) -> Generator[str]:
    """The answers to all tasks, as they come. Closing the iterator ends the processes."""
    if workers == 1:
        yield from map(CaptionWorker(), tasks)
        return
    processes = [_start() for _ in range(workers)]
    idle: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
    for process in processes:
        idle.put(process)

    def answer(task: dict[str, Any]) -> str:
        process = idle.get()
        try:
            return _ask(process, task)
        finally:
            idle.put(process)

    pool = ThreadPoolExecutor(workers)
    try:
        for done in as_completed([pool.submit(answer, task) for task in tasks]):
            yield done.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
        pool.shutdown()
        for process in processes:
            process.communicate()


def on_ray(tasks: list[dict[str, Any]], workers: int, address: str | None) -> Generator[str]:
    """The same on a Ray cluster, whose nodes see the files under the same paths. Raises UsageError without Daft."""
    os.environ["DO_NOT_TRACK"] = "true"  # before Daft is imported, or it reports to its makers
    try:
        import daft
    except ImportError:
        raise UsageError("`runner` ray: needs Daft and Ray: pip install 'catlip[ray]'") from None

    daft.set_runner_ray(address)

    @daft.cls(max_concurrency=workers)
    class Worker:
        def __init__(self) -> None:
            self.work = CaptionWorker()

        @daft.method(return_dtype=daft.DataType.string())
        def __call__(self, task: str) -> str:
            return self.work(json.loads(task))

    worker = Worker()
    frame = daft.from_pydict({"task": [json.dumps(task) for task in tasks]}).into_batches(1)
    for row in frame.select(worker(frame["task"]).alias("error")).iter_rows(results_buffer_size=2 * workers):
        yield row["error"]


def serve() -> None:
    """The other end: tasks on standard input, answers on what was standard output, until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the first one decides
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever is printed meanwhile is no answer
    work = CaptionWorker()
    for line in sys.stdin.buffer:
        print(json.dumps(work(json.loads(line))), file=answers, flush=True)


def _start() -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", "from catlip.data.caption_workers import serve; serve()"]
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONUTF8": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True, encoding="utf-8")


def _ask(process: "subprocess.Popen[str]", task: dict[str, Any]) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(task) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except OSError:
        line = ""
    if line:
        return json.loads(line)
    return f"{task['path']}: the process that labelled it ended ({process.wait()}); fewer `workers` need less memory"
