"""Cuts that are found while decoding, and borders of windows that move onto them.

Shapes: T frames, H x W pixels.
"""

import math
from dataclasses import replace
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies

from dataloaders.decode import Window, read_windows
from dataloaders.frames import FrameReader as Frames
from search.__main__ import main
from search.index import Index
from search.model import Source, load_encoder
from search.reading import Begun, Ended, FileReader, Read, cut
from search.shots import CutFinder, move_borders, reach
from search.store import Store
from tests.search.test_reading import task
from tests.videos import write_damaged_video, write_video

FPS = 10
SHOTS = (34, 51, 8, 47, 60)  # frames; 20 s
CUTS = [3.4, 8.5, 9.3, 14.0]  # seconds


def scene(seed: int, n_frames: int, speed: float = 1.0) -> np.ndarray:
    """A camera that moves over a picture of its own; uint8 [T, 48, 64, 3]."""
    random = np.random.default_rng(seed)
    picture = random.integers(0, 256, (6, 16, 3)).repeat(16, 0).repeat(16, 1)
    places = (speed * np.arange(n_frames)).astype(int) % 150
    return np.stack([picture[8:56, place : place + 64] for place in places]).astype(np.uint8)


def flash(frames: np.ndarray, at: int, most: int = 1) -> np.ndarray:
    flashed = frames.copy()
    flashed[at : at + most] = 255
    return flashed


def find(path: Path) -> list[float]:
    finder = CutFinder()
    last = Window(lambda n, fps: [n - 1], 0.0)
    assert len(list(read_windows(path, [last], watch=finder))) == 1
    finder.finish()
    return finder.cuts


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """Five shots in one file."""
    frames = np.concatenate([scene(number, count) for number, count in enumerate(SHOTS)])
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", frames, fps=FPS)


@pytest.fixture(scope="module")
def static(tmp_path_factory) -> Path:
    """A camera that stands still, and its noise: no cut; 20 s."""
    noise = np.random.default_rng(0).integers(-12, 13, (20 * FPS, 48, 64, 3))
    frames = np.clip(scene(0, 1).astype(int) + noise, 0, 255).astype(np.uint8)
    return write_video(tmp_path_factory.mktemp("static") / "static.mp4", frames, fps=FPS)


def test_hard_cuts_are_found(film):
    assert find(film) == pytest.approx(CUTS)


