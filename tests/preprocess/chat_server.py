"""A server with OpenAI's interface for chats, which answers, well or badly, as a test says."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """What the server sends: a chat completion with `text`, or another `status` or `body`; after `wait` seconds."""

    text: str = ""
    status: int = 200
    body: str | None = None
    wait: float = 0.0
    finish: str = "stop"
    hang_up: bool = False

    def content(self) -> str:
        if self.body is not None:
            return self.body
        message = {"role": "assistant", "content": self.text}
        choice = {"index": 0, "message": message, "finish_reason": self.finish}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        return json.dumps(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": "stub",
                "choices": [choice],
                "usage": usage,
            }
        )


@dataclass
class Chats:
    """The server's address, and the requests that it got, with their headers."""

    url: str
    asked: list[Body] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def chat_server(reply: Callable[[Body, int], Reply]) -> Iterator[Chats]:
    """Serve `reply(request, its number from 0)` on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(chats.asked)
                chats.asked.append(body)
                chats.headers.append({name.lower(): value for name, value in self.headers.items()})
            answer = reply(body, number)
            stopped.wait(answer.wait)
            if answer.hang_up:
                self.close_connection = True
                return
            content = answer.content().encode()
            self.send_response(answer.status)
            self.send_header("Content-Type", "application/json" if content.startswith(b"{") else "text/html")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            with suppress(OSError):  # the client no longer waits
                self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    lock, stopped = threading.Lock(), threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    chats = Chats(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield chats
    finally:
        stopped.set()
        server.shutdown()
        server.server_close()
