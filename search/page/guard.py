"""Who may ask the server: refuses other sites' pages, other names of this machine, and callers without the token.

A page of another site that is open in the same browser can send requests to this machine. It must neither read answers
(Host, against DNS rebinding) nor send anything (Origin), nor embed a picture or video (Cross-Origin-Resource-Policy).
"""

import ipaddress
import secrets
from collections.abc import Collection
from urllib.parse import quote, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob:; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
NEEDS_TOKEN = "this page needs its token: open the address that `serve` printed, which ends in ?token=..."


class Guard:
    """Wraps the page's application.

    `hosts` are the names by which it may be called, without a port. Addresses in numbers need no name server that
    somebody else could control: all are accepted with a `token`, otherwise those of this machine alone. With a `token`,
    callers need the cookie named `cookie`, which opening `?token=...` once sets.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], token: str = "", cookie: str = "search_token") -> None:
        self._app, self._token, self._cookie = app, token, cookie
        self._hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # there are no web sockets here

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refused = self._refuse(scope, Headers(scope=scope))
        await (refused or self._app)(scope, receive, send_with_headers)

    def _refuse(self, scope: Scope, headers: Headers) -> Response | None:
        """Return the answer to a request that does not reach the application; None for one that does."""
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or not self._is_ours(host):
            return _error(400, "this server does not go by that name: open the address that `serve` printed")
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return _error(405, "this server takes GET, HEAD and POST")
        if scope["method"] == "POST":
            origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
            if origin != f"{scope['scheme']}://{host}" if origin is not None else site not in ("same-origin", "none"):
                return _error(403, "a page of another site may not ask this server")
        return self._check_token(scope, headers) if self._token else None

    def _is_ours(self, host: str) -> bool:
        name, _, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
        name = (name or port).lower()  # without a port, all of it is in the last part
        if name in self._hosts:
            return True
        try:
            address = ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return False
        return bool(self._token) or address.is_loopback

    def _check_token(self, scope: Scope, headers: Headers) -> Response | None:
        request = Request(scope)
        given = request.query_params.multi_items()
        if self._is_token(request.query_params.get("token", "")):
            rest = urlencode([(name, value) for name, value in given if name != "token"])
            address = quote("/" + scope["path"].lstrip("/"))  # two slashes would lead to another host
            response = RedirectResponse(address + f"?{rest}" * bool(rest), 303)
            # Not `secure`: the server speaks plain HTTP.
            response.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/")
            return response
        if self._is_token(request.cookies.get(self._cookie, "")):
            return None
        if "text/html" in headers.get("accept", ""):
            # A link of another site led here, and its browser kept the cookie back: following ours sends it.
            return HTMLResponse(f"<!doctype html><title>Token</title><p>{NEEDS_TOKEN}<p><a href='/'>Go on</a>", 401)
        return _error(401, NEEDS_TOKEN)

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode("utf-8", "replace"), self._token.encode())


def _error(status: int, sentence: str) -> Response:
    return JSONResponse({"error": sentence}, status, {"Connection": "close"})
