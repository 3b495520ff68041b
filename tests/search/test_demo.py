"""The demo: what it draws, what it asks, and that its figures are those of the index."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dataloaders.decode import read_frames
from search import commands, demo
from search.__main__ import main
from search.demo import FILM, Moment, draw_world, measure, pick_questions
from search.index import Hit, Index
from search.store import Store, Window


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """A tenth of the clips, and no model of the quickstart."""
    monkeypatch.setattr(demo, "PAIRS", 12)
    monkeypatch.setattr(demo, "IN_FILM", 6)
    monkeypatch.setattr(demo, "TRAINED", Path("nowhere.safetensors"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    world = tmp_path_factory.mktemp("demo") / "made_world"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "PAIRS", 12)
        patch.setattr(demo, "IN_FILM", 6)
        draw_world(world)
    return world


@pytest.fixture
def folder(drawn, tmp_path) -> Path:
    """An index's folder with the videos drawn already."""
    shutil.copytree(drawn, tmp_path / "demo" / "made_world")
    return tmp_path / "demo"


def run(folder: Path, capfd, *flags: object) -> str:
    capfd.readouterr()
    code = main(["demo", "--no_page", "--index", str(folder), *map(str, flags)])
    out, told = capfd.readouterr()
    assert code == 0, told
    return out + told


def test_every_moment_is_where_it_is_said_to_be(drawn):
    moments = draw_world(drawn)  # reads what is there
    assert len(moments) == 24
    assert sorted(path.name for path in (drawn / "videos").iterdir()) == sorted({moment.file for moment in moments})
    twin = {moment.text: moment.backwards for moment in moments}
    assert all(twin[twin[text]] == text != twin[text] for text in twin)

    def frames(moment: Moment) -> np.ndarray:
        path = drawn / "videos" / moment.file
        read = read_frames(path, lambda n, fps: np.arange(n), start=moment.start, end=moment.end)
        assert read.frames.shape == (12, 112, 112, 3)
        return read.frames.astype(float)

    for moment in moments:
        if moment.file != FILM:
            assert moment.file == f"{moment.text}.mp4"
        if moment.text < moment.backwards:
            other = next(one for one in moments if one.text == moment.backwards)
            assert np.abs(frames(moment) - frames(other)[::-1]).mean() < 2, "up to what encoding changes"
    film = sorted(moment.start for moment in moments if moment.file == FILM)
    assert len(film) == 12
    np.testing.assert_allclose(film, 4 / 3 + 4 * np.arange(12))


def test_the_questions():
    """Those of the whole demo: the second is the first one backwards, the third is in the long file."""
    moments = [
        Moment(FILM, 0, 4, "a red heart moves up", "a red heart moves down"),
        Moment("a.mp4", 0, 4, "a disc moves left", "a disc moves right"),
        Moment("b.mp4", 0, 4, "a disc moves right", "a disc moves left"),
        Moment("c.mp4", 0, 4, "a disc hops, then a star pulses", "a star pulses, then a disc hops"),
        Moment(FILM, 4, 8, "a star hops, then a disc pulses", "a disc pulses, then a star hops"),
    ]
    assert pick_questions(moments) == [moments[1], moments[2], moments[4]]


def test_the_demo_has_its_questions(monkeypatch, tmp_path):
    """Plan the whole world, without drawing it."""
    monkeypatch.setattr(demo, "PAIRS", 120)
    monkeypatch.setattr(demo, "IN_FILM", 30)
    monkeypatch.setattr(demo, "write_video", lambda path, frames: None)
    monkeypatch.setattr(demo, "stage", lambda story, rng, side: SimpleNamespace(frames=lambda n: np.zeros((n, 1))))
    moments = draw_world(tmp_path / "world")
    assert len(moments) == 240
    assert len({moment.text for moment in moments}) == 240
    assert sum(moment.file == FILM for moment in moments) == 60
    first, second, third = pick_questions(moments)
    assert second.text == first.backwards
    assert (first.file, third.file) == (f"{first.text}.mp4", FILM)


