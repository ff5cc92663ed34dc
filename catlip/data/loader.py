"""Worker processes that make batches ahead of the step that needs them.

Since a batch is a pure function of its step's number, a worker that dies (out of memory, a crash in a decoder) costs
nothing: it is started anew and asked again for what it owed. torch's DataLoader was tried: it raises from a signal
handler when a worker dies, in the middle of whatever the trainer is doing, and its fresh shared memory for every batch
costs a third of the speed in page faults. Processes, not threads: Python's lock was the limit at some 4,000 pictures
a second.
"""

import contextlib
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import fields, replace
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import torch
from torch import Tensor

from catlip import machine
from catlip.data.batches import Batch, Batches
from catlip.data.images import Unreadable
from catlip.errors import UsageError
from catlip.notices import warn

AHEAD = 3  # batches that each worker prepares, if memory allows
AHEAD_BYTES = 4 << 30  # memory that batches in waiting may take, or a quarter of what is free
GIVE_UP_AFTER = 5  # deaths over one batch
PATIENCE = 60.0  # seconds without a batch before a line says so
# Forked workers share the index and the lexicon with their parent; elsewhere they are sent over.
CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


class Loader:
    """The batches of one rank, from any step on, made by worker processes (0: by the caller itself)."""

    def __init__(self, batches: Batches, workers: int) -> None:
        self.batches, self.workers = batches, workers
        self.unreadable = Unreadable()
        self.met = 0  # samples
        self.deaths = 0  # of workers

    def batches_from(self, number: int, *, lend: bool = False) -> Iterator[Batch]:
        """Batches from step `number` to the last one. Raises UsageError if over 1 % of the pictures are unreadable.

        lend: for a loop that is done with one batch before it asks for the next. Pictures are not copied out of the
        memory that the workers use again: they are valid until the second batch after them is asked for.
        """
        numbers = range(number, len(self.batches.steps))
        for batch in self._from_workers(numbers) if self.workers else map(self.batches.make, numbers):
            self.met += batch.cost.samples
            for key, why in batch.unreadable.items():
                self.unreadable.add(key, why)
            self.unreadable.check(max(self.met, min(1000, len(self.batches.source))))
            yield batch if lend or not self.workers else replace(batch, image=batch.image.clone())

    def _from_workers(self, numbers: range) -> Iterator[Batch]:
        largest = self.batches.largest()
        ahead = max(1, min(AHEAD, min(AHEAD_BYTES, machine.memory() // 4) // (largest * self.workers)))
        # One slot more than can be asked for ahead is the batch in use; a second one lets a consumer look back.
        ring = _shared(ahead * self.workers + 2, largest)
        workers = [_Worker(self.batches, ring) for _ in range(min(self.workers, len(numbers)))]
        try:
            # Step k is worker k's, in turn. A slot is written again only after its batch was used: the request for
            # the step that will fill it is sent when the batch after that is taken.
            for number in numbers[: ahead * len(workers)]:
                workers[number % len(workers)].ask(number)
            for number in numbers:
                yield self._take(workers[number % len(workers)], number, ring)
                later = number + ahead * len(workers)
                if later in numbers:
                    workers[later % len(workers)].ask(later)
        finally:
            for worker in workers:
                worker.stop()

    def _take(self, worker: "_Worker", number: int, ring: Tensor) -> Batch:
        """The batch of a step, from the worker that owes it. Raises UsageError if that dies again and again."""
        deaths = 0
        while (found := worker.answer()) is None:
            deaths, self.deaths, why = deaths + 1, self.deaths + 1, worker.last_words()
            if deaths == GIVE_UP_AFTER:
                memory = "; this is mostly too little memory: try fewer `workers` or a smaller `batch_size`"
                hint = "" if worker.said else memory
                raise UsageError(f"a loader worker died {deaths} times over step {number:,} ({why}){hint}")
            warn(f"a loader worker died at step {number:,} ({why}); it is started anew")
            worker.start()
        if isinstance(found, Exception):
            raise found
        count, _, size, _ = found.image
        image = ring[number % len(ring), : count * 3 * size**2].view(count, size, size, 3).permute(0, 3, 1, 2)
        arrays = {f.name: getattr(found, f.name) for f in fields(found)}
        tensors = {name: torch.from_numpy(value) for name, value in arrays.items() if isinstance(value, np.ndarray)}
        return replace(found, **tensors, image=image)


def _shared(count: int, size: int) -> Tensor:
    """Bytes [count, size] that workers write and their parent reads."""
    if CONTEXT.get_start_method() == "fork":  # not in /dev/shm, which is 64 MB in a container unless somebody asked
        return torch.frombuffer(mmap.mmap(-1, count * size), dtype=torch.uint8).view(count, size)
    return torch.empty((count, size), dtype=torch.uint8).share_memory_()


class _Worker:
    """A process that makes the batches it is asked for, in order; seen from the parent."""

    def __init__(self, batches: Batches, ring: Tensor) -> None:
        self._batches, self._ring = batches, ring
        self._owed: deque[int] = deque()
        self.start()

    def start(self) -> None:
        """A new process, asked again for everything that is owed."""
        self.said = ""  # by the process before it ended
        self._pipe, theirs = CONTEXT.Pipe()
        self._process: Any = CONTEXT.Process(
            target=_work, args=(self._batches, self._ring, theirs, os.getpid()), daemon=True
        )
        self._process.start()
        theirs.close()
        for number in self._owed:
            self._send(number)

    def ask(self, number: int) -> None:
        self._owed.append(number)
        self._send(number)

    def _send(self, number: int) -> None:
        with contextlib.suppress(OSError):  # it is dead; `answer` finds out
            self._pipe.send_bytes(pickle.dumps(number))

    def answer(self) -> Any:
        """The next batch owed, its pictures left in the ring; an error that starting anew would not mend; None if the
        process is dead."""
        while not wait([self._pipe, self._process.sentinel], PATIENCE):
            warn(f"no batch for {PATIENCE:.0f} s: the disk or the network does not answer")
        try:
            if not self._pipe.poll():
                return None
            found = pickle.loads(self._pipe.recv_bytes())  # our own process' words
        except (EOFError, OSError):
            return None
        if isinstance(found, str):
            self.said = found
            return None
        self._owed.popleft()
        return found

    def last_words(self) -> str:
        self._process.join()
        code = self._process.exitcode
        if self.said:
            return self.said
        return f"signal {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _work(batches: Batches, ring: Tensor, pipe: Connection, parent: int) -> None:
    """What a worker does: one thread, no signals of its own, gone when the parent is."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in (signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)):
        signal.signal(name, signal.SIG_DFL)
    with contextlib.suppress(EOFError, OSError):  # of the pipe: the parent is gone
        while True:
            while not pipe.poll(1.0):
                if os.getppid() != parent:
                    return
            number = pickle.loads(pipe.recv_bytes())
            answer = _made(batches, number, ring[number % len(ring)])
            pipe.send_bytes(pickle.dumps(answer, protocol=5))
            if isinstance(answer, str):
                return


def _made(batches: Batches, number: int, memory: Tensor) -> Any:
    """A batch, its pictures left in `memory`; or the error that it met, as an answer of its own.

    The system's errors (a network disk that is gone for a moment, memory) are told as text, after which the worker
    ends: another one, with files opened anew, may be luckier.
    """
    try:
        batch = batches.make(number, memory)
        arrays = {f.name: getattr(batch, f.name) for f in fields(batch)}
        plain = {name: value.numpy() for name, value in arrays.items() if isinstance(value, Tensor)}
        return replace(batch, **{**plain, "image": tuple(batch.image.shape)})
    except UsageError as error:
        return error
    except (OSError, MemoryError) as error:
        return f"{type(error).__name__}: {error}"
    except Exception as error:
        return RuntimeError(f"a loader worker met {type(error).__name__}: {error}\n{traceback.format_exc()}")
