"""Fetches a public dataset by URL, checks it and unpacks it; nothing else opens a connection.

    python -m data_prep.download organsmnist --out=downloads

Repeating the command goes on where it stopped. Nothing is left of a file whose checksum is wrong.
Sets without a URL or a published checksum are not fetched: the command says where they are, and
takes a mirror's URL with the checksum that its keeper states.
"""

import argparse
import hashlib
import http.client
import importlib
import ipaddress
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ctssl_jax import command
from ctssl_jax.errors import ConfigError, DataError, StorageError
from data_prep.download.unpack import unpack
from data_prep.origin import Origin
from data_prep.pipeline.progress import Progress

ATTEMPTS = 5  # in a row that bring nothing
BACKOFF_S = 1.0  # before the second of them; then twice as long each time
TIMEOUT_S = 60.0
PASSING = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
CHUNK = 1 << 20
MB = 1_000_000
UNPACKED = 4  # times the limit of the file


@dataclass(frozen=True)
class Remote:
    """A file to fetch.

    Attributes:
        url: Where it is; https, or http on this machine.
        algorithm: Of the checksum: "sha256" or "md5".
        checksum: In hexadecimal digits.
        limit: Bytes at most.
    """

    url: str
    algorithm: str
    checksum: str
    limit: int


_ZENODO = "https://zenodo.org/records/{}/files/{}"
# Checksums: medmnist/info.py of MedMNIST v3 and, for what Wolf et al. 2023 used, v2.
FILES = {
    "organsmnist": (10519652, "organsmnist.npz", "9ab87b696fb54e2a387ebe992d6ed5f1"),
    "organsmnist_64": (10519652, "organsmnist_64.npz", "53a6d115339d874c25e309a994ff46d3"),
    "organsmnist_128": (10519652, "organsmnist_128.npz", "ded0c5fa01a95dc4978b956f613e9b8e"),
    "organsmnist_224": (10519652, "organsmnist_224.npz", "b354719e553fbbb2513d5533f52a4cb1"),
    "organsmnist_v2": (6496656, "organsmnist.npz", "e5c39f1af030238290b9557d9503af9d"),
}
"""Zenodo's record, name and MD5 of what can be fetched without --url."""
OTHERS = ("covid_ct", "hemorrhage", "lidc")
DIGITS = {"sha256": 64, "md5": 32}


class _Retry(Exception):
    """The server or the connection failed in a way that may pass; `str(error)` says how."""


def fetch(remote: Remote, folder: Path) -> Path:
    """Downloads a file into a folder, or finds it there; returns its path.

    Until it is complete and its checksum right, it is `.NAME.part`.

    Raises:
        ConfigError: If the URL is not https, or names no file.
        DataError: If the server does not have the file, or has another one, or one too large.
        StorageError: If the disk is full, or the server cannot be reached.
    """
    _require_secure(remote.url)
    name = urlsplit(remote.url).path.rpartition("/")[2]
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise ConfigError("--url: its path must end with a plain file name")
    target, part = folder / name, folder / f".{name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if target.exists():
            if _checksum(target, remote.algorithm) != remote.checksum:
                raise DataError(f"{target} is there already and is another file: delete it")
            return target
        _download(remote, part, name)
        if _checksum(part, remote.algorithm) != remote.checksum:
            part.unlink()
            raise DataError(
                f"{name}: wrong {remote.algorithm} checksum, deleted; repeat the command, and if "
                "that does not help the file is not the one that was published"
            )
        os.replace(part, target)
    except OSError as error:
        why = error.strerror or "I/O error"
        raise StorageError(f"cannot write {name} in --out ({why}): free the disk") from error
    return target


