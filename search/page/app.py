"""The addresses of the page: what is asked, checked, and answered."""

import logging
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import anyio
from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from search.page.media import Moment, Refused
from search.page.page import Page
from search.page.questions import LONGEST, MOST_HITS, Question, say

log = logging.getLogger("stop")

STATIC = Path(__file__).parent / "static"
MIME = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
LONGEST_QUERY = 1 << 16  # bytes of a query's JSON
LARGEST = 64 << 20  # bytes of an upload
UPLOADS = 4  # that are received or decoded at once
SLOWEST = 300  # seconds in which an upload must have come
UNREAD = (408, 413, 503)
READ = ["GET", "HEAD"]

T = TypeVar("T")
Model = Annotated[str | None, Query(max_length=LONGEST)]


def make_app(page: Page) -> FastAPI:
    """Return the application that answers from `page`, which is closed with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with page:
            yield

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, lifespan=lifespan)
    _add_errors(app)
    # Pictures wait for a decoder; queries must not wait for them, and so have threads of their own.
    waiting, uploading = CapacityLimiter(8), CapacityLimiter(UPLOADS)

    for path in sorted(STATIC.glob("*")):
        if path.suffix in MIME:
            address = "/" if path.name == "index.html" else f"/{path.name}"
            app.add_api_route(address, partial(_static, path), methods=READ)

    @app.get("/api/index")
    def index(model: Model = None) -> dict[str, Any]:
        return page.facts(model)

    @app.post("/api/query")
    async def query(request: Request) -> dict[str, Any]:
        question = Question.parse(await _body(request, LONGEST_QUERY))
        return await to_thread.run_sync(page.ask, question)

    @app.post("/api/upload")
    async def upload(
        request: Request,
        kind: Literal["clip", "image"],
        name: Annotated[str, Query(max_length=LONGEST)] = "",
        top: Annotated[int, Query(ge=1, le=MOST_HITS)] = 20,
        model: Model = None,
    ) -> dict[str, Any]:
        if not uploading.available_tokens:
            raise Refused(503, "other files are being looked at: try again in some seconds")
        async with uploading:
            with tempfile.NamedTemporaryFile(dir=page.uploads) as file:
                try:
                    with anyio.fail_after(SLOWEST):
                        async for part in _parts(request, LARGEST):
                            file.write(part)
                except TimeoutError:
                    raise Refused(408, f"the file did not come within {SLOWEST} s") from None
                file.flush()
                if not file.tell():
                    raise Refused(400, "the file is empty: choose another one")
                ask = partial(page.ask_with, Path(file.name), name, kind, top, model)
                return await to_thread.run_sync(ask)

    @app.api_route("/video/{name}", methods=READ)
    def video(name: str, model: Model = None) -> Response:
        moment = page.find(name, model)
        return FileResponse(
            moment.path, headers={"Cache-Control": "private, no-cache"}, media_type=moment.mime,
            stat_result=moment.status,
        )  # fmt: skip

    async def made(
        request: Request, name: str, model: str | None, make: Callable[[Moment], Path], mime: str
    ) -> Response:
        def run() -> Response:
            return _unless_known(request, make(page.find(name, model)), mime)

        return await to_thread.run_sync(run, limiter=waiting)

    @app.api_route("/thumb/{name}", methods=READ)
    async def thumb(request: Request, name: str, model: Model = None) -> Response:
        return await made(request, name, model, page.thumbs.thumb, "image/jpeg")

    @app.api_route("/clip/{name}", methods=READ)
    async def clip(request: Request, name: str, model: Model = None) -> Response:
        return await made(request, name, model, page.clips.preview, "video/mp4")

    @app.get("/maps/{name}")
    async def maps(name: str, model: Model = None) -> dict[str, Any]:
        return await to_thread.run_sync(page.maps, name, model, limiter=waiting)

    return app


def _static(path: Path, request: Request) -> Response:
    return _unless_known(request, path, MIME[path.suffix])


def _unless_known(request: Request, path: Path, mime: str) -> Response:
    """Return a file, or 304 if the browser has it already."""
    response: Response = FileResponse(
        path, headers={"Cache-Control": "private, no-cache"}, media_type=mime, stat_result=path.stat()
    )
    if response.headers["etag"] in (tag.strip() for tag in request.headers.get("if-none-match", "").split(",")):
        kept = {name: response.headers[name] for name in ("etag", "cache-control")}
        return Response(status_code=304, headers=kept)
    if mime == "image/jpeg":  # small, and many at once: sending a file takes three further turns of threads
        return Response(path.read_bytes(), headers=dict(response.headers))
    return response


async def _parts(request: Request, most: int) -> AsyncIterator[bytes]:
    """Yield a request's body; Refused beyond `most` bytes, the rest of which is not read."""
    too_large = Refused(413, f"the file is larger than {most >> 20} MB: take a shorter part of it")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length[:18]) > most:
        raise too_large
    count = 0
    async for part in request.stream():
        count += len(part)
        if count > most:
            raise too_large
        yield part


async def _body(request: Request, most: int) -> bytes:
    return b"".join([part async for part in _parts(request, most)])


def _add_errors(app: FastAPI) -> None:
    """Answer every mistake with one sentence."""

    def answer(status: int, sentence: str) -> JSONResponse:
        # The rest of a body that is not read must not be taken for the next request.
        return JSONResponse({"error": sentence}, status, {"Connection": "close"} if status in UNREAD else None)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return answer(error.status, error.sentence)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return answer(400, say(error.errors()))

    @app.exception_handler(ValueError)
    async def mistake(_: Request, error: ValueError) -> JSONResponse:
        return answer(400, str(error))

    @app.exception_handler(OSError)
    async def broken(_: Request, error: OSError) -> JSONResponse:
        log.warning("%s", error)
        said = error.strerror if error.errno else None  # the system's own message has paths and no advice
        return answer(503, f"the server could not use a file ({said}): see what it printed" if said else str(error))

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, error: ClientDisconnect) -> JSONResponse:
        return answer(400, "the request did not come to its end")

    @app.exception_handler(HTTPException)
    async def missing(_: Request, error: HTTPException) -> JSONResponse:
        return answer(error.status_code, "there is nothing at this address")

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> JSONResponse:
        log.error("a request failed", exc_info=error)
        return answer(500, "the server made a mistake, which it has printed")
