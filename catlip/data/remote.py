"""Files that lie elsewhere (s3://, gs://, https://, hf:// and whatever else fsspec opens), fetched whole when needed.

Fetched files live in a bounded folder that all processes of a machine share; the least recently used go first. Locks
are flock(2) locks: the kernel takes them back when a process dies, so a kill leaves neither a half file under a final
name nor a lock that someone waits for. Nothing in this file needs torch.
"""

import fcntl
import glob
import hashlib
import io
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from catlip.data.indexes import cache_folder
from catlip.errors import UsageError
from catlip.notices import warn

TRIES = 3
BACKOFF = 1.0  # seconds before the second try; doubles
FETCHERS = 4  # threads a process
OPEN_FILES = 128  # kept open by a process
OPEN_FETCHED = 8  # of those that the cache cannot remove meanwhile
PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "hf": "huggingface_hub",
    "az": "adlfs",
    "abfs": "adlfs",
}

T = TypeVar("T")


def is_url(name: str) -> bool:
    return "://" in name


def filesystem(url: str) -> tuple[Any, str]:
    """(fsspec file system, path in it). Raises UsageError, naming the package, for a protocol without one."""
    import fsspec

    protocol = url.partition("://")[0]
    options: dict[str, Any] = {}
    try:
        if protocol in ("http", "https"):
            import aiohttp

            # aiohttp gives up after five minutes in all, which a large shard may need; silence is the sign of trouble.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
            options = {"client_kwargs": {"timeout": timeout}}
        return fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        package = PACKAGES.get(protocol, f"the fsspec package for {protocol}://")
        raise UsageError(f"{url}: {protocol}:// needs {package}: pip install {package} ({error})") from None
    except ValueError as error:
        raise UsageError(f"{url}: {error}") from None


def persistently(what: str, do: Callable[[], T]) -> T:
    """Try three times. Raises UsageError naming `what` and the cause; at once where a file is not there."""
    for attempt in range(TRIES):
        try:
            return do()
        except UsageError:
            raise
        except (FileNotFoundError, PermissionError) as error:
            raise UsageError(f"{what}: {type(error).__name__}: {error}") from None
        except Exception as error:  # every protocol has errors of its own
            if attempt + 1 == TRIES:
                cause = f"{type(error).__name__}: {error}".splitlines()[0]
                raise UsageError(f"{what} cannot be fetched, tried {TRIES} times: {cause}") from None
            time.sleep(BACKOFF * 2**attempt)
    raise AssertionError


def url_glob(url: str) -> list[str]:
    fs, path = filesystem(url)
    return sorted(fs.unstrip_protocol(found) for found in persistently(url, lambda: fs.glob(path)))


def local_glob(pattern: str) -> list[str]:
    return sorted(glob.glob(pattern, recursive=True))