def test_a_static_camera_has_none(static):
    assert find(static) == []


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("a quick pan", scene(3, 25, speed=6)),
        ("a flash", flash(scene(4, 80), 40)),
        ("a flash of two frames", flash(scene(4, 80), 40, 2)),
        ("a fade", (scene(5, 80) * np.linspace(1, 0, 80)[:, None, None, None]).astype(np.uint8)),
        ("two frames", scene(6, 2)),
        ("one frame", scene(6, 1)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_cut(tmp_path, name, frames):
    assert find(write_video(tmp_path / "video.mp4", frames, fps=FPS)) == []


def test_a_cut_near_either_end(tmp_path):
    frames = np.concatenate([scene(1, 1), scene(2, 60), scene(7, 1)])
    assert find(write_video(tmp_path / "video.mp4", frames, fps=FPS)) == pytest.approx([0.1, 6.1])


def test_pyscenedetect_finds_the_same(film, static):
    """On hard cuts and on a static camera, with its own thresholds."""
    scenedetect = pytest.importorskip("scenedetect", reason="PySceneDetect is not installed: pip install scenedetect")
    for path in (film, static):
        found = scenedetect.detect(str(path), scenedetect.ContentDetector(min_scene_len=3))
        assert [float(start.seconds) for start, _ in found[1:]] == pytest.approx(find(path), abs=0.01)


def test_a_watch_sees_each_frame_once_with_its_time(film):
    seen: list[tuple[float, int]] = []
    windows = [Window(lambda n, fps: [0, n - 1], start, end) for start, end in ((2.0, 4.0), (0.0, 12.0), (3.0, 5.0))]
    read = dict(read_windows(film, windows, watch=lambda seconds, picture: seen.append((seconds, picture.width))))
    assert len(read) == 3
    assert seen == [(pytest.approx(number / FPS), 64) for number in range(120)], "up to the last frame asked for"
    without = dict(read_windows(film, windows))
    for index, frames in read.items():
        np.testing.assert_array_equal(frames.frames, without[index].frames)  # type: ignore[union-attr]


@hypothesis.settings(max_examples=60)
@hypothesis.given(
    strategies.floats(30, 200),
    strategies.floats(2, 20),
    strategies.sampled_from([0.25, 0.5, 0.75, 1.0]),
    strategies.lists(strategies.floats(0, 200), max_size=20),
)
def test_moved_windows_cover_the_file_in_order(duration, window, part, cuts):
    windows, within = cut(duration, window, part * window), reach(window, part * window)
    hypothesis.assume(len(windows) > 1)
    cuts = sorted(cut for cut in cuts if cut < duration)
    moved = move_borders(windows, cuts, within)
    assert len(moved) == len(windows)
    (starts, ends), (old_starts, old_ends) = np.array(moved).T, np.array(windows).T
    assert (starts[0], ends[-1]) == (0, duration)
    assert (np.diff(starts) >= 0).all()
    assert (np.diff(ends) >= 0).all()
    assert (starts[1:] <= ends[:-1] + 2e-3).all(), "no gaps"
    lengths = ends - starts
    assert (lengths >= 0.5 * window - 1e-6).all()
    assert (lengths <= 1.5 * window + 1e-6).all()
    for new, old in [*zip(starts[1:], old_starts[1:], strict=True), *zip(ends[:-1], old_ends[:-1], strict=True)]:
        distance = min((abs(cut - old) for cut in cuts), default=math.inf)
        assert abs(new - old) == pytest.approx(distance if distance < within else 0)
        assert new == old or new in cuts


def test_only_borders_near_a_cut_move():
    windows = cut(20, 4, 2)
    assert move_borders(windows, [], 1) == windows
    assert move_borders(windows, CUTS, 1) == [
        (0, 3.4), (2, 6), (3.4, 8.5), (6, 9.3), (8.5, 12), (9.3, 14), (12, 16), (14, 18), (16, 20),
    ]  # fmt: skip


def test_moved_windows_are_read_as_if_alone(film):
    frames = Frames(4, 32, "segment")
    begun, *reads, ended = FileReader(frames, 4, 2, shots=True)(task(film))
    assert isinstance(begun, Begun)
    assert ended == Ended()
    expected = move_borders(cut(20, 4, 2), CUTS, 1)
    assert sorted((read.start, read.end) for read in reads) == [pytest.approx(window) for window in expected]
    for read in reads:
        video, mask = frames(film, start=read.start, end=read.end)
        assert torch.equal(torch.from_numpy(read.video), video)
        assert torch.equal(torch.from_numpy(read.frame_mask), mask)


def test_without_cuts_nothing_changes_and_a_file_is_decoded_once(static, monkeypatch):
    calls = []
    original = Frames.read_windows
    monkeypatch.setattr(Frames, "read_windows", lambda *a, **b: calls.append(a) or original(*a, **b))
    found = {}
    for shots in (False, True):
        _, *reads, _ = FileReader(Frames(4, 32), 4, 2, shots=shots)(task(static))
        found[shots] = [(read.start, read.end, read.video.tobytes()) for read in reads]
    assert found[True] == found[False]
    assert len(found[True]) == 9
    assert len(calls) == 2


def test_a_damaged_file_gives_what_comes_before(tmp_path):
    damage = write_damaged_video(tmp_path / "damaged.mp4")
    messages = {shots: list(FileReader(Frames(4, 32), 2, 1, shots=shots)(task(tmp_path / "damaged.mp4")))
                for shots in (False, True)}  # fmt: skip
    for some in messages.values():
        assert isinstance(some[-1], Ended)
        assert f"frame {damage}" in some[-1].reason
    kept = {shots: [read[:2] for read in some if isinstance(read, Read)] for shots, some in messages.items()}
    assert kept[True] == kept[False]


def test_the_default_leaves_keys_as_they_were(trained):
    source = Source(str(trained.checkpoint))
    windows, shots = load_encoder(source, probe=False), load_encoder(replace(source, shots=True), probe=False)
    assert "cut" not in windows.content
    assert windows.content | {"cut": "shots"} == shots.content
    assert windows.key != shots.key
    assert load_encoder(Source(**shots.facts["source"]), probe=False).key == shots.key


def test_an_index_with_shots(film, trained, tmp_path, capfd):
    flags = ["--checkpoint", str(trained.checkpoint), "--window", "4", "--jobs", "1"]
    place = ["--index", str(tmp_path / "index")]
    assert main(["index", str(film.parent), *flags, "--cut", "shots", "--dry_run", *place]) == 0
    assert "9 windows of 4 s every 2 s" in capfd.readouterr().err
    assert main(["index", str(film.parent), *flags, "--cut", "shots", *place]) == 0
    assert "moved onto cuts" in capfd.readouterr().err
    with Index.open(tmp_path / "index") as index:
        windows = index.windows(index.store.ids(index.model))
    expected = move_borders(cut(20, 4, 2), CUTS, 1)
    assert [(window.start, window.end) for window in windows] == [pytest.approx(window) for window in expected]
    assert main(["status", *place]) == 0
    assert "every 2 s, moved onto cuts" in capfd.readouterr().out
    assert main(["refresh", "--jobs", "1", *place]) == 0
    assert main(["index", str(film.parent), *flags, *place]) == 2
    assert "cut is 'shots' there and 'windows' here" in capfd.readouterr().err
    assert main(["index", str(film.parent), *flags, "--model", "plain", *place]) == 0
    with Store(tmp_path / "index") as store:
        assert [model.facts["content"].get("cut") for model in store.models()] == ["shots", None]
    assert main(["index", str(film.parent), *flags, "--cut", "scenes", *place]) == 2
