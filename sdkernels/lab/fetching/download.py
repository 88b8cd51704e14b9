"""Download one file over HTTP from the first address that gives it whole, continuing what an earlier run began."""

import http.client
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

from sdkernels.lab.fetching.checksums import mismatch
from sdkernels.lab.fetching.partial import FetchError, Partial

_CHUNK = 1 << 16
_UNKNOWN_SIZE_LIMIT = 1 << 31  # a file of unknown size that has no end is given up at 2 GiB
_TRY_AGAIN = {408, 425, 429}  # besides all of 5xx: request timeout, too early, too many requests
_LONGEST_PAUSE = 30.0
_HEADERS = {
    "User-Agent": "sdkernels-data-fetch",  # some publishers turn urllib's own name away
    "Accept-Encoding": "identity",  # lengths, ranges and checksums speak of the file as it is
}


@dataclass(frozen=True)
class Patience:
    """How long a slow or failing server is borne with.

    Attributes:
        timeout: seconds without a byte, or at less than ``slowest``, after which a connection is given up.
        tries: in a row at one address that get no further than ``progress`` bytes beyond the ones before.
        pause: seconds before the second try; doubles, to at most 30.
        slowest: bytes per second, over ``timeout`` seconds.
        progress: bytes that make a broken try one that got further.
    """

    timeout: float = 30.0
    tries: int = 4
    pause: float = 1.0
    slowest: int = 200
    progress: int = 1 << 16


class NoAddressError(FetchError):
    """No address gave the file; another way to the data may."""


