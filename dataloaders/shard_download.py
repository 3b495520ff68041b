"""Downloads shards over http(s), or through a command, and tries again for as long as it may.

An interrupted download goes on where it stopped if the server can do that (RFC 9110, section 14: Range). A shard counts
as downloaded only if its bytes have the SHA-256 of the index, so no answer of a server can change what is trained on.

Addresses are written into logs, settings and checkpoints. So an address with a password or a token in it is refused;
they come from ~/.netrc or from the environment variable SHARDS_AUTHORIZATION (the value of the header Authorization),
and are not passed on when a server redirects to another address.
"""

import base64
import logging
import netrc
import os
import random
import shlex
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from dataloaders.quoting import shorten
from dataloaders.shard_index import INDEX, Shard, ShardIndex, parse_index, sha256_of

PIPE = "pipe:"
AUTHORIZATION = "SHARDS_AUTHORIZATION"
SILENCE = 30.0  # seconds without a byte after which a connection counts as broken
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds before another try, which double from one to the next
CHUNK = 1 << 20
LARGEST_INDEX = 1 << 28

_log = logging.getLogger("stop.shards")
_random = random.Random()  # its own, so that the draws of a run do not depend on the network


class FetchError(OSError):
    """A download that failed; the message says why. `final` tells that trying again is in vain."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


def is_remote(address: str) -> bool:
    """Return whether an address is not a local folder."""
    return address.startswith(PIPE) or "://" in address


@dataclass(frozen=True)
class Source:
    """A place that shards are downloaded from: an http(s) address that file names are added to, or `pipe:` and a shell
    command in which {} stands for the file's name. Raises ValueError for any other, and for one with a secret in it."""

    address: str
    flag: str
    allow_pipe: bool = False

    def __post_init__(self) -> None:
        if self.address.startswith(PIPE):
            if not self.allow_pipe:
                raise ValueError(
                    f"{self.flag} {PIPE} runs a shell command for each shard: pass --allow_pipe to allow it."
                )
            if "{}" not in self.address:
                raise ValueError(f"{self.flag} {PIPE} has no {{}}, which stands for the name of a shard: add it.")
            return
        # These messages do not repeat the address, in which a secret may be.
        if " " in self.address or not self.address.isprintable():
            raise ValueError(f"{self.flag}: the address has a space or a line break: write %20 for a space.")
        try:
            parts = urllib.parse.urlsplit(self.address)
            _ = parts.port  # is read only now
        except ValueError:
            raise ValueError(f"{self.flag}: the address has no valid server or port: correct it.") from None
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError(
                f"{self.flag}: the address at {parts.hostname} holds a name, a password or a query, which would be "
                f"written into logs and checkpoints: put them into ~/.netrc or into the variable {AUTHORIZATION}."
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"{self.flag} {shorten(self.address)}: pass a folder, or an address with http:// or https://."
            )

    def __str__(self) -> str:
        return self.address.split()[0] + " ..." if self.address.startswith(PIPE) else self.address

    def place(self, file: str) -> str:
        """Return the address of a file, or the command that prints it."""
        if self.address.startswith(PIPE):
            return self.address[len(PIPE) :].replace("{}", shlex.quote(file))
        return f"{self.address.rstrip('/')}/{urllib.parse.quote(file)}"

    def chunks(self, file: str, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """Yield the bytes of a file with their places in it, from `start` on if the server can do that, else from 0.

        Raises FetchError.
        """
        yield from (_printed if self.address.startswith(PIPE) else _answered)(self.place(file), start)


def _printed(command: str, start: int) -> Iterator[tuple[int, bytes]]:
    place = 0
    with subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            while chunk := process.stdout.read(CHUNK):
                yield place, chunk
                place += len(chunk)
        finally:
            process.stdout.close()  # so that a command ends which nobody reads any more
    if process.returncode:
        raise FetchError(f"the command ended with exit code {process.returncode}")


def _answered(url: str, start: int) -> Iterator[tuple[int, bytes]]:
    request = urllib.request.Request(url, headers={"User-Agent": "shards"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    if secret := _authorization(urllib.parse.urlsplit(url).hostname or ""):
        request.add_unredirected_header("Authorization", secret)
    try:
        with urllib.request.urlopen(request, timeout=SILENCE) as answer:
            begins = answer.status == 206 and str(answer.headers.get("Content-Range")).startswith(f"bytes {start}-")
            place = start if begins else 0
            if answer.status != 200 and not begins:
                raise FetchError(f"{answer.status} {answer.reason}")
            while chunk := answer.read(CHUNK):
                yield place, chunk
                place += len(chunk)
            if answer.length:  # http.client reports this only if everything is read at once
                raise FetchError(f"the answer broke off {answer.length:,} bytes before its end")
    except FetchError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        # urllib follows redirections; an error is one that goes round in circles, or to what is no server.
        in_vain = 300 <= error.code < 500 and error.code not in (408, 416, 425, 429)
        reason = str(error.reason).partition("\n")[0]  # urllib adds lines to that of circles
        raise FetchError(f"{error.code} {reason}", final=in_vain) from error
    except urllib.error.URLError as error:
        raise FetchError(f"no answer, {error.reason}") from error
    except HTTPException as error:
        raise FetchError(f"the answer broke off, {type(error).__name__}") from error
    except OSError as error:
        raise FetchError(f"the answer broke off, {error}") from error


def _authorization(host: str) -> str:
    """Return the value of the header Authorization for a server, or "" for none."""
    if secret := os.environ.get(AUTHORIZATION, "").strip():
        if not (secret.isascii() and secret.isprintable()):  # http.client would refuse it and repeat it
            raise ValueError(f"{AUTHORIZATION} has a line break or a letter that is not ASCII: set it again.")
        return secret
    try:
        entry = netrc.netrc().hosts.get(host)
    except FileNotFoundError:
        return ""
    except netrc.NetrcParseError as error:
        raise ValueError(f"{error.filename} cannot be read ({error.msg}, line {error.lineno}): correct it.") from error
    return "Basic " + base64.b64encode(f"{entry[0]}:{entry[2]}".encode()).decode() if entry else ""


class Patience:
    """Waits before another try: longer each time, and for at most `seconds` since the download last got on."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.gets_on()

    def gets_on(self) -> None:
        """Begin anew: bytes have arrived that were not there before."""
        self.until, self.wait = time.monotonic() + self.seconds, FIRST_WAIT

    def wait_or_raise(self, error: OSError, what: str) -> None:
        """Wait; or raise OSError, which names `what` was tried, if the time is over."""
        left = self.until - time.monotonic()
        if left <= 0:
            raise OSError(
                f"{what} could not be downloaded ({error}), tried for {self.seconds:g} s: check the address and the "
                "server, or raise --shard_patience."
            ) from error
        wait = min(self.wait * _random.uniform(0.5, 1), left)
        _log.warning("%s: %s; trying again in %.1f s", what, error, wait)
        time.sleep(wait)
        self.wait = min(2 * self.wait, LONGEST_WAIT)


def fetch_index(source: Source, seconds: float) -> ShardIndex:
    """Download and check an index; tries again for `seconds`, but not if the server says that there is none.

    Raises OSError, or ValueError as `parse_index` does.
    """
    name, patience = source.place(INDEX) if "://" in source.address else f"{source} {INDEX}", Patience(seconds)
    while True:
        content = bytearray()
        try:
            for _, chunk in source.chunks(INDEX):
                content += chunk
                if len(content) > LARGEST_INDEX:
                    raise FetchError(f"more than {LARGEST_INDEX:,} bytes", final=True)
            return parse_index(content.decode("utf-8-sig"), name)
        except UnicodeDecodeError as error:
            raise ValueError(f"{name} is not text in UTF-8: check the address.") from error
        except FetchError as error:
            if error.final:
                raise OSError(f"{name} could not be downloaded ({error}): check the address.") from error
            patience.wait_or_raise(error, name)


def fetch(source: Source, shard: Shard, part: Path, seconds: float) -> None:
    """Download a shard into the file `part`, which may hold its first bytes already; tries again for `seconds` after
    the last progress.

    Raises OSError if that is not enough, or if the file cannot be written.
    """
    what = source.place(shard.file) if "://" in source.address else f"{source} {shard.file}"
    patience, longest = Patience(seconds), 0
    while True:
        try:
            _take(source, shard, part)
            return
        except FetchError as error:
            if (size := part.stat().st_size) > longest:
                longest = size
                patience.gets_on()
            if size >= shard.bytes:  # all of it, and wrong
                os.truncate(part, 0)
            patience.wait_or_raise(error, what)


def _take(source: Source, shard: Shard, part: Path) -> None:
    """Download what is missing of a shard; raises FetchError unless it then has the bytes of the index."""
    with _write_errors(part), open(part, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size < shard.bytes:
            for place, chunk in source.chunks(shard.file, size):
                file.seek(place)
                file.write(chunk)
                size = file.tell()
                if size > shard.bytes:
                    break
            file.truncate(size)
        if size < shard.bytes:
            file.flush()
            raise FetchError(f"the answer broke off after {size:,} of {shard.bytes:,} bytes")
        if size > shard.bytes or sha256_of(file) != shard.sha256:
            raise FetchError(f"{size:,} bytes came that are not those of {INDEX}, which says {shard.bytes:,}")
        os.fsync(file.fileno())


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Give an OSError of the disk a message with the file and the fix."""
    try:
        yield
    except FetchError:
        raise
    except OSError as error:
        raise OSError(
            f"{path}: could not be written ({error.strerror or error}); make room there, or name another --shard_cache."
        ) from error
