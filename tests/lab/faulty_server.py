"""An HTTP server on 127.0.0.1 that does wrong on command: it truncates, stalls, lies, or serves something else."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def etag(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()[:16]}"'


@dataclass
class Request:
    """What was asked for, and what came of it."""

    path: str
    range: str | None
    if_range: str | None
    agent: str | None
    status: int = 0


@dataclass
class FaultyServer:
    """``files`` by path; ``faults`` by path are used up one a request, but for those that are ``always``."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list["Fault"]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    sent: threading.Event = field(default_factory=threading.Event)

    def asked(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path == path]

    @property
    def ranges(self) -> list[str | None]:
        return [request.range for request in self.requests]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faulty: FaultyServer

    def do_GET(self) -> None:
        self.close_connection = True
        headers = self.headers
        self.request_ = Request(self.path, headers["Range"], headers["If-Range"], headers["User-Agent"])
        self.faulty.requests.append(self.request_)
        body = self.faulty.files.get(self.path)
        faults = self.faulty.faults.get(self.path, [])
        fault = faults[0] if faults and getattr(faults[0], "always", False) else faults.pop(0) if faults else None
        if fault is not None:
            fault(self, body)
        elif body is None:
            self.head(404, 0)
        else:
            self.serve(body)

    def head(self, status: int, length: int | None, **more: str) -> None:
        self.request_.status = status
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in more.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def span(self, body: bytes) -> int:
        """Where an honest answer to this request begins; 0: all of it."""
        asked, condition = self.headers["Range"], self.headers["If-Range"]
        if asked is None or (condition is not None and condition != etag(body)):
            return 0
        return int(asked.removeprefix("bytes=").removesuffix("-"))

    def serve(
        self, body: bytes, *, upto: int | None = None, lie: int = 0, ignore_range: bool = False, **more: str
    ) -> None:
        """The honest answer, but for the first ``upto`` bytes of the body only, and with ``lie`` in its length."""
        start = 0 if ignore_range else self.span(body)
        if start >= len(body):
            self.head(416, 0, Content_Range=f"bytes */{len(body)}")
            return
        named = {"ETag": etag(body), "Accept_Ranges": "bytes", **more}
        if start:
            named["Content_Range"] = f"bytes {start}-{len(body) - 1 + lie}/{len(body) + lie}"
        self.head(206 if start else 200, len(body) - start + lie, **named)
        self.wfile.write(body[start : start + upto] if upto is not None else body[start:])
        self.wfile.flush()
        self.faulty.sent.set()

    def log_message(self, *_: object) -> None:
        pass


Fault = Callable[[_Handler, bytes], None]


def always(fault: Fault) -> Fault:
    """A fault for every request, not for one."""
    fault.always = True  # type: ignore[attr-defined]
    return fault


def truncate(count: int) -> Fault:
    """Close the connection after ``count`` bytes of the answer's body."""
    return lambda handler, body: handler.serve(body, upto=count)


def stall(count: int) -> Fault:
    """Send ``count`` bytes, then nothing, and keep the connection open."""

    def fault(handler: _Handler, body: bytes) -> None:
        handler.serve(body, upto=count)
        handler.faulty.closing.wait(20)

    return fault


def drip(pause: float) -> Fault:
    """Send a byte now and then."""

    def fault(handler: _Handler, body: bytes) -> None:
        handler.serve(body, upto=1)
        for position in range(1, len(body)):
            if handler.faulty.closing.wait(pause):
                return
            try:
                handler.wfile.write(body[position : position + 1])
            except OSError:
                return

    return fault


def lie_about_length(by: int) -> Fault:
    """Say that the file is ``by`` bytes longer than it is, or shorter."""
    return lambda handler, body: handler.serve(body, lie=by, upto=len(body) + min(by, 0))


def ignore_range() -> Fault:
    """Send everything, whatever was asked for."""
    return lambda handler, body: handler.serve(body, ignore_range=True)


def wrong_range(shift: int) -> Fault:
    """Answer with another range than was asked for."""

    def fault(handler: _Handler, body: bytes) -> None:
        start = handler.span(body) + shift
        handler.head(206, len(body) - start, Content_Range=f"bytes {start}-{len(body) - 1}/{len(body)}")
        handler.wfile.write(body[start:])

    return fault


def shifted_bytes(shift: int) -> Fault:
    """Claim the range that was asked for, and send other bytes."""

    def fault(handler: _Handler, body: bytes) -> None:
        start = handler.span(body)
        handler.head(206, len(body) - start, Content_Range=f"bytes {start}-{len(body) - 1}/{len(body)}")
        handler.wfile.write(body[start - shift : len(body) - shift])

    return fault


def other_file(body_served: bytes, **more: str) -> Fault:
    """Serve something else, honestly; with ``upto``, a part of it."""
    return lambda handler, body: handler.serve(body_served, **more)


def other_file_truncated(body_served: bytes, count: int) -> Fault:
    return lambda handler, body: handler.serve(body_served, upto=count)


def status(code: int, **more: str) -> Fault:
    return lambda handler, body: handler.head(code, 0, **more)


def redirect(to: str) -> Fault:
    return status(302, Location=to)


def close() -> Fault:
    """Close the connection without an answer."""
    return lambda handler, body: None


def html() -> Fault:
    """A page of words with status 200."""
    page = b"<!DOCTYPE html><title>Please log in</title>"

    def fault(handler: _Handler, body: bytes) -> None:
        handler.head(200, len(page), Content_Type="text/html; charset=utf-8")
        handler.wfile.write(page)

    return fault


def without_length(upto: int | None = None) -> Fault:
    """No Content-Length: the body ends where the connection does."""

    def fault(handler: _Handler, body: bytes) -> None:
        handler.head(200, None, ETag=etag(body))
        handler.wfile.write(body[:upto])

    return fault


def endless() -> Fault:
    """A body that goes on."""

    def fault(handler: _Handler, body: bytes) -> None:
        handler.head(200, None)
        try:
            while not handler.faulty.closing.is_set():
                handler.wfile.write(body)
        except OSError:
            pass

    return fault


@contextmanager
def faulty_server() -> Iterator[FaultyServer]:
    faulty = FaultyServer()
    handler = type("Handler", (_Handler,), {"faulty": faulty})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    faulty.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005})
    thread.start()
    try:
        yield faulty
    finally:
        faulty.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
