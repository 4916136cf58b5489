import json
import logging
import os
import pickle
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.data.s3 import S3Server, client, s3_server, upload

from mofi_lightning.data import downloads, storage
from mofi_lightning.data.storage import Cache, ChunkCache, fetch, is_remote
from mofi_lightning.types import InputError

SIZE = 100_000
NAMES = [f"chunk-{number:06d}.bin" for number in range(8)]


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[tuple[S3Server, dict[str, bytes]]]:
    """The server with eight chunks in bucket 'chunks', and their bytes."""
    folder = tmp_path_factory.mktemp("served")
    contents = {}
    for number, name in enumerate(NAMES):
        contents[name] = bytes([number]) * (SIZE - 1) + b"."
        (folder / name).write_bytes(contents[name])
    with s3_server() as server:
        upload(folder, "s3://chunks/shards")
        yield server, contents


@pytest.fixture
def server(served, monkeypatch) -> S3Server:
    served[0].set()
    monkeypatch.setattr(downloads, "FIRST_WAIT", 0.001)
    return served[0]


@pytest.fixture
def contents(served) -> dict[str, bytes]:
    return served[1]


def cache_of(folder: Path, chunks: float = 100, data_set: str = "a", size: int = SIZE) -> ChunkCache:
    """A cache with room for `chunks` chunks."""
    cache = Cache(str(folder), chunks * SIZE / 1e9)
    return ChunkCache(
        "s3://chunks/shards", cache.root / data_set / "shards", dict.fromkeys(NAMES, size), cache
    )


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.rglob("*") if file.is_file() and file.name != ".lock")


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that runs `script`, which finds a cache with the folder in its first argument."""
    prelude = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from mofi_lightning.data.storage import Cache, ChunkCache\n"
        f"root = Cache(sys.argv[1], {100 * SIZE / 1e9})\n"
        f"names = {NAMES}\n"
        f"sizes = dict.fromkeys(names, {SIZE})\n"
        "folder = root.root / 'a' / 'shards'\n"
        "cache = ChunkCache('s3://chunks/shards', folder, sizes, root)\n"
    )
    command = [sys.executable, "-c", prelude + script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(script: str, *arguments: object) -> str:
    process = start(script, *arguments)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return output


def test_a_location_with_a_scheme_is_remote():
    assert is_remote("s3://bucket/x") and is_remote("hf://datasets/a/b") and is_remote("r2://x/y")
    assert not any(map(is_remote, ["data/pairs", "/data/s3:/x", "C:\\data", "s3:bucket", "a b://x"]))


def test_a_file_arrives_whole_and_alone_and_replaces_an_older_one(server, contents, tmp_path):
    target = tmp_path / "new" / "x.bin"
    for name in NAMES[:2]:
        fetch(f"s3://chunks/shards/{name}", target, SIZE)
        assert target.read_bytes() == contents[name]
    assert files(tmp_path) == ["x.bin"]
    assert server.downloads.total() == 2


def forbid(bucket: str) -> None:
    client().create_bucket(Bucket=bucket)
    client().put_object(Bucket=bucket, Key="x", Body=b"x")
    deny = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{bucket}/*",
    }
    client().put_bucket_policy(
        Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [deny]})
    )


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://chunks/nothing", "does not exist .*NoSuchKey"),
        ("s3://no-such-bucket/x", "does not exist .*NoSuchBucket"),
        ("s3://forbidden/x", "cannot be read .*403.*: set AWS_PROFILE"),
        (
            "r2://bucket/x",
            "cannot be read: r2:// is none of s3://, gs://, hf:// .*AWS_ENDPOINT_URL",
        ),
        ("hf://datasets/organization/name/x", "cannot be read .*offline.*HF_TOKEN"),
    ],
)
def test_what_another_attempt_would_not_change_fails_at_once_in_one_line(
    server, tmp_path, caplog, uri, message
):
    if "forbidden" in uri:
        forbid("forbidden")
    with pytest.raises(InputError, match=rf"^{uri} {message}") as raised:
        fetch(uri, tmp_path / "x")
    assert "\n" not in str(raised.value)
    assert caplog.records == []
    assert server.downloads.total() <= 1
    assert files(tmp_path) == []


def test_missing_credentials_are_named(server, tmp_path, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(InputError, match=r"s3://chunks/x cannot be read .*credentials.*AWS_ACCESS_KEY_ID"):
        fetch("s3://chunks/x", tmp_path / "x")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    with pytest.raises(InputError, match="pip install google-cloud-storage"):
        fetch("gs://bucket/x", tmp_path / "x")


def test_every_file_arrives_from_a_server_that_often_fails_and_every_failure_is_logged(
    server, contents, tmp_path, caplog
):
    server.set(failures=0.3, seed=1)
    for name in NAMES:
        fetch(f"s3://chunks/shards/{name}", tmp_path / name, SIZE)
        fetch(f"s3://chunks/shards/{name}", tmp_path / f"{name}.again")
    for name in NAMES:
        assert (tmp_path / name).read_bytes() == (tmp_path / f"{name}.again").read_bytes() == contents[name]
    retries = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(retries) == server.failures > 3
    assert all("s3://chunks/shards/chunk-" in retry and "of 6 failed (" in retry for retry in retries)
    assert any("503" in retry for retry in retries) and any("bytes" in retry for retry in retries)
    assert len(files(tmp_path)) == 2 * len(NAMES)


def test_a_file_of_another_size_is_an_error_with_both_sizes(server, tmp_path):
    with pytest.raises(InputError, match=rf"shards/{NAMES[0]} .* 6 attempts .*{SIZE} bytes, {SIZE + 1} are"):
        fetch(f"s3://chunks/shards/{NAMES[0]}", tmp_path / "x", SIZE + 1)
    assert server.downloads[f"chunks/shards/{NAMES[0]}"] == 6
    assert files(tmp_path) == []


@pytest.mark.parametrize("answers", [False, True])
def test_a_server_that_is_down_or_silent_is_an_error_and_no_hang(
    server, tmp_path, monkeypatch, caplog, answers
):
    monkeypatch.setattr(downloads, "READ_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        if not answers:
            silent.close()
        begin = time.monotonic()
        with pytest.raises(InputError, match=r"s3://chunks/x could not be fetched in 6 attempts \(.*\)"):
            fetch("s3://chunks/x", tmp_path / "x")
    assert time.monotonic() - begin < 10
    assert len(caplog.records) == 5
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/x.*data\.cache\.folder"):
        fetch(f"s3://chunks/shards/{NAMES[0]}", tmp_path / "file" / "x")


def test_a_disk_that_fills_up_is_named_and_not_tried_again(server, tmp_path, caplog):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, hard))
    try:
        with pytest.raises(InputError, match=rf"{tmp_path} cannot take s3://chunks.*data\.cache\.folder"):
            fetch(f"s3://chunks/shards/{NAMES[0]}", tmp_path / "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caplog.records == [] and files(tmp_path) == []


HUB = """
import http.server, threading
from mofi_lightning.data.storage import fetch
class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        found = self.path == '/datasets/some/data/resolve/main/train/chunk.bin'
        self.send_response(200 if found else 404)
        self.send_header('Content-Length', '5')
        self.end_headers()
        self.wfile.write(b'bytes' if found else b'empty')
    def log_message(self, *args): pass
