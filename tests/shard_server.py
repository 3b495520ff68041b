"""A server of shards on this machine that fails as it is told to."""

import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class ShardServer:
    """Serves the files of a folder; `faults` has, for a file's name, what happens at its next requests.

    A fault is a status such as "500", or "cut" (half of the answer), "wrong" (other bytes), "long" (more bytes than
    there are), "plain" (no Range) or "half" (half of it and no Range). `asked` has the requests: file, range
    and authorization.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: defaultdict[str, list[str]] = defaultdict(list)
        self.asked: list[tuple[str, str | None, str | None]] = []
        self.port = 0
        self.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start, on the same port as before if there was one."""
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                owner.answer(self)

        ThreadingHTTPServer.allow_reuse_address = True
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Die: nothing listens any more."""
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name, wanted = request.path.lstrip("/"), request.headers.get("Range")
        self.asked.append((name, wanted, request.headers.get("Authorization")))
        fault = self.faults[name].pop(0) if self.faults[name] else ""
        file = self.folder / name
        if fault.isdigit() or not file.is_file():
            request.send_error(int(fault or 404))
            return
        content = file.read_bytes()
        if fault == "wrong":
            content = bytes(len(content))
        begin = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and fault not in ("plain", "half") else 0
        whole = len(content)
        content = content[begin:]
        request.send_response(206 if begin else 200)
        if begin:
            request.send_header("Content-Range", f"bytes {begin}-{whole - 1}/{whole}")
        request.send_header("Content-Length", str(len(content) + (7 if fault == "long" else 0)))
        request.end_headers()
        request.wfile.write(
            content[: len(content) // 2] if fault in ("cut", "half") else content + b"x" * 7 * (fault == "long")
        )


@contextmanager
def serving(folder: Path) -> Iterator[ShardServer]:
    """Serve a folder while the context lasts."""
    server = ShardServer(folder)
    try:
        yield server
    finally:
        server.stop()