def test_what_happens_in_a_hit():
    moments = [Moment(FILM, 0, 4, "one", ""), Moment(FILM, 4, 8, "two", ""), Moment("a.mp4", 0, 4, "three", "")]
    for start, expected in ((0, "one"), (1.5, "one"), (2.5, "two")):
        assert demo.what_happens(Hit(f"/x/{FILM}", start, start + 4, 0.5, 0.0, 1), moments) == expected
    assert demo.what_happens(Hit("/x/a.mp4", 0, 4, 0.5, 0.0, 1), moments) == "three"


def test_its_figures():
    """Two moments and their twins: one is found first, and three of four score above their twin."""
    moments = [
        Moment(FILM, 0, 4, "a", "b"),
        Moment(FILM, 4, 8, "b", "a"),
        Moment("c.mp4", 0, 4, "c", "d"),
        Moment("d.mp4", 0, 4, "d", "c"),
    ]
    windows = [Window(f"/x/{FILM}", start, start + 4) for start in (0, 2, 4)]
    windows += [Window("/x/c.mp4", 0, 4), Window("/x/d.mp4", 0, 4)]
    scores = np.array(  # of each text with each window; the second window belongs to both of its moments
        [[0.5, 0.2, 0.1, 0.9, 0.0], [0.3, 0.2, 0.4, 0.1, 0.9], [0.0, 0.0, 0.0, 0.8, 0.1], [0.9, 0.0, 0.0, 0.7, 0.6]]
    )
    index = SimpleNamespace(
        vectors=lambda: (np.arange(5), np.eye(5, dtype=np.float16)),
        windows=lambda ids: windows,
        encoder=SimpleNamespace(encode_texts=lambda texts: scores),
    )
    assert measure(index, moments) == demo.Found(first=0.25, right_way=0.75)  # type: ignore[arg-type]


def test_without_a_trained_model(folder, capfd):
    told = run(folder, capfd)
    assert "untrained ==" in told
    assert "13 files read" in told
    assert "it does not know their order" in told
    assert told.count("<- asked for") <= 3
    assert told.count('"  (it is in ') == 3
    with Index.open(folder) as index:
        assert index.model.name == "clip"
        found = measure(index, draw_world(folder / "made_world"))
    assert f"Of all 24 texts, {found.first:.0%} find their own moment first, and {found.right_way:.0%} score" in told
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*.mp4")}
    assert "0 files to read" in run(folder, capfd)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.mp4")} == written


def test_with_a_trained_model_that_is_replaced(folder, trained, capfd, monkeypatch):
    monkeypatch.setattr(demo, "TRAINED", trained.checkpoint)
    told = run(folder, capfd)
    assert str(trained.checkpoint) in told
    assert "does not know" not in told
    with Store(folder) as store:
        (first,) = store.models()
        assert (first.name, first.facts["content"]["window"]) == ("vpt", 4.0)
    monkeypatch.setattr(demo, "LENGTH", 2.0)  # what the model's key depends on, as on its weights
    told = run(folder, capfd, "--checkpoint", trained.checkpoint)
    with Store(folder) as store:
        (second,) = store.models()
    assert second.key != first.key
    assert "13 files read" in told


def test_an_index_of_own_videos_is_left_alone(tmp_path, capfd):
    with Store(tmp_path, write=True) as store:
        store.add_root("/my/videos", False)
    assert main(["demo", "--index", str(tmp_path)]) == 2
    assert "is an index of your own videos" in capfd.readouterr().err
    assert not (tmp_path / "made_world").exists()


def test_a_missing_checkpoint_is_told_before_anything_is_drawn(tmp_path, capfd):
    assert main(["demo", "--index", str(tmp_path / "demo"), "--checkpoint", "missing.safetensors"]) == 2
    assert "missing.safetensors" in capfd.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.mark.skipif(not hasattr(commands, "serve"), reason="this version has no page")
def test_the_page_is_opened_for_its_model(folder, capfd, monkeypatch):
    pytest.importorskip("fastapi", reason="fastapi is not installed: pip install fastapi uvicorn")
    pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install uvicorn")
    served = []
    monkeypatch.setattr(commands, "serve", lambda flags: served.append(flags) or 0)
    assert main(["demo", "--index", str(folder)]) == 0
    (flags,) = served
    assert (flags.index, flags.model) == (str(folder), "clip")