hub = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
threading.Thread(target=hub.serve_forever, daemon=True).start()
os.environ.update(HF_ENDPOINT=f'http://127.0.0.1:{hub.server_port}', HF_HUB_OFFLINE='0', NO_PROXY='127.0.0.1')
for name in ('chunk.bin', 'nothing.bin'):
    try: fetch(f'hf://datasets/some/data/train/{name}', Path(sys.argv[1]) / name, 5)
    except ValueError as error: print(error)
print((Path(sys.argv[1]) / 'chunk.bin').read_bytes())
"""


def test_a_file_of_the_hugging_face_hub_is_fetched(tmp_path):
    missing, found = run(HUB, tmp_path).splitlines()
    assert re.match(r"hf://datasets/some/data/train/nothing\.bin does not exist \(.*404", missing)
    assert found == "b'bytes'"


@pytest.mark.parametrize("gigabytes", [0.0, -1.0, float("nan"), float("inf")])
def test_a_cache_without_a_size_is_refused(gigabytes):
    with pytest.raises(InputError, match=r"data\.cache\.gigabytes"):
        Cache(gigabytes=gigabytes)


def test_a_cache_below_two_chunks_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"two chunks of 0\.1 MB of s3://chunks/shards.*gigabytes"):
        cache_of(tmp_path, chunks=1.9)


@pytest.mark.parametrize("name", ["../chunk.bin", "/etc/chunk.bin", ".chunk.bin", "index.json"])
def test_an_index_cannot_name_files_elsewhere(tmp_path, name):
    cache = Cache(str(tmp_path))
    with pytest.raises(InputError, match="was not written by mofi"):
        ChunkCache("s3://chunks/shards", cache.root / "a", {name: 1}, cache)


def test_chunks_stay_within_the_limit_and_come_back_right(server, contents, tmp_path):
    cache = cache_of(tmp_path, chunks=3.5)
    for name in [*NAMES, *NAMES[::-1], *NAMES]:
        assert cache.ensure(name).read_bytes() == contents[name]
        assert len(files(tmp_path)) <= 3
    assert server.downloads.total() > 2 * len(NAMES)


def test_the_least_recently_used_chunk_of_all_data_sets_makes_room(server, tmp_path):
    first, second = cache_of(tmp_path, 4.5, "a"), cache_of(tmp_path, 4.5, "b")
    ages = {}
    for age, (cache, name) in enumerate([(first, 0), (second, 1), (first, 2), (second, 3)]):
        ages[cache.ensure(NAMES[name])] = 1000 - 100 * age
    for path, age in ages.items():
        os.utime(path, (time.time() - age,) * 2)
    first.ensure(NAMES[0])  # the oldest, used again
    second.ensure(NAMES[4])
    assert files(tmp_path) == [NAMES[n] for n in (0, 2, 3, 4)]


def test_only_chunks_of_the_cache_are_ever_deleted(server, tmp_path):
    mine = tmp_path / "mine" / "shards" / "chunk-000000.bin"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"x" * SIZE)
    cache = cache_of(tmp_path, chunks=2)
    for name in NAMES:
        cache.ensure(name)
    assert mine.exists()
    assert len(files(tmp_path)) == 3


def test_a_chunk_that_another_reader_uses_is_not_evicted(server, tmp_path, caplog):
    readers = [cache_of(tmp_path, chunks=2) for _ in range(3)]
    used = [reader.ensure(name) for reader, name in zip(readers, NAMES, strict=False)]
    assert all(path.exists() for path in used)
    assert "0.1 MB more than the cache" in caplog.text and "data.cache.gigabytes" in caplog.text
    readers[0].ensure(NAMES[3])
    assert not used[0].exists() and used[1].exists() and used[2].exists()


def test_a_chunk_that_is_deleted_or_damaged_is_fetched_again(server, contents, tmp_path):
    cache = cache_of(tmp_path)
    path = cache.ensure(NAMES[0])
    path.unlink()
    assert cache.ensure(NAMES[0]).read_bytes() == contents[NAMES[0]]
    cache.ensure(NAMES[1])
    os.truncate(path, 10)
    assert cache.ensure(NAMES[0]).read_bytes() == contents[NAMES[0]]
    shutil.rmtree(tmp_path)
    assert cache.ensure(NAMES[0]).read_bytes() == contents[NAMES[0]]


def test_a_disk_without_room_is_named_before_the_download(server, tmp_path):
    cache = cache_of(tmp_path, chunks=1e18, size=10**17)
    with pytest.raises(
        InputError, match=r"chunks has .* MB left for a chunk of .* MB: set data\.cache\.folder"
    ):
        cache.ensure(NAMES[0])
    assert server.downloads.total() == 0
    assert files(tmp_path) == []


def test_processes_that_need_a_chunk_at_once_fetch_it_once(server, contents, tmp_path):
    server.set(pause=0.05)
    processes = [start("print(len(cache.ensure(names[0]).read_bytes()))", tmp_path) for _ in range(4)]
    assert [process.communicate(timeout=60)[0] for process in processes] == [f"{SIZE}\n"] * 4
    assert server.downloads == {f"chunks/shards/{NAMES[0]}": 1}
    assert files(tmp_path) == [NAMES[0]]


def test_who_waits_for_a_chunk_goes_on_while_another_uses_it(server, contents, tmp_path):
    server.set(pause=0.002)
    together = threading.Barrier(3, timeout=10)

    def read(cache: ChunkCache) -> None:
        for name in NAMES:
            together.wait()
            cache.ensure(name)
            together.wait()  # each holds its chunk until all have it

    with ThreadPoolExecutor() as pool:
        list(pool.map(read, [cache_of(tmp_path) for _ in range(3)]))
    assert server.downloads.total() == len(NAMES)


def test_another_process_goes_on_where_one_was_killed_in_a_download(server, contents, tmp_path):
    server.set(pause=1.0)
    killed = start("cache.ensure(names[0])", tmp_path)
    part = Cache(str(tmp_path)).root / "a" / "shards" / f"{NAMES[0]}.part"
    wait_for(lambda: server.downloads.total() == 1 and part.exists() and part.stat().st_size == SIZE)
    waiting = start("print(len(cache.ensure(names[0]).read_bytes()))", tmp_path)
    server.set()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert waiting.communicate(timeout=30)[0] == f"{SIZE}\n"
    assert files(tmp_path) == [NAMES[0]]


def test_what_killed_processes_left_is_cleared_by_the_next_download(server, tmp_path):
    cache = cache_of(tmp_path, chunks=2)
    left = Cache(str(tmp_path)).root / "b" / "shards" / f"{NAMES[5]}.part"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x" * 10 * SIZE)
    cache.ensure(NAMES[0])
    assert files(tmp_path) == [NAMES[0]]


def test_prefetched_chunks_are_there_when_they_are_needed(server, contents, tmp_path):
    cache = cache_of(tmp_path)
    cache.prefetch(NAMES)
    wait_for(lambda: files(tmp_path) == NAMES)
    before = server.downloads
    assert [cache.ensure(name).read_bytes() for name in NAMES] == list(contents.values())
    assert server.downloads == before == {f"chunks/shards/{name}": 1 for name in NAMES}


def test_prefetching_displaces_only_what_has_not_been_used_for_a_while(server, tmp_path):
    cache = cache_of(tmp_path, chunks=4)
    for name in NAMES[:4]:
        cache.ensure(name)
    os.utime(cache_of(tmp_path).ensure(NAMES[0]), (0, 0))
    cache.prefetch(NAMES[4:])
    wait_for(lambda: cache._prefetcher._threads == 0)
    present = files(tmp_path)
    assert len(present) == 4 and NAMES[0] not in present and set(NAMES[1:4]) < set(present)


def test_a_newer_prefetch_replaces_what_has_not_begun(server, tmp_path):
    server.set(pause=0.05)
    cache = cache_of(tmp_path)
    cache.prefetch(NAMES[:7])
    cache.prefetch(NAMES[7:])
    wait_for(lambda: cache._prefetcher._threads == 0)
    assert NAMES[7] in files(tmp_path) and len(files(tmp_path)) <= 1 + storage.PREFETCH_THREADS


def test_a_prefetch_that_fails_is_logged_and_raises_when_the_chunk_is_needed(
    server, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    cache = cache_of(tmp_path)
    cache.prefetch([NAMES[0], "unknown"])
    wait_for(lambda: cache._prefetcher._threads == 0)
    assert f"chunk {NAMES[0]} was not fetched ahead: s3://chunks/shards/{NAMES[0]} could" in caplog.text
    with pytest.raises(InputError, match="6 attempts"):
        cache.ensure(NAMES[0])


def test_a_process_ends_while_it_prefetches(server, tmp_path):
    server.set(pause=10.0)
    begin = time.monotonic()
    run(
        "cache.prefetch(names)\nwhile not list(Path(sys.argv[1]).rglob('*.part')): time.sleep(0.01)", tmp_path
    )
    assert time.monotonic() - begin < 20


def test_a_pickled_cache_works_elsewhere(server, contents, tmp_path):
    cache = cache_of(tmp_path)
    cache.prefetch(NAMES[:1])
    cache.ensure(NAMES[0])
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.ensure(NAMES[1]).read_bytes() == contents[NAMES[1]]


def test_a_fork_fetches_by_itself_and_holds_nothing_of_its_parent(server, tmp_path):
    server.set(pause=0.02)
    script = (
        "cache.ensure(names[0])\n"
        "cache.prefetch(names[1:4])\n"
        "ready, done = os.pipe(), os.pipe()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os.read(done[0], 1)\n"  # the parent has finished meanwhile
        "    cache.ensure(names[0])\n"
        "    cache.prefetch(names[4:])\n"
        "    while not all((folder / name).exists() for name in names): time.sleep(0.01)\n"
        "    cache.ensure(names[4])\n"
        "    os._exit(0)\n"
        "small = Cache(sys.argv[1], sizes[names[0]] * 2.5 / 1e9)\n"
        "for name in names[1:4]: cache.ensure(name)\n"
        "ChunkCache('s3://chunks/shards', root.root / 'b' / 'shards', sizes, small).ensure(names[0])\n"
        "assert not (folder / names[0]).exists()\n"  # though the child had inherited its lock
        "for name in names[:4]: cache.ensure(name)\n"
        "os.write(done[1], b'x')\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    run(script, tmp_path)


@pytest.mark.slow
def test_processes_killed_at_any_moment_leave_a_cache_that_works(server, contents, tmp_path):
    script = (
        "import random\n"
        "from mofi_lightning.data import downloads\n"
        "downloads.FIRST_WAIT = 0.001\n"
        "small = Cache(sys.argv[1], 4.5 * sizes[names[0]] / 1e9)\n"
        "cache = ChunkCache('s3://chunks/shards', folder, sizes, small)\n"
        "chance = random.Random(sys.argv[2])\n"
        "for step in range(int(sys.argv[3])):\n"
        "    if step % 4 == 0: cache.prefetch(chance.sample(names, 3))\n"
        "    number = chance.randrange(len(names))\n"
        "    path = cache.ensure(names[number])\n"
        "    time.sleep(0.002)\n"  # others may evict now, but not this chunk
        "    data = path.read_bytes()\n"
        "    assert len(data) == sizes[names[0]] and data[:-1] == bytes([number]) * (len(data) - 1), path\n"
    )
    chance = random.Random(0)
    for attempt in range(6):
        server.set(failures=0.2, seed=attempt, pause=0.002)
        victims = [start(script, tmp_path, f"victim {attempt} {n}", 10**6) for n in range(3)]
        survivor = start(script, tmp_path, f"survivor {attempt}", 60)
        wait_for(lambda: server.downloads.total() > 5)
        for victim in victims:
            time.sleep(chance.uniform(0, 0.3))
            assert victim.poll() is None, victim.communicate()[0]
            victim.kill()
            victim.communicate()
        output = survivor.communicate(timeout=60)[0]
        assert survivor.returncode == 0, output
    server.set()
    cache = cache_of(tmp_path, chunks=4.5)
    assert [cache.ensure(name).read_bytes() for name in NAMES] == list(contents.values())
    assert len(files(tmp_path)) <= 4
