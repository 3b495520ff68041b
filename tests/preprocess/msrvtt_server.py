"""A server that stands for those of MSR-VTT, and runs of download_msrvtt.sh against it."""

import hashlib
import io
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from tests.small_data import SmallData

SCRIPT = Path(__file__).parents[2] / "preprocess" / "download_msrvtt.sh"
WEIGHTS = np.random.default_rng(0).bytes(300_000)
LISTS = ("MSRVTT_data.json", "MSRVTT_train.9k.csv", "MSRVTT_JSFUSION_test.csv")


@dataclass
class Server:
    """A web server with some files, which can misbehave and records its requests."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    breaks: int = 0  # how many answers end after half of their stated length
    status_after_break: int = 0
    status: int = 0  # if not 0, the answer to everything
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path, the header Range

    def handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers["Range"]
                server.asked.append((self.path, asked))
                if server.status or self.path not in server.files:
                    self.send_error(server.status or 404)
                    return
                content = server.files[self.path]
                start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and server.ranges else 0
                if start >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                rest = content[start:]
                if server.breaks:
                    server.breaks -= 1
                    server.status = server.status_after_break
                    rest = rest[: len(rest) // 2]
                self.wfile.write(rest)

            def log_message(self, *args: object) -> None:
                pass

        return Handler


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in members.items():
            target.writestr(name, content)
    return buffer.getvalue()


def captions_archive(data: SmallData) -> bytes:
    return archive({f"msrvtt_data/{name}": (data.folder / name).read_bytes() for name in LISTS})


def videos_archive(data: SmallData) -> bytes:
    videos = {f"MSRVTT/videos/all/{path.name}": path.read_bytes() for path in data.videos.iterdir()}
    return archive({"MSRVTT/annotation/MSR_VTT.json": b"{}", "__MACOSX/._video0.mp4": b"no video", **videos})


@contextmanager
def serving(data: SmallData) -> Iterator[Server]:
    """Serve weights, captions and videos from memory."""
    served = Server("")
    with ThreadingHTTPServer(("127.0.0.1", 0), served.handler()) as running:
        served.url = f"http://127.0.0.1:{running.server_port}"
        served.files = {
            "/clip.pt": WEIGHTS,
            "/captions.zip": captions_archive(data),
            "/videos.zip": videos_archive(data),
        }
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield served
        running.shutdown()


@dataclass(frozen=True)
class Place:
    """The folders that a test downloads to, and the environment that names them."""

    folder: Path
    url: str

    @property
    def data(self) -> Path:
        return self.folder / "data with space" / "msrvtt"

    @property
    def weights(self) -> Path:
        return self.folder / "pretrained"

    def run(self, *flags: str, stdin: int = subprocess.DEVNULL, **changed: str) -> subprocess.CompletedProcess[str]:
        values = {
            "PYTHON": sys.executable, "HOME": str(self.folder), "no_proxy": "*",
            "DATA_PATH": str(self.data), "pretrained_dir": str(self.weights),
            "clip_url": f"{self.url}/clip.pt", "clip_sha256": hashlib.sha256(WEIGHTS).hexdigest(),
            "captions_url": f"{self.url}/captions.zip", "videos_url": f"{self.url}/videos.zip", "n_videos": "17",
            "weights_mb": "1", "captions_mb": "1", "videos_mb": "1", "max_tries": "2", "retry_wait": "0",
        }  # fmt: skip
        # Loading modules/clip_weights.py takes seconds, so only tests about weights fetch them.
        return subprocess.run(
            ["bash", str(SCRIPT), *flags], env=os.environ | {"parts": "captions videos"} | values | changed,
            stdin=stdin, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    def content(self) -> set[str]:
        return {str(path.relative_to(self.data)) for path in self.data.rglob("*") if path.is_file()}


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """Return the only line of a failed run's stderr."""
    assert done.returncode in (1, 2), done
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(".")
    return line
