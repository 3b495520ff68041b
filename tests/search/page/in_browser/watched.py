"""A page of a browser that notes what it asks for and what goes wrong."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tools.search_picture import until

HOSTILE = "<img src=x onerror=alert(1)>.mp4"


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
        """Wait for a condition in JavaScript."""
        until(self.page, condition)

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


FIRST = "document.querySelector('#results video')"
LARGE = "document.querySelector('#stage video')"


def moment_of(page: Any, card: int = 0) -> tuple[float, float]:
    """Return start and end of a hit, from what its card says."""
    times = page.locator("#results .time").nth(card).inner_text()
    start, end = (float(minutes) * 60 + float(seconds) for minutes, seconds in re.findall(r"(\d+):([\d.]+)", times))
    return start, end


def focused(page: Any) -> str:
    return page.evaluate("document.activeElement.id || document.activeElement.closest('li')?.id || ''")
