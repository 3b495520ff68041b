"""Times the page of the search under load: users who ask, look at thumbnails and begin to watch, all at once.

    python -m benchmarks.search_page
    python -m benchmarks.search_page --windows 1000000 --clip pretrained/ViT-B-32.pt

Needs neither data nor weights: without --clip, a ViT-B/32 with random weights answers. `python -m search serve` runs as
its own process on an index of made vectors. Its files are links to one small video. Each user asks a text that nobody
has asked before, then for the thumbnails of the hits and the first bytes of a video, and asks again at once. The second
half of the rows is measured while another process adds files to the index. Users share this machine's cores with the
server.

Shapes: N windows, E joint embedding.
"""

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Annotated
from urllib.parse import urlsplit

import av
import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.common import check_outputs, origin_of, parse_settings, write_json
from benchmarks.made_vectors import WINDOWS_OF_A_VIDEO, make_world
from engine.errors import print_report
from engine.flags import check_folder
from modules.backbones import ARCHITECTURES
from modules.clip import CLIP
from modules.clip_weights import to_openai_keys
from modules.options import Checked, Range
from modules.tokenizer import Tokenizer
from search.model import Source, load_encoder
from search.store import Content, Model, Store

ROOT = Path(__file__).parent.parent
WINDOW, STRIDE = 10.0, 5.0  # seconds
FIRST_BYTES = "bytes=0-65535"
KINDS = ("query", "thumb", "video")


@dataclass(frozen=True)
class Settings(Checked):
    """The flags."""

    windows: Annotated[int, "N", Range(WINDOWS_OF_A_VIDEO, 10_000_000)] = 100_000
    users: Annotated[int, "who ask at the same time", Range(1)] = 10
    seconds: Annotated[float, "to measure, twice", Range(0, above=True)] = 20.0
    top: Annotated[int, "hits of a query", Range(1, 100)] = 20
    clip: Annotated[str, "CLIP by name or path; empty: a ViT-B/32 with random weights"] = ""
    folder: Annotated[str, "folder for the files, which are deleted at the end; empty: the system's"] = ""
    output: Annotated[str, "json file for the numbers; empty: none"] = "results/search_page.json"


@dataclass(frozen=True)
class Row:
    """Requests of one kind: how many there were a second, and milliseconds until the whole answer had come."""

    kind: str
    indexing: bool  # whether files were added meanwhile
    requests: int
    errors: int
    per_second: float
    p50_ms: float
    p95_ms: float
    most_ms: float


@dataclass(frozen=True)
class Memory:
    """Megabytes of the server at the end and at most, and of the processes that decode for it, shared ones in part."""

    server_mb: float
    server_most_mb: float
    decoders_mb: float


def write_clip(path: Path) -> None:
    """Write a ViT-B/32 with random weights, in half precision."""
    torch.manual_seed(0)
    state = to_openai_keys(CLIP(ARCHITECTURES["ViT-B/32"]).state_dict())
    save_file({name: tensor.half().contiguous() for name, tensor in state.items()}, path, {"activation": "quick_gelu"})