def _checksum(path: Path, algorithm: str) -> str:
    # MD5 is what some archives publish; it finds damage, not malice.
    begun = partial(hashlib.new, algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        return hashlib.file_digest(file, begun).hexdigest()


def _download(remote: Remote, part: Path, name: str) -> None:
    """Fills `part`; goes on after a cut as long as something comes."""
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _attempt(remote, part, name)
        except _Retry as error:
            came = part.exists() and part.stat().st_size > before
            failures = 1 if came else failures + 1
            if failures >= ATTEMPTS:
                raise StorageError(f"{name}: {error}; repeat the command later") from error
            time.sleep(BACKOFF_S * 2 ** (failures - 1))


def _attempt(remote: Remote, part: Path, name: str) -> None:
    """One connection: the rest of the file, or all of it if the server gives no parts."""
    start = part.stat().st_size if part.exists() else 0
    with _connect(remote.url, start, name) as response:
        if response is None:  # nothing follows: complete, or of another file; the checksum tells
            return
        if not (
            response.status == HTTPStatus.PARTIAL_CONTENT
            and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        ):
            if response.status != HTTPStatus.OK:
                raise _Retry("the server sent another part than asked for")
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdecimal() else None
        _require_room(total or start, start, remote.limit, part.parent, name)
        megabytes = Progress(f"MB of {name}", -(-total // MB) if total else None)
        megabytes.skip(start // MB)
        size, counted = start, start // MB
        with part.open("ab" if start else "wb") as file:
            for block in _blocks(response):
                file.write(block)
                size += len(block)
                _require_room(size, size, remote.limit, part.parent, name)
                if size // MB > counted:
                    megabytes.step(size // MB - counted)
                    counted = size // MB
    if total is not None and size != total:
        raise _Retry("the connection was cut")


def _require_room(total: int, have: int, limit: int, folder: Path, name: str) -> None:
    if total > limit:
        raise DataError(f"{name}: more than {limit // MB:,} MB; raise --max_mb if that is right")
    missing, free = total - have, shutil.disk_usage(folder).free
    if missing > free:
        raise StorageError(
            f"{name}: {missing // MB:,} MB to come, {free // MB:,} MB free in --out: free the disk"
        )


@contextmanager
def _connect(url: str, start: int, name: str) -> Iterator[Any]:
    """The response from byte `start` on; None if the server says that nothing follows.

    Raises:
        _Retry: If it may help to try again.
        DataError: If not.
    """
    headers = {"User-Agent": "ctssl_jax", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    opener = urllib.request.build_opener(_Redirects)
    try:
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if start and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            yield None
            return
        if error.code >= 500 or error.code in PASSING:
            raise _Retry(f"the server answers {error.code}") from error
        raise DataError(f"{name}: the server answers {error.code}; give another --url") from error
    except (OSError, http.client.HTTPException) as error:
        # urllib wraps some of what goes wrong.
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise DataError(f"{name}: the server's certificate is not valid") from error
        raise _Retry(f"the server cannot be reached ({type(reason).__name__})") from error
    with response:
        yield response


def _blocks(response: Any) -> Iterator[bytes]:
    try:
        while block := response.read(CHUNK):
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise _Retry(f"the connection was cut ({type(error).__name__})") from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows the server to secure places only."""

    def redirect_request(self, req: Any, *args: Any) -> Any:
        _require_secure(args[-1], "the server leads to an address that is not https")
        if not _on_this_machine(req.full_url) and _on_this_machine(args[-1]):
            raise DataError("the server leads to an address of this machine: give another --url")
        return super().redirect_request(req, *args)


def _require_secure(url: str, problem: str = "--url must begin with https://") -> None:
    """Raises ConfigError unless the URL is https, or http on this machine."""
    scheme = urlsplit(url).scheme
    if scheme != "https" and not (scheme == "http" and _on_this_machine(url)):
        raise ConfigError(f"{problem}: give another --url")


def _on_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _remote(args: argparse.Namespace) -> Remote:
    """What the flags ask for."""
    limit = args.max_mb * MB
    given = [(name, getattr(args, name)) for name in DIGITS if getattr(args, name)]
    if args.url:
        if len(given) != 1:
            raise ConfigError("--url needs the checksum of the file: give --sha256 or --md5")
        ((algorithm, checksum),) = given
        if not re.fullmatch(f"[0-9a-f]{{{DIGITS[algorithm]}}}", checksum.lower()):
            raise ConfigError(f"--{algorithm}: must be {DIGITS[algorithm]} hexadecimal digits")
        return Remote(args.url, algorithm, checksum.lower(), limit)
    if given:
        raise ConfigError(f"--{given[0][0]} is for a mirror: give its --url too")
    if args.dataset in OTHERS:
        raise ConfigError(f"{args.dataset} is not fetched by URL; {_origin(args.dataset).text()}")
    record, name, md5 = FILES[args.dataset]
    return Remote(_ZENODO.format(record, name), "md5", md5, limit)


def _origin(dataset: str) -> Origin:
    """Of a set that is fetched or not."""
    module = importlib.import_module(f"data_prep.{dataset if dataset in OTHERS else 'organsmnist'}")
    origin: Origin = module.ORIGIN
    return origin


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command.Parser(
        prog="python -m data_prep.download",
        description="A public dataset by URL -> a checked file, unpacked if it is a zip archive",
        epilog="example: python -m data_prep.download organsmnist --out=downloads",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("dataset", choices=(*FILES, *OTHERS), help="what to fetch")
    parser.add_argument("--out", type=Path, required=True, help="folder to put it in")
    parser.add_argument("--url", help="of a mirror, https; with --sha256 or --md5")
    parser.add_argument("--sha256", help="checksum of the mirror's file")
    parser.add_argument("--md5", help="likewise, where there is no SHA-256")
    parser.add_argument("--max_mb", type=int, default=4_000, help="refuse a larger file")

    def work() -> None:
        args = parser.parse_args(argv)
        remote = _remote(args)
        path = fetch(remote, args.out)
        if path.suffix == ".zip":
            path = unpack(path, UNPACKED * remote.limit)
        print(f"{path}: checked. {_origin(args.dataset).text()}")

    return command.run("data_prep.download", work)
