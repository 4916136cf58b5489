"""Downloads from object storage.

Retries are made here, where they are seen, so the libraries make as few of their own as may be.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import time
from collections.abc import Callable
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from mofi_lightning.data.file_locks import WAY_OUT
from mofi_lightning.types import InputError

_log = logging.getLogger(__name__)

ATTEMPTS = 6
FIRST_WAIT = 0.2  # seconds; each wait is three times the one before it: half a minute in all
CONNECT_TIMEOUT, READ_TIMEOUT = 10, 30  # seconds without an answer, and without a byte
_LOCAL_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


class _Refused(Exception):
    """The storage's answer would be the same another time."""

    def __init__(self, error: object, status: int | None = None) -> None:
        super().__init__(str(error))
        self.missing = status == 404


def _final(status: object) -> bool:
    """Whether an HTTP status is an answer and no passing trouble."""
    return isinstance(status, int) and 300 <= status < 500 and status not in (408, 425, 429)


class _TooLarge(Exception):
    """There are more bytes than there may be."""


class _Limited:
    """A file that takes no more bytes than there should be: a server must not fill the disk."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._file, self._left = file, most

    def write(self, block: bytes) -> int:
        self._left -= len(block)
        if self._left < 0:
            raise _TooLarge
        return self._file.write(block)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def download(uri: str, part: Path, size: int | None, most: int) -> None:
    """Write a file of object storage into `part`, which exists; what fails is tried again and logged.

    Raises:
        InputError: there is no such file, access is refused, no attempt succeeded, or the disk is full.
    """
    scheme, _, address = uri.partition("://")
    if scheme not in _TRANSPORTS:
        raise InputError(
            f"{uri} cannot be read: {scheme}:// is none of {', '.join(f'{name}://' for name in _TRANSPORTS)} "
            "(for other storage that speaks S3, use s3:// and set AWS_ENDPOINT_URL)"
        )
    transport, credentials = _TRANSPORTS[scheme]
    wait = FIRST_WAIT
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with part.open("r+b") as file:
                transport(address, _Limited(file, most))
                received = file.tell()
                file.truncate()
                file.flush()
                os.fsync(file.fileno())  # a crash of the machine must not leave a whole chunk of zeros
            if size is None or received == size:
                return
            failure = f"it has {received} bytes, {size} are expected"
        except _Refused as error:
            if error.missing:
                raise InputError(f"{uri} does not exist ({_line(error)}): check the address") from error
            raise InputError(f"{uri} cannot be read ({_line(error)}): {credentials}") from error
        except _TooLarge as error:
            raise InputError(
                f"{uri} has more than {most:,} bytes, which is too many; copy or build the data set again"
            ) from error
        except ModuleNotFoundError as error:
            raise InputError(f"{uri} needs a package: pip install google-cloud-storage") from error
        except Exception as error:  # whatever the libraries make of a network that fails
            if isinstance(error, OSError) and error.errno in _LOCAL_FAULTS:
                raise InputError(f"{part.parent} cannot take {uri} ({error.strerror}): {WAY_OUT}") from error
            failure = _line(error) or type(error).__name__
        if attempt < ATTEMPTS:
            pause = wait * random.uniform(0.5, 1.5)  # else all workers come back at the same moment
            _log.warning(
                "%s: attempt %d of %d failed (%s), next in %.1f s", uri, attempt, ATTEMPTS, failure, pause
            )
            time.sleep(pause)
            wait *= 3
    raise InputError(
        f"{uri} could not be fetched in {ATTEMPTS} attempts ({failure}): check the network and the storage, "
        "then start again"
    )


def _line(error: object) -> str:
    return " ".join(str(error).split())


@lru_cache(maxsize=1)
def _s3_client(process: int, settings: tuple[tuple[str, str], ...]) -> Any:
    """A client is not to be used in a fork; what it is made from is in the environment."""
    from boto3 import Session
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        retries={"mode": "standard", "total_max_attempts": 1},
    )
    return Session().client("s3", config=config)


def _from_s3(address: str, file: _Limited) -> None:
    from botocore import exceptions

    settings = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    bucket, _, key = address.partition("/")
    try:
        answer = _s3_client(os.getpid(), settings).get_object(Bucket=bucket, Key=key)
        with closing(answer["Body"]) as body:
            for block in body.iter_chunks(1 << 20):
                file.write(block)
    except exceptions.ClientError as error:
        code, message = (error.response.get("Error", {}).get(name, "") for name in ("Code", "Message"))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if _final(status) and code != "RequestTimeout":
            raise _Refused(f"{code}: {message}", status) from error
        raise ConnectionError(f"{code}: {message}") from error
    except (
        exceptions.NoCredentialsError,
        exceptions.PartialCredentialsError,
        exceptions.ProfileNotFound,
        exceptions.ParamValidationError,
        exceptions.SSOError,
        ValueError,  # of an endpoint that is no URL
    ) as error:
        raise _Refused(error) from error


@lru_cache(maxsize=1)
def _gs_client(process: int) -> Any:
    from google.cloud.storage import Client

    return Client()


def _from_gs(address: str, file: _Limited) -> None:
    from google.api_core.exceptions import GoogleAPICallError
    from google.auth.exceptions import DefaultCredentialsError

    bucket, _, key = address.partition("/")
    try:
        blob = _gs_client(os.getpid()).bucket(bucket).blob(key)
        blob.download_to_file(file, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT), retry=None)
    except GoogleAPICallError as error:
        if _final(int(error.code or 0)):
            raise _Refused(error, int(error.code)) from error
        raise
    except DefaultCredentialsError as error:
        raise _Refused(error) from error


def _from_hf(address: str, file: _Limited) -> None:
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HfUriError, OfflineModeIsEnabled
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, parse_hf_uri

    try:
        uri = parse_hf_uri(f"hf://{address}")
        url = hf_hub_url(uri.id, uri.path_in_repo, repo_type=uri.type, revision=uri.revision)
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        timeout = (CONNECT_TIMEOUT, READ_TIMEOUT, READ_TIMEOUT, READ_TIMEOUT)
        with get_session().stream(
            "GET", url, headers=headers, follow_redirects=True, timeout=timeout
        ) as answer:
            hf_raise_for_status(answer)
            for block in answer.iter_bytes(1 << 20):
                file.write(block)
    except HfHubHTTPError as error:
        if _final(error.response.status_code):
            raise _Refused(error, error.response.status_code) from error
        raise
    except (HfUriError, OfflineModeIsEnabled) as error:
        raise _Refused(error) from error


_TRANSPORTS: dict[str, tuple[Callable[[str, _Limited], None], str]] = {
    "s3": (
        _from_s3,
        "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, to an account that may read it, "
        "and AWS_ENDPOINT_URL where the storage is not Amazon's",
    ),
    "gs": (_from_gs, "set GOOGLE_APPLICATION_CREDENTIALS to an account that may read it"),
    "hf": (_from_hf, "set HF_TOKEN to an account that may read it, and HF_HUB_OFFLINE to nothing"),
}