class _TryAgainError(Exception):
    """This address may yet give the file."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class _GiveUpError(Exception):
    """This address will not give the file."""


def download(
    addresses: tuple[str, ...],
    target: Path,
    *,
    size: int | None = None,
    checksums: tuple[str, ...] = (),
    patience: Patience | None = None,
    show_progress: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> str:
    """Download a file; on return ``target`` is there, whole and verified.

    Bytes are collected in ``target`` + ``.partial``, which outlives errors, Ctrl-C and kills: the next call asks the
    server for the rest only (``Range``), provided that the file is still the same (``If-Range``, or a published
    checksum, by which another address may continue too). What cannot be joined is begun anew.

    Args:
        addresses: of the same file, best first, ``http`` or ``https``.
        target: in an existing folder.
        size: in bytes, if it is known.
        checksums: ``"md5:..."``, ``"sha1:..."``, ``"sha256:..."``; without any, the server's lengths are all there
            is to go by.
        patience: by default 30 seconds and 4 tries.
        show_progress: a bar with rate and time left, if standard error is a terminal.
        say: is told what went wrong and what is tried next.

    Returns:
        The address that gave the (last part of the) file.

    Raises:
        NoAddressError: no address gave the file; lists what each did.
        FetchError: the file cannot be written.
    """
    partial = Partial(target)
    patience = patience or Patience()
    failures = []
    for address in addresses:
        attempt = _Attempt(address, partial, size, checksums, patience, show_progress, say)
        try:
            attempt.run()
        except _GiveUpError as failure:
            failures.append(f"{address}: {failure}")
            say(failures[-1])
        else:
            partial.place()
            return address
    kept = f"; {partial.length:,} bytes are kept, and the same command continues there" if partial.length else ""
    raise NoAddressError(f"no address gave {target.name} ({'; '.join(failures)}){kept}")


@dataclass
class _Attempt:
    address: str
    partial: Partial
    size: int | None
    checksums: tuple[str, ...]
    patience: Patience
    show_progress: bool
    say: Callable[[str], None]

    def run(self) -> None:
        """Get and verify the file, or raise _GiveUpError."""
        furthest, failures, joined_wrongly = self._resumable(), 0, False
        while True:
            continued = self._resumable() > 0
            try:
                self._receive()
            except _TryAgainError as reason:
                # only ground that no try has covered counts: a server that begins anew each time gets nowhere
                got_further = self.partial.length >= furthest + self.patience.progress
                failures = 0 if got_further else failures + 1
                furthest = max(furthest, self.partial.length)
                if failures >= self.patience.tries:
                    raise _GiveUpError(f"{reason} ({failures} tries)") from reason
                pause = min(max(self.patience.pause * 2 ** max(failures - 1, 0), reason.pause), _LONGEST_PAUSE)
                self.say(f"{self.address}: {reason}; trying again in {pause:.3g} s")
                time.sleep(pause)
                continue
            wrong = mismatch(self.partial.path, self.size, self.checksums) if self.partial.length else "an empty file"
            if wrong is None:
                return
            self.partial.clear()
            if joined_wrongly or not continued:
                raise _GiveUpError(f"serves another file: {wrong}")
            joined_wrongly = True
            self.say(f"{self.address}: the continued file is wrong ({wrong}); once more from the start")

    def _resumable(self) -> int:
        """How many bytes can be kept: those that a validator or a checksum will vouch for."""
        length = self.partial.length
        known = self.checksums or self.partial.validator(self.address)
        return length if known and length <= (self.size or _UNKNOWN_SIZE_LIMIT) else 0

    def _receive(self) -> None:
        """One request, its body appended to the partial file."""
        start = self._resumable()
        if start and start == self.size:
            return  # an earlier run was killed between the last byte and the verification
        headers = dict(_HEADERS)
        if start:
            headers["Range"] = f"bytes={start}-"
            if validator := self.partial.validator(self.address):
                headers["If-Range"] = validator
        try:
            response = urllib.request.urlopen(
                urllib.request.Request(self.address, headers=headers), timeout=self.patience.timeout
            )
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error, start) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _broken(error, self.patience.timeout) from error
        with response:
            length = _content_length(response.headers)
            total: int | None
            if response.status == 206 and start:
                total = self._continued(response.headers, start, length)
            elif response.status == 200:
                if start:
                    self.say(f"{self.address}: does not continue, or the file has changed; from the start")
                start, total = 0, length
            else:
                raise _GiveUpError(f"answers {response.status} to a plain request")
            self._refuse_other_files(response.headers, total)
            if start == 0:
                named = {"etag": response.headers.get("ETag"), "last_modified": response.headers.get("Last-Modified")}
                self.partial.begin({"address": self.address, **{k: v for k, v in named.items() if v}})
            self.partial.append(self._chunks(response, start, total))
        expected = total if total is not None else self.size
        if expected is not None and self.partial.length < expected:
            raise _TryAgainError(f"stopped after {self.partial.length:,} of {expected:,} bytes")

    def _refusal(self, error: urllib.error.HTTPError, start: int) -> Exception:
        if error.code == 416 and start:
            self.partial.clear()
            return _TryAgainError(f"has no bytes after the first {start:,}; the partial file is dropped")
        if error.code in _TRY_AGAIN or error.code >= 500:
            after = error.headers.get("Retry-After", "")
            return _TryAgainError(f"{error.code} {error.reason}", float(after) if after.isdecimal() else 0.0)
        return _GiveUpError(f"{error.code} {error.reason}".replace("\n", " "))

    def _continued(self, headers: Message, start: int, length: int | None) -> int:
        """Check that a 206 continues where the partial file ends; the whole file's size."""
        content_range = headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", content_range.strip())
        first, last, total = map(int, match.groups()) if match else (-1, -1, -1)
        span_agrees = length is None or length == last - first + 1
        if first != start or last != total - 1 or not span_agrees or self.size not in (None, total):
            self.partial.clear()
            raise _TryAgainError(f"asked for bytes from {start:,}, answers with {content_range!r}")
        return total

    def _refuse_other_files(self, headers: Message, total: int | None) -> None:
        """Before the body: is this plainly not the file?"""
        if headers.get_content_type() == "text/html":
            raise _GiveUpError("answers with an HTML page (a log-in, a notice of a move?), not with the file")
        encoding = headers.get("Content-Encoding", "identity").lower()
        if encoding != "identity" and self.partial.target.suffix not in (".gz", ".tgz"):
            raise _GiveUpError(f"sends the file in Content-Encoding {encoding}, which was not asked for")
        if total is not None and self.size not in (None, total):
            raise _GiveUpError(f"says that the file has {total:,} bytes, where the publisher's has {self.size:,}")
        if total is not None and total > _UNKNOWN_SIZE_LIMIT and self.size is None:
            raise _GiveUpError(f"says that the file has {total:,} bytes, which is beyond any data set here")

    def _chunks(self, response: Any, position: int, total: int | None) -> Iterator[bytes]:
        """The body in pieces as they arrive; a stall, a crawl or an endless body ends it."""
        from tqdm import tqdm

        most = self.size or total or _UNKNOWN_SIZE_LIMIT
        since, in_window = time.monotonic(), 0
        with tqdm(
            total=total or self.size,
            initial=position,
            desc=self.partial.target.name,
            unit="B",
            unit_scale=True,
            leave=False,
            disable=None if self.show_progress else True,
        ) as bar:
            while True:
                try:
                    chunk = response.read1(_CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    raise _broken(error, self.patience.timeout) from error
                if not chunk:
                    return
                position += len(chunk)
                if position > most:
                    self.partial.clear()
                    raise _GiveUpError(f"sends more than the {most:,} bytes of the file")
                yield chunk
                bar.update(len(chunk))
                in_window += len(chunk)
                seconds = time.monotonic() - since
                if seconds >= self.patience.timeout:
                    if in_window < self.patience.slowest * seconds:
                        raise _TryAgainError(f"only {in_window:,} bytes in {seconds:.3g} s")
                    since, in_window = time.monotonic(), 0


def _content_length(headers: Message) -> int | None:
    """None: not said, or nonsense; then the body ends where the connection does."""
    text = headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def _broken(error: Exception, timeout: float) -> Exception:
    """What an error of the connection means for the next try."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, (ValueError, http.client.InvalidURL)):
        return _GiveUpError(f"is no address: {reason}")
    if isinstance(reason, TimeoutError):
        return _TryAgainError(f"no byte in {timeout:.3g} s")
    if isinstance(reason, ssl.SSLCertVerificationError):
        return _GiveUpError(f"its certificate cannot be verified: {reason.verify_message}")
    if isinstance(reason, socket.gaierror) and reason.errno != socket.EAI_AGAIN:
        return _GiveUpError(f"there is no such host from here ({reason.strerror})")
    text = str(reason) or type(reason).__name__
    return _TryAgainError(f"the connection broke: {text}")
