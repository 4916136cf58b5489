"""An S3 server on loopback (moto's), whose downloads can be made slow or made to fail.

`with s3_server(failures=0.05, seed=1) as server:` gives a server of this session and points boto3 to it;
`upload(folder, "s3://bucket/prefix")` fills it. Run as a script, this file is the server.
"""

from __future__ import annotations

import atexit
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

MOST_FAILURES_IN_A_ROW = 3
BLOCK = 16_384


class S3Server:
    """A server in a process of its own.

    Attributes:
        endpoint: its address.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,  # which closes when this process ends, however it does
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        atexit.register(self.stop)
        assert self._process.stdout is not None
        self.endpoint = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def stop(self) -> None:
        """End it with all it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def set(self, failures: float = 0.0, seed: int = 0, pause: float = 0.0) -> None:
        """Choose how downloads go from now on, and begin to count anew.

        Args:
            failures: share of the downloads that fail: half of them with a 503, half cut in the body. The
                n-th download of a file fails or not whatever else happens, and never four in a row.
            seed: of the choice.
            pause: seconds before each 16 kB of a body.
        """
        self._ask("/__set", json.dumps({"failures": failures, "seed": seed, "pause": pause}).encode())

    @property
    def downloads(self) -> Counter[str]:
        """Downloads begun since `set`, by bucket/key."""
        return Counter(self._ask("/__counts")["downloads"])

    @property
    def failures(self) -> int:
        """Downloads that were made to fail since `set`."""
        return self._ask("/__counts")["failures"]

    def _ask(self, path: str, data: bytes | None = None) -> Any:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(self.endpoint + path, data, timeout=30) as answer:
            return json.load(answer)


@cache
def _shared() -> S3Server:
    return S3Server()


@contextmanager
def s3_server(failures: float = 0.0, seed: int = 0, pause: float = 0.0) -> Iterator[S3Server]:
    """The session's server, with the environment that leads boto3 to it; the options are those of `set`."""
    server = _shared()
    server.set(failures, seed, pause)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield server
        server.set()


def client() -> Any:
    """A boto3 client of the server of the environment."""
    import boto3

    return boto3.Session().client("s3")


def upload(folder: Path, uri: str) -> None:
    """Put the files of a folder below `uri`; the bucket is made if need be."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    s3 = client()
    s3.create_bucket(Bucket=bucket)
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        key = "/".join(part for part in (prefix, file.relative_to(folder).as_posix()) if part)
        s3.put_object(Bucket=bucket, Key=key, Body=file.read_bytes())


class _Unreliable:
    """WSGI application around another whose downloads it slows down, spoils and counts."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._set(failures=0.0, seed=0, pause=0.0)

    def _set(self, failures: float, seed: int, pause: float) -> None:
        self._share, self._seed, self._pause = failures, seed, pause
        self._downloads: Counter[str] = Counter()
        self._in_a_row: Counter[str] = Counter()
        self._failures = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"].lstrip("/")
        if path.startswith("__"):
            with self._lock:
                if path == "__set":
                    self._set(**json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))))
                counts = json.dumps({"downloads": self._downloads, "failures": self._failures}).encode()
            start_response(
                "200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(counts)))]
            )
            return [counts]
        if environ["REQUEST_METHOD"] != "GET" or "/" not in path:
            return self._app(environ, start_response)
        failure, pause = self._count(path)
        if failure == "refuse":
            start_response("503 Service Unavailable", [("Content-Length", "0")])
            return []
        body = b"".join(self._app(environ, start_response))
        return self._sent(body[: len(body) // 2] if failure == "cut" else body, pause)

    def _count(self, path: str) -> tuple[str | None, float]:
        with self._lock:
            chance = random.Random(f"{self._seed} {path} {self._downloads[path]}")
            self._downloads[path] += 1
            fails = chance.random() < self._share and self._in_a_row[path] < MOST_FAILURES_IN_A_ROW
            self._in_a_row[path] = self._in_a_row[path] + 1 if fails else 0
            self._failures += fails
            return (chance.choice(["refuse", "cut"]) if fails else None), self._pause

    @staticmethod
    def _sent(body: bytes, pause: float) -> Iterator[bytes]:
        for start in range(0, len(body), BLOCK):
            time.sleep(pause)
            yield body[start : start + BLOCK]


def _serve() -> None:
    from moto.moto_server.werkzeug_app import create_backend_app
    from moto.server import DomainDispatcherApplication
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        def log(self, *args: object) -> None:
            pass

    app = _Unreliable(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Silent)
    print(server.port, flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    _serve()
