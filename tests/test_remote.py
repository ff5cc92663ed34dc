"""Shards that lie elsewhere: fetched once, kept within bounds, whoever asks and whatever goes wrong."""

import http.server
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catlip.data import remote
from catlip.data.cache import cache_folder
from catlip.data.dataset import Dataset
from catlip.data.files import identity
from catlip.data.open import open_dataset
from catlip.data.pack import PackConfig, pack
from catlip.errors import UsageError
from tests.conftest import jpeg, write_tar


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BACKOFF", 0.01)


def write_shards(folder: Path, shards: int = 4, samples: int = 3) -> None:
    for shard in range(shards):
        members = {f"{shard}-{i}.{e}": jpeg(seed=i) if e == "jpg" else f"a dog {shard} {i}".encode()
                   for i in range(samples) for e in ("jpg", "txt")}  # fmt: skip
        write_tar(folder / f"{shard:03d}.tar", members)


def fetched() -> list[str]:
    # glob, as the folder appears with the first shard, which another thread fetches
    return sorted(p.name[25:] for p in cache_folder().glob("shards/*") if p.suffix in (".tar", ".parquet"))


@pytest.mark.parametrize("protocol", ["file", "memory"])
@pytest.mark.parametrize("pattern", ["*.tar", "{000..003}.tar", "00[0-3].tar"])
def test_remote_shards_are_what_local_ones_are(tmp_path: Path, protocol: str, pattern: str) -> None:
    write_shards(tmp_path)
    url = f"{protocol}://{tmp_path}"
    if protocol == "memory":
        fsspec.filesystem("memory").put(f"{tmp_path}/", f"{tmp_path}/", recursive=True)
    here, there = open_dataset(f"{tmp_path}/*.tar"), open_dataset(f"{url}/{pattern}")
    assert there.remote
    assert not here.remote
    assert [there[i] for i in range(12)] == [here[i] for i in range(12)]
    assert list(there.captions()) == list(here.captions())
    assert there.shards.tolist() == here.shards.tolist()
    assert fetched() == ["000.tar", "001.tar", "002.tar", "003.tar"]


class Server(http.server.SimpleHTTPRequestHandler):
    """Counts what is asked for; fails as often as told to."""

    asked: ClassVar[Counter[str]] = Counter()
    failures: ClassVar[Counter[str]] = Counter()
    refused: ClassVar[set[str]] = set()

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        if self.path in self.refused:
            self.send_error(403)
            return
        if self.failures[self.path] > 0:
            self.failures[self.path] -= 1
            self.send_error(500)
            return
        time.sleep(0.02)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    Server.asked.clear()
    Server.failures.clear()
    Server.refused.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_http_is_tried_again_and_then_refused(tmp_path: Path, url: str) -> None:
    write_shards(tmp_path)
    Server.failures["/001.tar"] = 2
    assert len(open_dataset(f"{url}/{{000..003}}.tar")) == 12
    assert Server.asked["/001.tar"] == 3
    Server.failures["/002.tar"] = 99
    for path in (cache_folder() / "shards").glob("*.tar"):
        path.unlink()
    source = open_dataset(f"{url}/{{000..003}}.tar")  # its index is known
    with pytest.raises(UsageError, match=r"/002\.tar cannot be fetched, tried 3 times: .*500"):
        source[7]
    assert len(open_dataset(f"{url}/000.tar?signature=a/b.c")) == 3
    with pytest.raises(UsageError, match=r"http.*/nothing\.tar: FileNotFoundError"):
        open_dataset(f"{url}/nothing.tar")


def read_all(source: Dataset, start: int, errors: multiprocessing.SimpleQueue) -> None:
    try:
        with ThreadPoolExecutor(3) as pool:
            numbers = [(start + i) % len(source) for i in range(len(source))]
            source.prefetch(list(range(len(source.shards))))
            keys = [record.key for record in pool.map(source.__getitem__, numbers)]
        assert keys == [f"{n // 3}-{n % 3}" for n in numbers]
        errors.put("")
    except BaseException as error:
        errors.put(repr(error))