class OpenFile:
    """A file descriptor that closes when nobody holds it any more: safe to forget while another thread reads."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.descriptor, size, offset)

    def __del__(self) -> None:
        os.close(self.descriptor)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Reader(io.RawIOBase):
    """An open file with a position of its own, for libraries that want one."""

    def __init__(self, file: OpenFile) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class Cache:
    """A folder of fetched files of at most so many bytes; a file that some process holds open is never removed."""

    def __init__(self, gigabytes: float) -> None:
        self.limit = int(gigabytes * 1e9)
        self.folder = cache_folder() / "shards"

    def open(self, url: str, version: str = "", digest: str = "") -> OpenFile:
        """The file, fetched if it is not here. Another version of it is another file. digest: its SHA-256, if known.

        Raises UsageError.
        """
        path = self._path(url, version)
        while True:
            file = self._open_here(path)
            if file is not None:
                return file
            self._fetch(url, path, digest)

    def has(self, url: str, version: str = "") -> bool:
        return self._path(url, version).exists()

    def _path(self, url: str, version: str = "") -> Path:
        return (
            self.folder / f"{hashlib.sha256((url + version).encode()).hexdigest()[:24]}-{url.rpartition('/')[2][-80:]}"
        )

    def _open_here(self, path: Path) -> OpenFile | None:
        try:
            file = OpenFile(os.open(path, os.O_RDONLY))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UsageError(
                f"{path} cannot be read ({error.strerror}); set CATLIP_CACHE to a folder of yours"
            ) from None
        fcntl.flock(file.descriptor, fcntl.LOCK_SH)  # as long as it is open: `_make_room` leaves it alone
        if os.fstat(file.descriptor).st_nlink == 0:  # removed between the two lines above
            return None
        with suppress(OSError):  # of another user
            os.utime(path)
        return file

    def _fetch(self, url: str, path: Path, digest: str) -> None:
        """Fetch one file; whoever else wants it meanwhile waits for this one."""
        with self._lock(f"{path.name}.lock"):
            if path.exists():
                return
            part = path.with_name(path.name + ".part")
            fs, inside = filesystem(url)

            def get() -> None:
                fs.get_file(inside, str(part))
                there, here = fs.info(inside).get("size"), part.stat().st_size
                if there is not None and there != here:
                    raise OSError(f"{here:,} of {there:,} bytes arrived")

            try:
                persistently(url, get)
                if digest and digest != sha256_of(part):
                    said = f"{part.stat().st_size:,} bytes whose SHA-256 is another one; other bytes were expected"
                    raise UsageError(f"{url} has {said}: is the index.json beside it another's?")
                with self._lock("room.lock"):
                    self._make_room(part.stat().st_size)
                    part.replace(path)
            finally:
                part.unlink(missing_ok=True)

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UsageError(
                f"{self.folder} cannot be written ({error.strerror}), and remote shards are kept there: "
                f"set CATLIP_CACHE to a folder with space"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough if a fork meanwhile copied the descriptor
            os.close(descriptor)  # the empty file stays, or two could hold "the" lock

    def _make_room(self, size: int) -> None:
        files = [
            (e.stat().st_mtime, e.stat().st_size, e.path)
            for e in os.scandir(self.folder)
            if not e.name.endswith((".lock", ".part"))
        ]
        total = size + sum(bytes_ for _, bytes_, _ in files)
        for _, bytes_, path in sorted(files):
            if total <= self.limit:
                return
            with suppress(OSError), open(path, "r+b") as file:  # NFS gives exclusive locks to writers only
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an error: someone reads it
                os.unlink(path)
                total -= bytes_


class Files:
    """Files by number, here or remote, for reading at any place, from any thread and process."""

    def __init__(self, names: Sequence[str], cache_gb: float = 100.0) -> None:
        self.names = list(names)
        self.remote = any(map(is_url, self.names))
        self._versions, self._digests = [""] * len(self.names), [""] * len(self.names)
        self._sizes = [0] * len(self.names)
        self._cache = Cache(cache_gb) if self.remote else None
        self._start()

    def _start(self) -> None:
        self._open: dict[int, OpenFile] = {}
        self._ahead: Ahead | None = None
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:  # descriptors and threads do not travel to other processes
        return {**self.__dict__, "_open": {}, "_ahead": None, "_pid": 0}

    def __len__(self) -> int:
        return len(self.names)

    def expect(self, identities: Sequence[Sequence[Any]], digests: Sequence[str] = ()) -> None:
        """What is known of each file: [name, bytes, ...], SHA-256. What was fetched of others is fetched again."""
        self._digests = list(digests) or self._digests
        self._versions = [repr(identity) for identity in identities]
        self._sizes = [identity[1] for identity in identities]

    def open(self, number: int) -> OpenFile:
        """Raises UsageError if the file cannot be opened or fetched."""
        file = self._open.get(number)  # open descriptors do survive a fork: pread keeps no position
        if file is None:
            file = self._open.setdefault(number, self.open_briefly(number))
            while len(self._open) > (OPEN_FETCHED if self.remote else OPEN_FILES):
                self._open.pop(next(iter(self._open.copy())), None)
        return file

    def open_briefly(self, number: int) -> OpenFile:
        """As `open`, for a file that is read once: it closes when the caller drops it."""
        name = self.names[number]
        if self._cache is not None and is_url(name):
            file = self._cache.open(name, self._versions[number], self._digests[number])
            if self._sizes[number] and file.size != self._sizes[number]:
                said = f"{self._sizes[number]:,} bytes were expected"
                raise UsageError(f"{name} has {file.size:,} bytes, {said}: is the index.json beside it another's?")
            return file
        try:
            return OpenFile(os.open(name, os.O_RDONLY))
        except OSError as error:
            raise UsageError(f"{name} cannot be opened: {error.strerror}") from None

    def prefetch(self, numbers: Sequence[int]) -> None:
        """Files that will be needed soon, the soonest first: fetched in the background. Never blocks."""
        if self._cache is None:
            return
        if self._ahead is None or self._pid != os.getpid():  # threads do not survive a fork
            self._ahead, self._pid = Ahead(self._cache), os.getpid()
        self._ahead.want([(self.names[n], self._versions[n], self._digests[n]) for n in dict.fromkeys(numbers)])


class Ahead:
    """Threads that fetch what will be needed; the latest wish replaces what of the former was not begun."""

    def __init__(self, cache: Cache) -> None:
        self._cache, self._wanted, self._running = cache, deque[tuple[str, str, str]](), 0
        self._lock = threading.Lock()

    def want(self, urls: list[tuple[str, str, str]]) -> None:
        with self._lock:
            self._wanted = deque(urls)
            missing = min(FETCHERS, len(urls)) - self._running
            self._running += max(0, missing)
        for _ in range(missing):  # daemons: the end of a program does not wait for a download
            threading.Thread(target=self._work, daemon=True, name="fetch").start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._wanted:
                    self._running -= 1
                    return
                url, version, digest = self._wanted.popleft()
            try:
                if not self._cache.has(url, version):
                    self._cache.open(url, version, digest)
            except UsageError:
                pass  # whoever reads the file tries again and says so
            except Exception as error:  # a thread that dies would stay counted as running
                warn(f"{url} was not fetched ahead: {error}")


def in_threads(do: Callable[[int], T], count: int, threads: int = 8) -> Iterator[T]:
    """Results in order. The first error ends it; what was not begun is dropped."""
    with ThreadPoolExecutor(min(threads, max(1, count))) as pool:
        futures = [pool.submit(do, number) for number in range(count)]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()
