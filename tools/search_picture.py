"""Draws a picture of the search page, and a short film of it, from a browser that shows the made world.

    python -m tools.search_picture runs/quickstart/stop/last.safetensors --output figs/search.png

Draws clips of the made world, joins them into recordings, indexes these with the model, serves the page and opens it
in a chromium without a window. Needs playwright (pip install playwright) and a chromium; --film, an animation of one
turn of the clips, needs Pillow too.
"""

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import av
import numpy as np

from engine.flags import check_file
from engine.messages import print_error
from preprocess.make_moving_shapes import main as make_world
from preprocess.moving_shapes.files import FRAMES_PER_SECOND, write_video
from search.__main__ import main as search

ROOT = Path(__file__).resolve().parents[1]
QUERY = "a purple square travels upwards"
CLIPS, JOINED = 60, 10  # test clips of the made world, and how many make a recording
LENGTH = 4.0  # seconds of a clip
WIDTH, HEIGHT = 1100, 780  # pixels of the browser's window
FILM_WIDTH = 900
SETTLED = """(videos => videos.length && videos.every(video => video.classList.contains("ready")))(
    [...document.querySelectorAll("#results video")].filter(video => video.inView))"""


def find_chromium() -> str | None:
    """Return the path of this machine's chromium, None if it has none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def frames_of(path: Path) -> np.ndarray:
    """Return all frames of a video, uint8 [T, H, W, 3]."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def make_recordings(folder: Path) -> Path:
    """Draw clips and join them into recordings of two rooms; return their folder."""
    flags = ["--train_pairs", "1", "--test_pairs", str(CLIPS), "--image_size", "336"]
    if make_world(["--output_dir", str(folder / "world"), *flags]):
        raise RuntimeError("the made world could not be drawn")
    clips = sorted((folder / "world/videos").glob("*.mp4"), key=lambda path: int(path.stem.removeprefix("video")))[2:]
    for first in range(0, len(clips), JOINED):
        room = folder / "recordings" / ("table" if first < len(clips) // 2 else "floor")
        room.mkdir(parents=True, exist_ok=True)
        joined = np.concatenate([frames_of(clip) for clip in clips[first : first + JOINED]])
        write_video(room / f"recording {first // JOINED + 1:02d}.mp4", joined)
    return folder / "recordings"


@contextmanager
def serving(index: Path, *flags: str) -> Iterator[str]:
    """Serve an index by `python -m search serve` on a free port; yield the page's address."""
    command = [sys.executable, "-m", "search", "serve", "--index", str(index), "--port", "0", *flags]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        line = process.stdout.readline()
        address = re.search(r"http://\S+", line)
        if not address:
            raise RuntimeError(f"the page was not served; its command ended with {process.wait()}")
        yield address[0].rstrip("/")
    finally:
        process.terminate()
        process.wait()


def until(page: Any, condition: str) -> None:
    """Wait for a condition in JavaScript, which the page's policy forbids playwright to wait for."""
    for _ in range(600):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    raise RuntimeError(f"the page did not come to this: {condition}")


def show(page: Any, place: str, seconds: float) -> bytes:
    """Show all clips at `place` as they are so many seconds after their start; return the window as a PNG."""
    page.evaluate(
        """([place, seconds]) => Promise.all([...document.querySelectorAll(place)].map((video) => {
            video.pause();
            video.currentTime = video.moment.hit.start - video.moment.base + seconds;
            return new Promise((done) => video.addEventListener("seeked", done, { once: true }));
        }))""",
        [place, seconds + 0.01],
    )
    page.wait_for_timeout(150)  # for the next picture of the page, with the regions
    return bytes(page.screenshot())


def photograph(address: str, chromium: str, film: bool) -> tuple[list[bytes], list[bytes]]:
    """Return pictures of the grid and of the player, PNG: of one moment, or of a whole turn for a film."""
    from playwright.sync_api import sync_playwright

    times = [n / FRAMES_PER_SECOND for n in range(int(LENGTH * FRAMES_PER_SECOND))]
    middle = times[len(times) // 2]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(f"{address}/?{urlencode({'q': QUERY})}")
        until(page, SETTLED)
        grid = [show(page, "#results video.ready", time) for time in (times if film else [middle])]
        page.click("#results .open")
        until(page, "document.querySelector('#stage video.ready') && document.querySelector('#bars .bar')")
        player = [show(page, "#stage video.ready", time) for time in (times if film else [middle])]
        browser.close()
    return grid, player


def write_picture(path: Path, grid: bytes, player: bytes) -> None:
    """Write a picture of the grid above the player as PNG."""
    import cv2

    parts = [cv2.imdecode(np.frombuffer(part, dtype=np.uint8), cv2.IMREAD_COLOR) for part in (grid, player)]
    gap = np.full((12, WIDTH, 3), 255, dtype=np.uint8)
    cv2.imwrite(str(path), np.concatenate([parts[0], gap, parts[1]]))


def write_film(path: Path, pictures: Sequence[bytes]) -> None:
    """Write pictures as an animation that begins again, at the made world's frames a second."""
    from PIL import Image

    opened = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures]
    size = FILM_WIDTH, FILM_WIDTH * HEIGHT // WIDTH
    first, *rest = [picture.resize(size, Image.Resampling.LANCZOS) for picture in opened]
    first.save(
        path, save_all=True, append_images=rest, duration=1000 // FRAMES_PER_SECOND, loop=0, quality=80, method=4
    )


def draw(options: argparse.Namespace) -> None:
    """Draw what the flags ask for; ValueError if a program for it is not there."""
    check_file("--output", options.output, (".png",))
    needed = {"playwright": "playwright"}
    if options.film:
        check_file("--film", options.film, (".webp", ".gif"))
        needed["PIL"] = "pillow"
    if not options.checkpoint.is_file():
        raise ValueError(f"{options.checkpoint} is no file: pass a checkpoint, such as scripts/quickstart.sh's")
    for module, package in needed.items():
        if find_spec(module) is None:
            raise ValueError(f"the picture needs {package}: pip install {package}")
    chromium = find_chromium()
    if chromium is None:
        raise ValueError("the picture needs a chromium: install one, such as Debian's package chromium")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        index, places = folder / "index", ["--checkpoint", str(options.checkpoint)]
        if options.pretrained_clip_name:
            places += ["--pretrained_clip_name", options.pretrained_clip_name]
        windows = ["--window", str(LENGTH), "--stride", str(LENGTH / 2)]
        if search(["index", str(make_recordings(folder)), "--index", str(index), *places, *windows]):
            raise RuntimeError("the recordings could not be indexed")
        with serving(index) as address:
            grid, player = photograph(address, chromium, options.film is not None)
    middle = len(grid) // 2
    for path in filter(None, (options.output, options.film)):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(options.output, grid[middle], player[middle])
    if options.film:
        write_film(options.film, [*grid, *player])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Draw a picture of the search page on the made world.")
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a model that was trained on the made world"
    )
    parser.add_argument("--output", type=Path, required=True, help="picture to write, .png")
    parser.add_argument("--film", type=Path, help="animation to write too, .webp or .gif")
    parser.add_argument("--pretrained_clip_name", default="", help="the model's CLIP, if it has moved")
    options = parser.parse_args(argv)
    try:
        draw(options)
    except (ValueError, OSError, RuntimeError) as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
