"""Runs the page: `python -m search serve`."""

import errno
import ipaddress
import re
import secrets
import socket
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from dataloaders.quoting import shorten
from search.engines.base import INSTALL
from search.page.allocator import keep_memory_together
from search.store import Store

SHORTEST = 16  # characters of a token


def serve(flags: Namespace) -> int:
    """Serve the page until it is interrupted."""
    for package in ("fastapi", "uvicorn"):
        if find_spec(package) is None:
            raise ValueError(f"the page needs {package}: install it ({INSTALL})")
    keep_memory_together()
    Store(Path(flags.index)).close()  # says what is wrong before anything takes long
    opened = bind(flags.host, flags.port)
    with opened:
        token = choose_token(flags.token, opened)
        import uvicorn

        from search.page.app import make_app
        from search.page.guard import Guard
        from search.page.page import Page

        places = flags.checkpoint, flags.pretrained_clip_name, flags.pretrained_dir
        page = Page(Path(flags.index), flags.model, places)
        port = opened.getsockname()[1]
        guarded = Guard(make_app(page), names_of(flags.host, is_loopback(opened)), token, f"search_token_{port}")
        config = uvicorn.Config(
            guarded, log_level="critical", access_log=False, server_header=False, ws="none", lifespan="on",
            timeout_graceful_shutdown=2,
        )  # fmt: skip
        with explained(flags.host, port):
            opened.listen(128)
        print(f"{address_of(flags.host, port, token)}  (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[opened])
    print("the page has ended", file=sys.stderr)
    return 0


def bind(host: str, port: int) -> socket.socket:
    """Return a socket with this address, which does not listen yet; ValueError or OSError if it cannot be had."""
    if not 0 <= port <= 65535:
        raise ValueError(f"--port {port} is out of range: pass 1 to 65535, or 0 for any that is free")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise ValueError(f"--host {shorten(host)} is no address of this machine: pass 127.0.0.1 or 0.0.0.0") from None
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with explained(host, port):
            opened.bind(address)
    except BaseException:
        opened.close()
        raise
    return opened


@contextmanager
def explained(host: str, port: int) -> Iterator[None]:
    """Say what to do about an address that cannot be had."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OSError(f"--port {port} is in use by another program: pass another one") from error
        raise OSError(f"--host {host} --port {port}: cannot be opened ({error.strerror}): pass others") from error


def choose_token(given: str, opened: socket.socket) -> str:
    """Return the token that callers need: the one given, a new one if others can reach the server, or "" for none."""
    if given and not re.fullmatch(rf"[A-Za-z0-9_-]{{{SHORTEST},200}}", given):
        raise ValueError(
            f"--token: pass {SHORTEST} to 200 letters, digits, - and _, which nobody can guess; left out, one is made"
        )
    if given or is_loopback(opened):
        return given
    return secrets.token_urlsafe(24)


def is_loopback(opened: socket.socket) -> bool:
    """Return whether only programs on this machine can reach a socket."""
    return ipaddress.ip_address(opened.getsockname()[0].partition("%")[0]).is_loopback


def names_of(host: str, loopback: bool) -> set[str]:
    """Return the names by which callers may call the server; addresses in numbers need not be among them."""
    name = "" if loopback else socket.gethostname().lower()
    return {"localhost", host.lower()} | ({name, f"{name}.local", socket.getfqdn().lower()} if name else set())


def address_of(host: str, port: int, token: str) -> str:
    """Return the address to open in a browser."""
    if host in ("0.0.0.0", "::", ""):
        host = socket.gethostname()
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + f"?token={token}" * bool(token)