@pytest.mark.parametrize(("method", "many"), [("fork", 4), ("spawn", 2)])
def test_processes_share_one_cache_and_fetch_each_shard_once(tmp_path: Path, url: str, method: str, many: int) -> None:
    write_shards(tmp_path, shards=6)
    source = open_dataset(f"{url}/{{000..005}}.tar")
    source.prefetch([0, 1])  # a child inherits neither the threads nor their locks
    time.sleep(0.1)
    for path in (cache_folder() / "shards").glob("*.tar"):
        path.unlink()
    source.files._start()
    Server.asked.clear()
    context = multiprocessing.get_context(method)
    errors = context.SimpleQueue()
    processes = [context.Process(target=read_all, args=(source, 4 * i, errors)) for i in range(many)]
    for process in processes:
        process.start()
    assert [errors.get() for _ in processes] == [""] * many
    for process in processes:
        process.join(20)
        assert process.exitcode == 0
    assert {path: n for path, n in Server.asked.items() if path.endswith(".tar")} == {
        f"/{i:03d}.tar": 1 for i in range(6)
    }
    assert len(fetched()) == 6


def test_the_cache_stays_within_its_bound_and_keeps_what_is_open(tmp_path: Path) -> None:
    write_shards(tmp_path, shards=8)
    size = (tmp_path / "000.tar").stat().st_size
    open_dataset(f"file://{tmp_path}/*.tar")  # now the index is known
    for path in (cache_folder() / "shards").glob("*.tar"):
        path.unlink()
    source = open_dataset(f"file://{tmp_path}/*.tar", cache_gb=3.5 * size / 1e9)
    for number in range(0, 24, 3):
        source[number]
        source.files._open.clear()
        assert len(fetched()) <= 3
    assert fetched() == ["005.tar", "006.tar", "007.tar"]
    held = source.files.open_briefly(5)  # and now the oldest
    os.utime(next((cache_folder() / "shards").glob("*-005.tar")), (0, 0))
    source.files.open_briefly(0)
    assert held.size == size
    assert fetched() == ["000.tar", "005.tar", "007.tar"]


def test_prefetch_fetches_and_never_waits(tmp_path: Path, url: str) -> None:
    write_shards(tmp_path, shards=6)
    pack(config=PackConfig(data=f"{tmp_path}/*.tar", out=str(tmp_path / "packed"), per_shard=3))
    source = open_dataset(f"{url}/packed/{{000000..000005}}.tar")
    assert not [path for path in Server.asked if path.endswith(".tar")], "the index is in index.json"
    assert source.shards.tolist() == [3] * 6
    began = time.monotonic()
    source.prefetch([4, 2])
    assert time.monotonic() - began < 0.1
    deadline = time.monotonic() + 10
    while len(fetched()) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert fetched() == ["000002.tar", "000004.tar"]
    assert source[6].captions == ["a dog 2 0"]
    assert Server.asked["/packed/000002.tar"] == 1
    Server.failures.update({f"/packed/{i:06d}.tar": 99 for i in range(6)})
    source.prefetch([0])  # fails in silence; reading says why
    with pytest.raises(UsageError, match=r"000000\.tar cannot be fetched"):
        source[0]


def test_what_cannot_be_had_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, shards=1)
    for url, says in ((f"file://{tmp_path}/no*.tar", "no file matches"), (f"file://{tmp_path}/no.tar", "no.tar"),
                      ("nosuch://x/a.tar", "nosuch"), ("memory://t.csv", "only tars")):  # fmt: skip
        with pytest.raises(UsageError, match=says):
            open_dataset(url)
    for protocol, package in (("s3", "s3fs"), ("gs", "gcsfs")):
        try:
            __import__(package)
        except ImportError:
            with pytest.raises(UsageError, match=rf"needs {package}: pip install {package}"):
                open_dataset(f"{protocol}://bucket/a.tar")
    (tmp_path / "file").touch()
    monkeypatch.setenv("CATLIP_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"cannot be written.*CATLIP_CACHE"):
        open_dataset(f"file://{tmp_path}/000.tar")


def test_a_fetch_that_was_killed_leaves_nothing_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, shards=1)
    cache = remote.Cache(1)
    cache.folder.mkdir(parents=True)
    path = cache._path(f"file://{tmp_path}/000.tar", repr(identity(f"file://{tmp_path}/000.tar")))
    path.with_name(path.name + ".part").write_bytes(b"half of it")
    path.with_name(path.name + ".lock").touch()
    assert len(open_dataset(f"file://{tmp_path}/000.tar")) == 3


