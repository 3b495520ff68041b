"""Pictures show the right patches, maps, tiles and videos."""

import numpy as np
import pytest

from dataloaders.frames import FrameReader
from dataloaders.samples import Sample
from modules.methods import build_method
from tests.tiny import tiny_clip
from tools.pictures import LABEL, SIDE, Restored, boxes, heat, paste


def test_only_the_chosen_patches_are_framed():
    region = np.zeros((4, 4))
    region[1, 2] = 1
    picture = boxes(region, np.full((SIDE, SIDE, 3), 90, np.uint8))
    edge = SIDE // 4
    assert (picture[edge + 1 : 2 * edge - 1, 2 * edge + 1 : 3 * edge - 1] == 90).all()
    assert (picture[:edge] == 130).all()


def test_a_map_is_brightest_at_its_maximum():
    values = np.zeros((2, 2))
    values[0, 1] = 0.01  # even a small maximum is the brightest
    picture = heat(values, np.full((SIDE, SIDE, 3), 100, np.uint8)).astype(int).sum(axis=-1)
    assert picture[SIDE // 4, 3 * SIDE // 4] == picture.max()
    assert (picture[SIDE // 2 :] == picture.min()).all()


def test_tiles_are_side_by_side_after_the_name():
    picture = np.zeros((SIDE, LABEL + 2 * (SIDE + 4), 3), np.uint8)
    paste(picture, [np.full((SIDE, SIDE, 3), shade, np.uint8) for shade in (1, 2)], 0, SIDE + 4)
    assert picture[5, [LABEL - 1, LABEL, LABEL + SIDE - 1, LABEL + SIDE, LABEL + SIDE + 4], 0].tolist() == [
        0,
        1,
        1,
        0,
        2,
    ]


def test_videos_are_chosen_by_id(tmp_path):
    samples = [Sample(name, tmp_path / name, ("a caption",)) for name in ("a", "b", "c")]
    restored = Restored(build_method("vpt", tiny_clip()), samples, FrameReader(2, 32), 8)
    assert restored.chosen(["c", "a"], 2) == [samples[2], samples[0]]
    assert restored.chosen([], 2) == samples[:2]
    with pytest.raises(ValueError, match=r"^--videos d is not in the test split$"):
        restored.chosen(["a", "d"], 2)
