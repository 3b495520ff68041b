"""What the server answers with: the models of an index, ready to be asked, and what is made of their files."""

import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from dataloaders.quoting import shorten
from search.index import Hit, choose_model, hit_name
from search.page.children import Children
from search.page.decoding import read_clip, read_still
from search.page.kept import folder_for
from search.page.live import LiveIndex
from search.page.maps import Maps, has_maps
from search.page.media import Media, Moment, find, shown_path
from search.page.questions import Question, answer
from search.ranking import combine
from search.store import PER_FILE, Store

UNTRAINED = (
    "this CLIP was not trained on videos: it takes the mean of the pictures of a window and does not know their order; "
    "left to right is the same to it as right to left"
)
NOTHING_FITS = "nothing fits well; these are the nearest moments"
STILL = "nothing moves in a picture, unlike in the clips of training"
DECODERS = 2  # child processes for thumbnails, and as many for uploads, previews and maps, which take longer
LIMIT = 60.0  # seconds that one of them may take


class Page:
    """An index with all its models. The one named `model`, or the first, is loaded at once, others when first asked.

    Other arguments and errors are those of `Index.open`, here for the first model. Use it as a context.
    """

    def __init__(self, folder: Path, model: str = "", places: tuple[str, str, str] = ("", "", "")) -> None:
        self._folder, self._lock = folder, threading.Lock()
        self._loading: dict[str, threading.Lock] = {}
        self._indexes: dict[str, LiveIndex] = {}
        self._stack = ExitStack()
        with self._stack, Store(folder) as store:
            names = [known.name for known in store.models()]
            self.default = choose_model(store, model or (names[0] if names else "")).name
            temporary = folder_for(folder)
            kept = Path(self._stack.enter_context(temporary)) if temporary else folder
            self.uploads = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="search_upload_")))
            quick, slow = (self._stack.enter_context(Children(DECODERS, LIMIT)) for _ in range(2))
            self._slow = slow
            self.thumbs, self.clips = Media(kept, quick), Media(kept, slow)
            self._maps = Maps(slow)
            self._stack.callback(self._close_indexes)
            self._open(self.default, places)
            self._stack = self._stack.pop_all()

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _close_indexes(self) -> None:
        for index in self._indexes.values():
            index.close()

    def _open(self, name: str, places: tuple[str, str, str] = ("", "", "")) -> LiveIndex:
        checkpoint, clip, clip_folder = places
        index = LiveIndex.open(
            self._folder, name, checkpoint=checkpoint, pretrained_clip_name=clip, pretrained_dir=clip_folder
        )
        try:
            index.load()
        except BaseException:
            index.close()
            raise
        self._indexes[name] = index
        return index

    def index(self, name: str | None = None) -> LiveIndex:
        """Return a model's view of the index; ValueError or OSError if there is none or it cannot be loaded."""
        name = name or self.default
        if name in self._indexes:
            return self._indexes[name]
        choose_model(self._indexes[self.default].store, name)
        with self._lock:
            loading = self._loading.setdefault(name, threading.Lock())
        with loading:
            return self._indexes[name] if name in self._indexes else self._open(name)

    def facts(self, name: str | None = None) -> dict[str, Any]:
        """Return what the index holds, for JSON."""
        index = self.index(name)
        files, windows, _ = index.store.totals(index.model)
        return {
            "model": index.model.name,
            "models": [model.name for model in index.store.models()],
            "files": files,
            "windows": windows,
            "window": index.encoder.window,
            "stride": index.encoder.stride,
            "untrained": index.encoder.untrained,
            "maps": has_maps(index.encoder.method),
            "note": UNTRAINED if index.encoder.untrained else "",
        }

    def ask(self, question: Question) -> dict[str, Any]:
        """Answer a question, for JSON; ValueError for one that cannot be answered."""
        begun = time.perf_counter()
        index = self.index(question.model)
        hits = index.query(**question.arguments())
        fits = index.fits_well(hits) if question.is_text else None
        return self._answer(index, hits, fits, NOTHING_FITS if fits is False else "", begun)

    def ask_with(self, path: Path, name: str, kind: str, top: int, model: str | None) -> dict[str, Any]:
        """Answer with moments like an uploaded file, which the user calls `name`; ValueError if it cannot be read."""
        begun = time.perf_counter()
        index, read = self.index(model), read_still if kind == "image" else read_clip
        try:
            video, frame_mask = self._slow.run(read, index.encoder.reader, path)
        except ValueError as error:
            called = shorten(name) or "the file"
            raise ValueError(str(error).replace(f"--image {path}", called).replace(str(path), called)) from None
        vector = index.vector_of_frames(video, frame_mask)
        hits = index.nearest(combine(vector, np.ones(1)), top=top)
        return self._answer(index, hits, None, STILL if kind == "image" else "", begun)

    def _answer(self, index: LiveIndex, hits: list[Hit], fits: bool | None, note: str, begun: float) -> dict[str, Any]:
        roots, known = index.store.roots(), index.store.durations({hit.window_id // PER_FILE for hit in hits})
        shown = [shown_path(roots, hit.file) for hit in hits]
        durations = [known.get(hit.window_id // PER_FILE, hit.end) for hit in hits]  # one may be removed just now
        found = answer(hits, shown, durations, [hit_name(hit.window_id) for hit in hits])
        return {"hits": found, "fits_well": fits, "note": note, "seconds": round(time.perf_counter() - begun, 4)}

    def find(self, text: str, model: str | None) -> Moment:
        """Return a moment by its id; Refused if there is none or its file cannot be given away."""
        return find(self.index(model), text)

    def maps(self, text: str, model: str | None) -> dict[str, Any]:
        """Return the prompts of a moment, for JSON; Refused if there are none."""
        index = self.index(model)
        return self._maps.of(index, find(index, text))
