"""The benchmark against peers does the same work everywhere, and names whoever is left out."""

import json
import sys

import numpy as np
import pytest
import torch

from benchmarks import peer_data, peer_models, peers
from benchmarks.peer_contests import Contest, Peer, Sizes
from benchmarks.peers import Row, Settings, format_rows, main, race, usable
from dataloaders.decode import read_frames
from engine.tasks.retrieval_metrics import RECALL_AT
from tests.tiny import TINY
from tests.videos import grey_ramp, write_video

SIZES = Sizes(TINY, clips=2, frames=3, seconds=4, batch=2, captions=(6, 10), videos=(6, 2))


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    monkeypatch.setattr(
        "benchmarks.peer_data.write_made_clip",
        lambda path, seed, seconds=4, height=32, width=32, rate=3: write_video(path, grey_ramp(seconds * rate, step=1)),
    )
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


def test_decoders_give_the_same_frames(tmp_path):
    path = write_video(tmp_path / "a.mp4", grey_ramp(12))
    at = np.array([1, 5, 5, 10])
    expected = read_frames(path, lambda n, fps: at).frames
    for read in (peer_data._pyav, peer_data._opencv):
        found = read(path, at)
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).max() <= 3  # OpenCV converts colours in another way


def test_caches_give_the_same_clips(tmp_path):
    contests = list(peer_data.caches(SIZES, tmp_path))
    assert [contest.work.split(",")[0] for contest in contests] == ["raw", "raw", "jpeg", "jpeg"]
    raw, jpeg = contests[0].ours(), contests[2].ours()
    assert all(clip.shape == (3, 3, TINY.image_size, TINY.image_size) for clip in raw)
    for contest in contests:
        for peer in usable(contest)[0].values():
            for ours, theirs in zip(raw if contest.work.startswith("raw") else jpeg, peer(), strict=True):
                assert torch.equal(ours, theirs)


@pytest.mark.parametrize("part", ["towers", "steps"])
def test_towers_of_peers_have_our_shape(part, tmp_path):
    for contest in peers.PARTS[part](SIZES, tmp_path):
        ours = contest.ours()
        works, _ = usable(contest)
        assert works
        for name, work in works.items():
            theirs = work()
            theirs = theirs[0] if name.startswith("Hugging") else theirs
            assert part == "steps" or theirs.shape == ours.shape, name


def test_metrics_of_peers_agree_where_nothing_ties(tmp_path):
    for contest, captions in zip(peer_models.metrics(SIZES, tmp_path), SIZES.captions, strict=True):
        ours, (text, video) = contest.ours(), usable(contest)[0]["numpy, double argsort"]()
        assert len(text) == captions
        for ranks, direction in ((text, "text_to_video"), (video, "video_to_text")):
            for k in RECALL_AT:
                assert ours[direction][f"R@{k}"] == pytest.approx(100 * (ranks < k).mean())


def test_a_peer_that_cannot_be_used_is_named():
    def broken():
        raise RuntimeError("Could not load FFmpeg. Likely causes:\n1. none")

    contest = Contest(
        "decoding",
        "1 clip",
        lambda: None,
        {
            "absent": Peer("no_such_module", lambda: None),
            "broken": Peer("torch", broken),
            "good": Peer("torch", lambda: lambda: 1),
        },
    )
    works, missing = usable(contest)
    assert list(works) == ["good"]
    assert missing == [
        "absent is left out of decoding (1 clip): no_such_module is not installed; pip install -r "
        "requirements-benchmark.txt",
        "broken is left out of decoding (1 clip): torch does not work here (Could not load FFmpeg)",
    ]


def test_rounds_alternate_and_the_ratio_is_the_peers_time_over_ours(monkeypatch):
    clock, order = [0.0], []

    def work(name, seconds):
        def run():
            order.append(name)
            clock[0] += seconds

        return run

    monkeypatch.setattr("benchmarks.peers.time.process_time", lambda: clock[0])
    rows = race(Contest("a", "b", work("ours", 2.0)), {"peer": work("peer", 3.0)}, Settings(repeats=2))
    assert order == ["ours", "ours", "peer", "peer", "ours"]
    assert rows == [Row("a", "b", "peer", 1.5, 1.5, 1.5, 2.0, 3.0, 2)]
    assert "| a | b | peer | 1.50 | 1.50-1.50 | 2,000.0 | 3,000.0 |" in format_rows(rows)


def test_a_small_run_without_libraries(tmp_path, capsys, monkeypatch):
    for module in ("decord", "torchcodec", "lmdb", "webdataset", "torchmetrics"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("benchmarks.peers.find_spec", lambda name: sys.modules.get(name, name))
    output = tmp_path / "peers.json"
    flags = ["--only", "decoding, metrics,caches", "--clips", "1", "--clip_seconds", "4", "--max_frames", "3"]
    assert main([*flags, "--captions", "10", "--repeats", "1", "--output", str(output)]) == 0
    numbers = json.loads(output.read_text())
    assert {row["peer"] for row in numbers["rows"]} == {
        "PyAV", "OpenCV", "numpy, double argsort", "OpenCV, a file a frame"
    }  # fmt: skip
    assert all(0 < row["least"] <= row["ratio"] <= row["most"] for row in numbers["rows"])
    assert all(numbers[name] for name in ("command", "hardware", "versions", "commit"))
    printed = capsys.readouterr().out
    for name in ("decord", "torchcodec", "lmdb", "webdataset", "torchmetrics"):
        assert f": {name} is not installed" in printed
    assert all(sentence in printed for sentence in numbers["left_out"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only", "games"], "caches"),
        (["--repeats", "0"], "--repeats 0 is out of range"),
        (["--clip", "3"], "did you mean --clips?"),
        (["--captions", "4"], "--captions 4 is out of range"),
        (["--output", "."], "--output"),
    ],
)
def test_wrong_commands(flags, message, capsys):
    assert main(flags) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.splitlines()[-1].startswith("error: ")