def test_remote_parquet_with_pictures(tmp_path: Path, url: str) -> None:
    table = pa.table({"image": [jpeg(seed=i) for i in range(6)], "text": [f"dog {i}" for i in range(6)]})
    for part in range(2):
        pq.write_table(table, tmp_path / f"{part}.parquet", row_group_size=2)
    source = open_dataset(f"{url}/{{0..1}}.parquet")
    assert source.shards.tolist() == [2] * 6
    assert list(source.captions())[:2] == [["dog 0"], ["dog 1"]]
    assert not (cache_folder() / "shards").exists(), "captions are read without fetching the pictures"
    assert source[3].image == jpeg(seed=3)
    assert fetched() == ["0.parquet"]


def test_other_bytes_under_the_same_url_are_fetched_anew(tmp_path: Path, url: str) -> None:
    write_shards(tmp_path, shards=1)
    old = open_dataset(f"file://{tmp_path}/000.tar")
    write_tar(tmp_path / "000.tar", {"new.jpg": jpeg(seed=5), "new.txt": b"a cat"})
    assert open_dataset(f"file://{tmp_path}/000.tar")[0].captions == ["a cat"]
    assert old[0].captions == ["a dog 0 0"]  # a run goes on with what it began with
    pack(config=PackConfig(data=f"{tmp_path}/000.tar", out=str(tmp_path / "packed")))
    write_shards(tmp_path / "packed", shards=1, samples=30)
    (tmp_path / "packed" / "000.tar").replace(tmp_path / "packed" / "000000.tar")
    with pytest.raises(UsageError, match=r"000000\.tar has .* bytes were expected: is the index\.json"):
        open_dataset(f"{url}/packed/000000.tar")[0]


def test_an_index_that_cannot_be_read_is_asked_for_again_and_then_said(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture
) -> None:
    write_shards(tmp_path)
    pack(config=PackConfig(data=f"{tmp_path}/*.tar", out=str(tmp_path / "packed"), per_shard=3))
    Server.failures["/packed/index.json"] = 2
    source = open_dataset(f"{url}/packed/{{000000..000003}}.tar")
    assert Server.asked == {"/packed/index.json": 3}
    Server.failures["/packed/index.json"] = 99
    with pytest.raises(UsageError, match=r"/packed/index\.json cannot be fetched, tried 3 times: .*500"):
        open_dataset(f"{url}/packed/{{000000..000003}}.tar")
    Server.failures.clear()
    Server.refused.add("/packed/index.json")
    other = open_dataset(f"{url}/packed/{{000000..000003}}.tar")
    assert "/packed/index.json is refused (403" in capsys.readouterr().err
    assert [other[i] for i in range(12)] == [source[i] for i in range(12)]


def test_packed_shards_are_known_by_what_is_in_them(tmp_path: Path, url: str) -> None:
    for number in range(2):
        write_tar(tmp_path / f"{number}.tar", {"1.jpg": jpeg(seed=1), "1.txt": b"a dog %d" % number})
    pack(config=PackConfig(data=f"{tmp_path}/0.tar", out=str(tmp_path / "packed")))
    pack(config=PackConfig(data=f"{tmp_path}/1.tar", out=str(tmp_path / "other")))
    shard = tmp_path / "packed" / "000000.tar"
    assert shard.stat().st_size == (tmp_path / "other" / "000000.tar").stat().st_size
    first = open_dataset(f"{url}/packed/000000.tar")
    assert first[0].captions == ["a dog 0"]
    assert first.fingerprint() == open_dataset(str(shard)).fingerprint(), "wherever they lie"
    for name in ("000000.tar", "index.json"):
        (tmp_path / "packed" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    second = open_dataset(f"{url}/packed/000000.tar")
    assert second[0].captions == ["a dog 1"], "not what was fetched before"
    assert second.fingerprint() != first.fingerprint()
    shard.write_bytes(shard.read_bytes().replace(b"a dog 1", b"a cat 1"))
    for path in (cache_folder() / "shards").glob("*.tar"):
        path.unlink()
    with pytest.raises(UsageError, match=r"000000\.tar has .* bytes were expected: is the index\.json"):
        open_dataset(f"{url}/packed/000000.tar")[0]