def write_video(path: Path) -> float:
    """Write a small video with as many windows as each file has; return its seconds."""
    frames = int(STRIDE * (WINDOWS_OF_A_VIDEO - 1) + WINDOW)
    noise = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 144, 256, "yuv420p"
        for _ in range(frames):
            pixels = noise.integers(0, 256, (9, 16, 3), dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return float(frames)


@dataclass(frozen=True)
class MadeIndex:
    """An index of made vectors, whose files are links to one video."""

    folder: Path
    video: Path
    seconds: float
    model: Model
    vectors: np.ndarray

    def put(self, store: Store, number: int) -> None:
        """Add a file with the vectors of some file of the world."""
        path = self.video.parent / f"{number // 1000:06d}" / f"{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        os.link(self.video, path)
        status = path.stat()
        own = self.vectors[number * WINDOWS_OF_A_VIDEO % (len(self.vectors) - WINDOWS_OF_A_VIDEO + 1) :]
        starts = [STRIDE * place for place in range(WINDOWS_OF_A_VIDEO)]
        content = Content(str(path), status.st_size, status.st_mtime_ns, f"{1:064x}", self.seconds)
        store.put(content, self.model, starts, [start + WINDOW for start in starts], own[:WINDOWS_OF_A_VIDEO])


def make_index(settings: Settings, folder: Path) -> MadeIndex:
    """Write an index of N windows in an empty folder."""
    videos, clip = folder / "videos", settings.clip or str(folder / "clip.safetensors")
    videos.mkdir()
    if not settings.clip:
        write_clip(Path(clip))
    encoder = load_encoder(Source(pretrained_clip_name=clip, window=WINDOW, stride=STRIDE), probe=False)
    seconds = write_video(videos / "video.mp4")
    vectors = make_world(settings.windows, encoder.facts["dimension"], 1).vectors
    with Store(folder / "index", write=True) as store:
        store.add_root(str(videos), False)
        model = store.add_model(encoder.key, encoder.name, encoder.facts)
        made = MadeIndex(folder / "index", videos / "video.mp4", seconds, model, vectors)
        for number in range(settings.windows // WINDOWS_OF_A_VIDEO):
            made.put(store, number)
    return made


@contextmanager
def serving(index: Path) -> Iterator[tuple[subprocess.Popen[str], int, float]]:
    """Run the server; yield its process, its port, and the seconds until it could be asked. Raises OSError."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "search", "serve", "--index", str(index), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = urlsplit(process.stdout.readline().split(" ")[0])
            if not address.port:
                raise OSError("the server did not start: see what it printed")
            yield process, address.port, time.perf_counter() - begun
        finally:
            process.send_signal(signal.SIGINT)


class Users:
    """Threads that ask the server until they are stopped; `times` has seconds and statuses of each kind of request."""

    def __init__(self, settings: Settings, port: int) -> None:
        self._settings, self._port = settings, port
        words = [word for word in Tokenizer().vocabulary() if len(word) >= 3 and word.isascii() and word.isalpha()]
        self._words, self._seeds = sorted(words), count()
        self.times: dict[str, list[tuple[float, int]]] = {}

    def run(self, seconds: float) -> float:
        """Let all users ask for a while; return how long that was."""
        self.times = {kind: [] for kind in KINDS}
        begun = time.perf_counter()
        until = begun + seconds
        threads = [threading.Thread(target=self._use, args=(until,)) for _ in range(self._settings.users)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - begun

    def _use(self, until: float) -> None:
        draw = Random(next(self._seeds))
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        while time.perf_counter() < until:
            text = " ".join(draw.choices(self._words, k=draw.randint(3, 10)))
            question = json.dumps({"text": text, "top": self._settings.top})
            answer = self._ask(connection, "query", "POST", "/api/query", question, {})
            ids = [hit["id"] for hit in json.loads(answer or b"{}").get("hits", [])]
            for id_ in ids:
                self._ask(connection, "thumb", "GET", f"/thumb/{id_}", None, {})
            for id_ in ids[:1]:
                self._ask(connection, "video", "GET", f"/video/{id_}", None, {"Range": FIRST_BYTES})
        connection.close()

    def _ask(
        self, connection: http.client.HTTPConnection, kind: str, method: str, path: str, body: str | None,
        headers: dict[str, str],
    ) -> bytes:  # fmt: skip
        begun = time.perf_counter()
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            got, status = answer.read(), answer.status
        except (OSError, http.client.HTTPException):
            connection.close()
            got, status = b"", 0
        self.times[kind].append((time.perf_counter() - begun, status))
        return got if status == 200 else b""

    def rows(self, lasted: float, indexing: bool) -> Iterator[Row]:
        """Yield a row for each kind of request."""
        for kind, found in self.times.items():
            if found:
                ms = 1e3 * np.array([seconds for seconds, _ in found])
                errors = sum(status not in (200, 206) for _, status in found)
                late = [float(np.quantile(ms, share)) for share in (0.5, 0.95, 1)]
                yield Row(kind, indexing, len(found), errors, len(found) / lasted, *late)


def memory_of(pid: int) -> Memory:
    """Return what a process and those that it began take (Linux only)."""

    def megabytes(path: str, name: str) -> float:
        with suppress(OSError):
            for line in Path(path).read_text().splitlines():
                if line.startswith(f"{name}:"):
                    return int(line.split()[1]) / 1024
        return 0.0

    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    decoders = sum(megabytes(f"/proc/{child}/smaps_rollup", "Pss") for child in family - {pid})
    own = f"/proc/{pid}/status"
    return Memory(megabytes(own, "VmRSS"), megabytes(own, "VmHWM"), decoders)


def measure(settings: Settings, folder: Path) -> tuple[list[Row], Memory, float, int]:
    """Return the rows, the server's memory, the seconds that it took to start, and the files added meanwhile."""
    made = make_index(settings, folder)
    ended, added = threading.Event(), 0

    def add() -> None:
        nonlocal added
        with Store(made.folder, write=True) as store:
            while not ended.wait(0.1):
                made.put(store, settings.windows // WINDOWS_OF_A_VIDEO + added)
                added += 1

    with serving(made.folder) as (process, port, start):
        users = Users(settings, port)
        users.run(min(2.0, settings.seconds))  # makes the thumbnails that most hits share
        rows = list(users.rows(users.run(settings.seconds), False))
        indexer = threading.Thread(target=add)
        indexer.start()
        rows += users.rows(users.run(settings.seconds), True)
        ended.set()
        indexer.join()
        return rows, memory_of(process.pid), start, added


def report(settings: Settings) -> str:
    """Measure, write the file and return the text to print."""
    check_outputs(settings.output)
    if settings.folder:
        check_folder("--folder", Path(settings.folder))
        Path(settings.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings.folder or None) as folder:
        rows, memory, start, added = measure(settings, Path(folder))
    origin, where = origin_of(torch.device("cpu"))
    if settings.output:
        found = {
            "start_s": start,
            "files_added": added,
            "memory": asdict(memory),
            "rows": [asdict(row) for row in rows],
        }
        write_json(Path(settings.output), {"settings": asdict(settings), **origin, **found})
    lines = [f"{settings.users} users, {settings.windows:,} windows, top {settings.top}", where, ""]
    columns = ("", "requests", "errors", "per s", "p50 ms", "p95 ms", "most ms")
    lines.append("".join(f"{column:>{24 if not column else 10}}" for column in columns))
    for row in rows:
        name = f"{row.kind}{', indexing' if row.indexing else ''}"
        times = f"{row.per_second:>10.1f}{row.p50_ms:>10.0f}{row.p95_ms:>10.0f}{row.most_ms:>10.0f}"
        lines.append(f"{name:>24}{row.requests:>10}{row.errors:>10}{times}")
    lines.append(
        f"start {start:.1f} s; server {memory.server_mb:,.0f} MB, at most {memory.server_most_mb:,.0f}; its decoders "
        f"{memory.decoders_mb:,.0f} MB; {added} files added"
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    return print_report(lambda: report(parse_settings(Settings, argv)))


if __name__ == "__main__":
    sys.exit(main())
