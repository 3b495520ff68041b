# ruff: noqa: E402  (imports come after the skip)
"""`python -m search serve`: its address, its token, what it says when it cannot start, and how it ends."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.search.page.browser import skip_without_page

skip_without_page()

import uvicorn

from search.__main__ import main
from search.page.app import make_app
from search.page.guard import Guard
from search.page.page import Page
from search.page.server import address_of, bind, choose_token, is_loopback, names_of

ROOT = Path(__file__).parents[3]


def test_mistakes_are_told_before_anything_is_loaded(own_site, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("search.model.load_clip", lambda *_, **__: pytest.fail("loaded"))
    index = ["--index", str(own_site.index)]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for flags, words in (
            (["--index", str(tmp_path / "nothing")], "has no index"),
            ([*index, "--port", port], f"--port {port} is in use"),
            ([*index, "--port", "70000"], "out of range"),
            ([*index, "--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
            ([*index, "--port", "0", "--host", "192.0.2.1"], "cannot be opened"),
            ([*index, "--port", "0", "--token", "short"], "16 to 200"),
            ([*index, "--port", "0", "--token", "with a blank and more"], "16 to 200"),
            ([*index, "--port", "0", "--model", "other"], "other"),
        ):
            assert main(["serve", *flags]) == 2, flags
            out, told = capfd.readouterr()
            assert words in told
            assert out == ""
            assert told.startswith("error: ")
            assert len(told.splitlines()) == 1


@pytest.mark.parametrize("package", ["fastapi", "uvicorn"])
def test_without_its_libraries(own_site, capfd, monkeypatch, package):
    found = sys.modules["importlib.util"].find_spec
    monkeypatch.setattr("search.page.server.find_spec", lambda name: None if name == package else found(name))
    assert main(["serve", "--index", str(own_site.index)]) == 2
    told = capfd.readouterr().err
    assert package in told
    assert "pip install -r requirements-search.txt" in told


def test_a_token_where_others_can_ask():
    with bind("127.0.0.1", 0) as opened:
        assert is_loopback(opened)
        assert choose_token("", opened) == ""
        assert choose_token("x" * 16, opened) == "x" * 16
    with bind("0.0.0.0", 0) as opened:
        assert not is_loopback(opened)
        made = {choose_token("", opened) for _ in range(3)}
        assert len(made) == 3
        assert all(len(token) >= 32 for token in made)
        assert choose_token("y" * 20, opened) == "y" * 20


def test_names_and_addresses():
    assert names_of("127.0.0.1", True) == {"localhost", "127.0.0.1"}
    assert socket.gethostname().lower() in names_of("0.0.0.0", False)
    assert "" not in names_of("0.0.0.0", False)
    assert address_of("127.0.0.1", 80, "") == "http://127.0.0.1:80/"
    assert address_of("::1", 80, "t") == "http://[::1]:80/?token=t"
    assert address_of("0.0.0.0", 80, "t") == f"http://{socket.gethostname()}:80/?token=t"


@pytest.fixture
def port(own_site):
    """A real server in this process."""
    with bind("127.0.0.1", 0) as opened:
        opened.listen()
        config = uvicorn.Config(Guard(make_app(Page(own_site.index)), {"localhost"}), log_level="critical", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
        thread.start()
        yield opened.getsockname()[1]
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def fetch(port: int, path: str, method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
    """Ask for a path as it is; a browser would change some."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body)
    answer = connection.getresponse()
    got = answer.status, answer.read()
    connection.close()
    return got


def test_paths_that_lead_elsewhere(own_site, port):
    secret = own_site.index.parent / "secret.txt"
    secret.write_text("secret")
    up = "../" * 12
    for path in (
        f"/{up}etc/passwd", f"/video/{up}etc/passwd", "/video/..%2f..%2f..%2fetc%2fpasswd", "/%2e%2e/%2e%2e/etc/passwd",
        f"/video/{secret}", f"/video/%2f{str(secret)[1:]}", f"//{secret}", "/video/1:0/../../secret.txt", "/./page.py",
        "/../app.py", "/video/1:0%00.mp4", "/video/1%3a0/x", "/thumb/%ff%fe", "/clip/..", "/maps/.", "/clip/../app.py",
    ):  # fmt: skip
        status, body = fetch(port, path)
        assert status == 404, path
        assert b"secret" not in body.replace(b"secret.txt", b"")
    assert fetch(port, f"/video/{own_site.ids['0.mp4'].replace(':', '%3A')}")[0] == 200


def test_an_upload_that_is_too_large_is_not_waited_for(port):
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        head = f"POST /api/upload?kind=clip HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {1 << 40}\r\n\r\n"
        connection.sendall(head.encode())
        answer = connection.makefile("rb").read()  # to the end: the server closes the connection
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"64 MB" in answer
    assert fetch(port, "/api/index")[0] == 200


def test_bytes_that_are_no_request(port):
    for sent in (b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\r\n" * 50):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            assert connection.makefile("rb").read()[:12] in (b"HTTP/1.1 400", b"")
    assert fetch(port, "/api/index")[0] == 200


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_command(own_site, host):
    """It prints where it is, answers, and ends in one line at Ctrl-C, also while a video is being sent."""
    command = [sys.executable, "-m", "search", "serve", "--index", str(own_site.index), "--port", "0", "--host", host]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes) as process:
        try:
            line = process.stdout.readline()
            said = re.match(r"http://([^:/]+):(\d+)/(?:\?token=(\S+))?  \(Ctrl-C ends it\)$", line)
            assert said, line
            port, token = int(said[2]), said[3]
            assert bool(token) == (host == "0.0.0.0")
            assert fetch(port, "/api/index")[0] == (401 if token else 200)
            if token:
                assert fetch(port, f"/?token={token}")[0] == 303
            else:
                assert fetch(port, f"/thumb/{own_site.ids['0.mp4']}")[0] == 200
                assert fetch(port, "/api/upload?kind=clip", "POST", b"no video")[0] == 400
            idle = socket.create_connection(("127.0.0.1", port))
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all processes
            out, told = process.communicate(timeout=60)
            idle.close()
        finally:
            process.kill()
    assert (process.returncode, out, told) == (0, "", "the page has ended\n")
    with socket.create_server(("127.0.0.1", port)):
        pass  # nothing is left that holds the port
