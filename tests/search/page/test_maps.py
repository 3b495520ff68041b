# ruff: noqa: E402  (imports come after the skip)
"""The prompts that the page draws are those of the frames that the model saw."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.search.page.browser import skip_without_page

skip_without_page()

from dataloaders.frames import FrameReader
from engine.data import normalise_for
from modules.methods import build_method
from search.page.decoding import Frames, read_window, seen_part
from search.page.maps import draw, has_maps
from tests.search.page.conftest import browsing
from tests.tiny import fitting_options, tiny_clip
from tests.videos import flag_rotation, write_video


def tiny(name: str, **options):
    return build_method(name, tiny_clip(), **(fitting_options(name) | options)).eval()


@pytest.fixture
def stop_browser(own_site):
    """The page of an index whose model became STOP, with the same frames and windows."""
    with browsing(own_site) as browser:
        index = browser.page.index()
        every_frame = replace(index.encoder.reader, feature_framerate=0.0)
        vars(index)["encoder"] = replace(index.encoder, method=tiny("stop", n_regions=3), reader=every_frame)
        yield browser


def test_maps_are_those_of_the_model(stop_browser, own_site):
    index = stop_browser.page.index()
    encoder, name = index.encoder, "1.mp4"
    maps = stop_browser.get(f"/maps/{own_site.ids[name]}").json()
    video, mask = encoder.reader(own_site.videos / name)  # a short file is one window
    expected = encoder.method.prompt_maps(normalise_for(encoder.method.clip, video[mask][None]), mask[mask][None])
    assert maps["times"] == pytest.approx(np.arange(6) / 3, abs=1e-6)
    assert maps["grid"] == [4, 4]
    assert maps["seen"] == pytest.approx([0.125, 0, 0.75, 1])  # the middle 48 x 48 of 64 x 48
    assert len(maps["layers"]) == len(expected) == 2
    for layer, found in zip(maps["layers"], expected, strict=True):
        assert layer["prompts"] == found.temporal.prompts_per_gap[0].tolist()
        assert len(layer["prompts"]) == 5
        for cells, row in zip(layer["regions"], found.spatial.region_mask[0], strict=True):
            assert len(cells) == 3
            assert row[cells].tolist() == [1, 1, 1]
    assert stop_browser.get("/api/index").json()["maps"] is True


def test_maps_are_made_once(stop_browser, own_site, monkeypatch):
    first = stop_browser.get(f"/maps/{own_site.ids['1.mp4']}").json()
    monkeypatch.setattr("search.page.maps.draw", lambda *_: pytest.fail("made again"))
    assert stop_browser.get(f"/maps/{own_site.ids['1.mp4']}").json() == first


def test_a_window_within_a_file(site, browser):
    reader = replace(browser.page.index().encoder.reader, feature_framerate=0.0)
    path = site.videos / "long.mp4"
    frames = read_window(reader, path, 3.0, 5.0)
    video, mask = reader(path, start=3.0, end=5.0)
    assert np.array_equal(frames.video, video.numpy())
    assert np.array_equal(frames.frame_mask, mask.numpy())
    assert frames.times == pytest.approx(3 + np.arange(6) / 3)
    assert browser.page.index().windows([2 * 1024 * 1024 + 3])[0][1:] == (3.0, 5.0)


def test_a_window_far_into_a_file_is_sought(site, browser, monkeypatch):
    """It need not wait for all that comes before; in a file that can be sought, it has the same frames."""
    reader = replace(browser.page.index().encoder.reader, feature_framerate=0.0)
    path = site.videos / "long.mp4"
    expected = read_window(reader, path, 3.0, 5.0)
    monkeypatch.setattr("search.page.decoding.FAR", 2.0)
    monkeypatch.setattr("search.page.decoding.read_frames", lambda *_, **__: pytest.fail("decoded from the beginning"))
    frames = read_window(reader, path, 3.0, 5.0)
    assert frames.times == pytest.approx(expected.times)
    assert np.array_equal(frames.frame_mask, expected.frame_mask)
    assert frames.seen == expected.seen
    difference = np.abs(frames.video.astype(int) - expected.video.astype(int))
    assert difference.mean() < 3  # colours are converted in another way
    with pytest.raises(ValueError, match="no frame at 9000 s"):
        read_window(reader, path, 9000.0, 9002.0)


def test_maps_read_a_window_as_it_was_indexed(stop_browser, own_site, monkeypatch):
    asked = []
    children = stop_browser.page._maps._children
    run = children.run
    monkeypatch.setattr(children, "run", lambda *arguments: asked.append(arguments[3:]) or run(*arguments))
    stop_browser.get(f"/maps/{own_site.ids['0.mp4']}")
    assert asked == [(None, None)]  # the whole of a short file


@pytest.mark.parametrize(
    ("name", "options", "has"),
    [
        ("stop", {}, True),
        ("stop", {"use_intra": False}, True),
        ("stop", {"use_intra": False, "use_inter": False}, False),
        ("stop_released", {"region_mask": "patches"}, True),
        ("stop_released", {"region_mask": "comb"}, False),
        ("vpt", {}, False),
    ],
)
def test_methods_with_maps(name, options, has):
    assert has_maps(tiny(name, **options)) is has


@pytest.mark.parametrize(
    ("name", "options", "regions", "prompts"),
    [("stop", {"use_intra": False}, 0, 3), ("stop", {"use_inter": False}, 6, 0), ("stop_released", {}, None, 0)],
)
def test_a_stage_that_is_off(encoder, name, options, regions, prompts):
    released = {"region_mask": "patches"} if name == "stop_released" else {}
    method = tiny(name, **options, **released)
    frames = np.random.default_rng(0).integers(0, 255, (4, 3, 32, 32), dtype=np.uint8)
    found = draw(replace(encoder, method=method), Frames(frames, np.ones(4, bool), [0, 1, 2, 3], (0, 0, 1, 1)))
    for layer in found["layers"]:
        assert len(layer["prompts"]) == prompts
        assert len(layer["regions"]) == 4
        if regions is None:
            mask = method.prompt_maps(normalise_for(method.clip, torch.from_numpy(frames)[None]))[0][0].flatten(1)
            assert [len(cells) for cells in layer["regions"]] == (mask > 0.5).sum(1).tolist()
        else:
            assert {len(cells) for cells in layer["regions"]} == {regions}


def test_one_frame_has_no_gaps(encoder):
    video = np.zeros((4, 3, 32, 32), np.uint8)
    frames = Frames(video, np.array([True, False, False, False]), [0.0], (0, 0, 1, 1))
    for layer in draw(replace(encoder, method=tiny("stop")), frames)["layers"]:
        assert (layer["prompts"], len(layer["regions"])) == ([], 1)


def seen_by(reader: FrameReader, path) -> tuple[float, float, float, float]:
    """Return which part of a picture reaches the model, found by its colours: red grows along x, green along y."""
    square = reader(path)[0][0].float()
    left, right = (float(square[0, 8:-8, column].mean()) for column in (1, -2))
    top, bottom = (float(square[1, row, 8:-8].mean()) for row in (1, -2))
    side = square.shape[-1]
    across, down = (right - left) / (side - 3) * side / 240, (bottom - top) / (side - 3) * side / 240
    return (left / 240 - across * 1.5 / side, top / 240 - down * 1.5 / side, across, down)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"resize_mode": "squash"},
        {"frame_transform": "bilinear"},
        {"frame_transform": "crop"},
        {"short_side": 40},
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_the_part_of_a_picture_that_is_seen(tmp_path, options, turned):
    y, x = np.mgrid[:64, :96] / np.array([64, 96])[:, None, None]
    frame = np.stack([240 * x, 240 * y, np.zeros_like(x)], axis=-1).round().astype(np.uint8)
    path = write_video(tmp_path / "a.mp4", np.stack([frame] * 3), fps=3)
    reader = FrameReader(3, 32, **options)
    if turned:
        flag_rotation(path)
        assert read_window(reader, path, None, None).seen == pytest.approx(seen_part(reader, 96, 64))
        return
    assert read_window(reader, path, None, None).seen == pytest.approx(seen_by(reader, path), abs=0.04)
