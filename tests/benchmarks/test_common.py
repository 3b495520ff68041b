"""What the benchmarks share: made batches, checks of inputs and outputs, and the files they write."""

import json
import time

import pytest
import torch

from benchmarks.common import check_clip, check_outputs, origin_of, random_batch, timed, write_json
from modules.methods import METHODS
from modules.options import one_of
from tests.tiny import TINY

CPU = torch.device("cpu")


def test_a_made_batch():
    video, frame_mask, token_ids = random_batch(TINY, 3, 4, 8, CPU)
    assert video.shape == (3, 4, 3, TINY.image_size, TINY.image_size)
    assert video.dtype == torch.uint8
    assert frame_mask.shape == (3, 4)
    assert frame_mask.all()
    assert token_ids.shape == (3, 8)
    assert (token_ids.argmax(dim=-1) == 7).all()


def test_times_are_milliseconds():
    result, milliseconds = timed(lambda: time.sleep(0.01), CPU)
    assert result is None
    assert 10 <= milliseconds < 1000


def test_numbers_go_into_a_new_folder_and_carry_their_origin(tmp_path):
    origin, line = origin_of(CPU)
    write_json(tmp_path / "a" / "b.json", {"rows": [1.5], **origin})
    written = json.loads((tmp_path / "a" / "b.json").read_text())
    assert written["rows"] == [1.5]
    assert written["threads"] == torch.get_num_threads()
    assert line == (
        f"{origin['hardware']}, {origin['threads']} threads, {origin['versions']}, commit {origin['commit']}"
    )


def test_no_name_of_an_output_means_no_file():
    check_outputs("", "")


def test_wrong_inputs_are_one_sentence():
    with pytest.raises(ValueError, match=r"^--only 'clap' is not one of: stop, "):
        one_of("only", "clap", METHODS)
    with pytest.raises(ValueError, match=r"^--max_words 78 is out of range: it takes a number from 3 to 77"):
        check_clip("ViT-B/32", 78)
    with pytest.raises(OSError, match="no CLIP weights at none"):
        check_clip("none", 8)
