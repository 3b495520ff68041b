"""A browser of this machine, and a page served over a small index of the made world."""

import csv
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from main_task_retrieval import main as train
from preprocess.make_moving_shapes import main as make_world
from preprocess.moving_shapes.files import write_video
from search.__main__ import main as search
from tests.search.page.in_browser.watched import HOSTILE, Watched
from tools.search_picture import find_chromium, frames_of, serving


@pytest.fixture(scope="session")
def films(tmp_path_factory) -> Path:
    """A long film of eight made clips, single clips, one with a hostile name, and one that browsers cannot play."""
    world = tmp_path_factory.mktemp("page") / "world"
    settings = ["--train_pairs", "4", "--test_pairs", "8", "--image_size", "64"]
    assert make_world(["--output_dir", str(world), *settings]) == 0
    with open(world / "MSRVTT_JSFUSION_test.csv") as file:
        clips = [world / "videos" / f"{row['video_id']}.mp4" for row in csv.DictReader(file)]
    folder = world.parent / "films"
    (folder / "below").mkdir(parents=True)
    write_video(folder / "long.mp4", np.concatenate([frames_of(clip) for clip in clips[:8]]))
    shutil.copy(clips[8], folder / HOSTILE)
    for clip in clips[9:14]:
        shutil.copy(clip, folder / "below")
    with av.open(str(folder / "old.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=3)
        stream.width = stream.height = 64
        for frame in frames_of(clips[14]):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return folder


@pytest.fixture(scope="session")
def address(browser, films, small_data) -> Iterator[str]:
    for package in ("fastapi", "uvicorn"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    world = films.parent / "world"
    run, index = films.parent / "run", films.parent / "index"
    flags = ["--train_csv", world / "MSRVTT_train.csv", "--val_csv", world / "MSRVTT_JSFUSION_test.csv"]
    flags += ["--data_path", world / "MSRVTT_data.json", "--features_path", world / "videos"]
    flags += ["--pretrained_clip_name", small_data.clip, "--output_dir", run, "--precision", "fp32"]
    flags += [
        "--method",
        "stop",
        "--epochs",
        "1",
        "--batch_size",
        "8",
        "--max_frames",
        "6",
        "--max_words",
        "12",
        "--lr",
        "0.01",
    ]
    flags += ["--feature_framerate", "0", "--frame_sampling", "segment", "--num_thread_reader", "0"]
    assert train(["--do_train", *map(str, flags)]) == 0
    flags = ["--index", str(index), "--checkpoint", f"{run}/last.safetensors", "--window", "4", "--stride", "2"]
    assert search(["index", str(films), *flags, "--jobs", "1"]) == 0
    with serving(index) as served:
        yield served


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    missing = "playwright is not installed: pip install playwright"
    playwright = pytest.importorskip("playwright.sync_api", reason=missing)
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("this machine has no chromium: apt-get install chromium (playwright needs none of its own)")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def watch(browser, address) -> Iterator[Callable[..., Watched]]:
    """Open pages in browsers with settings; at the end, none may have asked another host or have had trouble."""
    contexts, pages = [], []

    def open_page(**settings: Any) -> Watched:
        contexts.append(browser.new_context(**settings))
        contexts[-1].set_default_timeout(30_000)
        pages.append(Watched(contexts[-1].new_page(), address))
        return pages[-1]

    yield open_page
    for context in contexts:
        context.close()
    for watched in pages:
        assert watched.hosts() <= {address.removeprefix("http://")}
        assert watched.trouble == []
