"""A browser, and a page served over a small index, for tests."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import av
import numpy as np

ROOT = Path(__file__).parents[3]
START = 120  # seconds until a server must have begun
HOSTILE = "<img src=x onerror=alert(1)>.mp4"


def find_chromium() -> str | None:
    """Return the path of a chromium of this machine."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def frames_of(path: Path) -> np.ndarray:
    """Return all frames of a clip, uint8 [T, H, W, 3]."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@contextmanager
def serving(index: Path, *flags: str) -> Iterator[str]:
    """Serve an index by `python -m search serve` on a free port; yield the page's address."""
    command = [sys.executable, "-m", "search", "serve", "--index", str(index), "--port", "0", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        line = process.stdout.readline()
        address = re.search(r"http://\S+", line)
        assert address, f"the server began with {line!r} and ended with {process.wait(START)}"
        yield address[0].rstrip("/")
    finally:
        process.terminate()
        process.wait(30)


@dataclass
class Watched:
    """A page of a browser, and what it has asked for, said and suffered."""

    page: Any
    address: str
    requests: list[str] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.trouble.append(f"error {error}"))
        self.page.on("dialog", lambda dialog: (self.trouble.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("console", self._note)

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.trouble.append(f"{message.type} {message.text}")

    def open(self, address: str = "/") -> Any:
        """Go to an address of the page; return the browser's page when it shows something."""
        self.page.goto(self.address + address)
        self.until("document.getElementById('facts').textContent")
        return self.page

    def until(self, condition: str) -> None:
        """Wait for a condition in JavaScript. Playwright's own way to wait evaluates text in the page, whose policy
        forbids that."""
        for _ in range(300):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"this did not become true: {condition}")

    def search(self, text: str) -> None:
        """Ask for a text, and wait for its hits."""
        self.page.fill("#q", text)
        self.page.press("#q", "Enter")
        self.wait_for_hits()

    def wait_for_hits(self) -> None:
        self.until("/moments? in/.test(document.getElementById('status').textContent)")

    def hosts(self) -> set[str]:
        """Return the hosts that were asked; pictures made in the page have none."""
        return {urlsplit(url).netloc for url in self.requests if not url.startswith(("blob:", "data:"))}

    def paths(self, kind: str) -> list[str]:
        """Return the paths of requests that begin with /kind/."""
        return [path for path in (urlsplit(url).path for url in self.requests) if path.startswith(f"/{kind}/")]

    def forgive(self) -> None:
        """Forget that the browser complained of requests that failed."""
        self.trouble = [line for line in self.trouble if "Failed to load resource" not in line]

    def answer(self, path: str, change: Callable[[dict[str, Any]], None]) -> None:
        """Let the server's answers at a path pass through `change`."""

        def handle(route: Any) -> None:
            answer = route.fetch()
            body = answer.json()
            change(body)
            route.fulfill(response=answer, body=json.dumps(body))

        self.page.route(f"**{path}*", handle)
