"""A folder of odd videos, its index, and a browser that asks the page."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search.__main__ import main
from search.store import PER_FILE, Store
from tests.search.page.browser import HOSTILE
from tests.small_data import SmallData
from tests.videos import write_video


def picture(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Return a frame uint8 [H, W, 3] that is not flat and that shows its number."""
    frame = np.zeros((height, width, 3), dtype=np.uint8)
    frame[:, : width // 2] = 40 + 6 * (number % 30), 200, 30
    return frame


def write_videos(folder: Path) -> None:
    """Write a long file, one with another codec, flat beginnings, and names made to break a page."""
    folder.mkdir(parents=True)
    long = np.stack([picture(number) for number in range(24)])
    write_video(folder / "long.mp4", long, fps=3, sound_seconds=8)
    write_video(folder / "old.avi", long[:6], fps=3, codec="mpeg4")
    dark = np.zeros_like(long[:6])
    dark[4:] = long[4:6]
    write_video(folder / "dark.mp4", dark, fps=3)
    write_video(folder / "black.mp4", np.zeros_like(dark), fps=3)
    for name in HOSTILE:
        write_video(folder / name, long[:4], fps=3)
    os.rename(folder / "old.avi", os.fsencode(folder) + b"/o\xffld.avi")


@dataclass(frozen=True)
class Site:
    """Indexed videos: their folder, that of the index, and the id of each file's first window by the file's name."""

    videos: Path
    index: Path
    ids: dict[str, str]


def make_site(root: Path, clip: Path, *flags: str) -> Site:
    """Index the videos below `root` with an untrained CLIP, in windows of 2 seconds."""
    flags = ("--pretrained_clip_name", str(clip), "--window", "2", "--stride", "1", "--jobs", "1", *flags)
    assert main(["index", str(root / "videos"), "--index", str(root / "index"), *flags]) == 0
    with Store(root / "index") as store:
        ids = {os.path.basename(file.path): f"{file.id}:0" for file in store.files()}
        assert max(store.ids(store.models()[0])) < 1000 * PER_FILE
    return Site(root / "videos", root / "index", ids)


@pytest.fixture(scope="session")
def site(small_data: SmallData, tmp_path_factory) -> Site:
    """An index that all tests share: change nothing."""
    root = tmp_path_factory.mktemp("site")
    write_videos(root / "videos")
    return make_site(root, small_data.clip)


@pytest.fixture
def own_site(small_data: SmallData, tmp_path) -> Site:
    """A small index of a test's own."""
    (tmp_path / "videos").mkdir()
    for number in range(3):
        frames = np.stack([picture(number + place) for place in range(6)])
        write_video(tmp_path / "videos" / f"{number}.mp4", frames, fps=3)
    return make_site(tmp_path, small_data.clip)


@contextmanager
def browsing(site: Site, token: str = "") -> Iterator[Any]:
    """Open the page of an index in a browser on this machine."""
    from starlette.testclient import TestClient

    from search.page.app import make_app
    from search.page.guard import Guard
    from search.page.page import Page

    page = Page(site.index)
    guarded = Guard(make_app(page), {"localhost"}, token)
    with TestClient(guarded, base_url="http://127.0.0.1:8765", raise_server_exceptions=False) as client:
        client.page = page  # type: ignore[attr-defined]
        yield client


@pytest.fixture(scope="session")
def browser(site: Site) -> Iterator[Any]:
    with browsing(site) as client:
        yield client
