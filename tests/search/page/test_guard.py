# ruff: noqa: E402  (imports come after the skip)
"""Who is let in: names of the server, pages of other sites, and tokens."""

import pytest

from tests.search.page.browser import skip_without_page

skip_without_page()

from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from search.page.guard import HEADERS, Guard

TOKEN = "a-token-that-nobody-can-guess"
OWN = "http://127.0.0.1:8765"


async def reached(scope, receive, send):
    await PlainTextResponse("reached")(scope, receive, send)


def client(token: str = "", *hosts: str) -> TestClient:
    guarded = Guard(reached, {"localhost", *hosts}, token)
    return TestClient(guarded, base_url=OWN, follow_redirects=False)


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "127.0.0.1", "localhost:9000", "LOCALHOST", "[::1]:8765", "[::1]"])
def test_own_names(host):
    assert client().get("/", headers={"Host": host}).text == "reached"


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "localhost.evil.example:8765", "192.168.1.5:8765",
     "8.8.8.8", "", ":8765", "[::1", "2130706433", "127.0.0.1:8765:1"],
)  # fmt: skip
def test_a_name_that_another_server_gave_us(host):
    answer = client().get("/", headers={"Host": host})
    assert answer.status_code == 400
    assert "does not go by that name" in answer.json()["error"]


def test_addresses_in_numbers_need_a_token_elsewhere():
    headers = {"Host": "192.168.1.5:8765", "Cookie": f"search_token={TOKEN}"}
    assert client(TOKEN).get("/", headers=headers).text == "reached"
    assert client(TOKEN).get("/", headers=headers | {"Host": "evil.example"}).status_code == 400
    assert client(TOKEN, "myserver").get("/", headers=headers | {"Host": "myserver:1"}).text == "reached"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": OWN}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "https://127.0.0.1:8765"}, 403),
        ({"Origin": "http://127.0.0.1:80"}, 403),
        ({"Origin": "http://localhost:8765"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_only_our_own_page_may_post(headers, status):
    assert client().post("/api/query", headers=headers).status_code == status


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
def test_other_methods(method):
    answer = client().request(method, "/", headers={"Origin": OWN})
    assert answer.status_code == 405
    assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize("host", ["127.0.0.1", "evil.example"])
def test_every_answer_has_the_headers(host):
    answer = client().get("/", headers={"Host": host})
    for name, value in HEADERS.items():
        assert answer.headers[name] == value
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert "access-control-allow-origin" not in answer.headers


def test_a_token_becomes_a_cookie():
    browser = client(TOKEN)
    for address in ("/", "/video/1:0", "/api/index", f"/?token={TOKEN[:-1]}", "/?token="):
        assert browser.get(address).status_code == 401, address
    assert browser.post("/api/query", headers={"Origin": OWN}).status_code == 401
    answer = browser.get(f"/?q=a+dog&token={TOKEN}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/?q=a+dog")
    cookie = answer.headers["set-cookie"]
    for word in ("HttpOnly", "SameSite=strict", "Path=/"):
        assert word in cookie
    assert browser.get("/").text == "reached"
    assert browser.post("/api/query", headers={"Origin": OWN}).text == "reached"
    assert browser.post("/api/query", headers={"Origin": "http://evil.example"}).status_code == 403


def test_a_wrong_cookie():
    for value in ("", "x", TOKEN[:-1], TOKEN + "x", "\u00e9"):
        headers = {"Cookie": f"search_token={value}".encode("latin-1")}
        assert client(TOKEN).get("/", headers=headers).status_code == 401


def test_a_token_never_leads_to_another_host():
    answer = client(TOKEN).get(f"http://127.0.0.1:8765//evil.example/?token={TOKEN}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/evil.example/")


def test_a_person_without_the_cookie_gets_a_link():
    answer = client(TOKEN).get("/?q=<script>", headers={"Accept": "text/html"})
    assert answer.status_code == 401
    assert "<a href='/'>" in answer.text
    assert "<script>" not in answer.text
