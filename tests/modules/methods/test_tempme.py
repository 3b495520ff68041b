"""TempMe: against the numbers and the choices of the original, its counts, padding, and its plan of joins."""

import logging

import pytest
import torch

from modules.clip import ARCHITECTURES, CLIP
from modules.methods import build_method, tempme
from modules.methods.tempme import plan_joins
from tests.modules.methods.peer_oracles import method_of
from tests.modules.methods.released_parity import check_outputs, frame_mask_of
from tests.reference_numbers import load_oracle
from tests.tiny import tiny_batch, tiny_clip

SIZES = ["small", pytest.param("b32", marks=pytest.mark.slow)]


def made(**options):
    torch.manual_seed(1)
    return build_method("tempme", tiny_clip(), **{"max_frames": 4} | options)


@pytest.fixture(scope="module", params=SIZES)
def original(reference, request):
    oracle = load_oracle(reference, f"tempme_{request.param}")
    return oracle, method_of(oracle, "tempme", padding="seen")


def test_equals_the_original(original):
    oracle, method = original
    check_outputs(method, oracle)


def test_merges_the_tokens_that_the_original_merges(original, monkeypatch):
    oracle, method = original
    places, lengths = [], []

    def matching(*arguments):
        places.append(match(*arguments))
        return places[-1]

    match = tempme.match
    monkeypatch.setattr(tempme, "match", matching)
    for block in method.clip.visual.blocks:
        block.mlp.register_forward_hook(lambda _, inputs, __: lengths.append(list(inputs[0].shape)))
    with torch.no_grad():
        method.eval().encode_video(oracle.video, frame_mask_of(oracle))
    assert len(places) == 14  # all but that of the last block, which changes no class token
    for number, place in enumerate(places):
        assert torch.equal(place, torch.from_numpy(oracle.outputs[f"merge{number:02}_groups"]).long()), number
    shapes = [shape for _, shape in sorted(oracle.setting["block_output_shapes"].items(), key=lambda x: int(x[0][5:]))]
    assert lengths[:-1] == shapes[:-1]
    assert lengths[-1][1] == oracle.setting["frames"]


def test_count_at_vit_b32():
    with torch.device("meta"):
        method = build_method("tempme", CLIP(ARCHITECTURES["ViT-B/32"]))
    assert sum(parameter.numel() for _, parameter in method.trainable_parameters()) == 507_648
    assert method.joined == {8: 2, 9: 2, 10: 3}


def test_shares_in_whole_numbers_are_those_of_the_original():
    for tokens in range(3000):
        assert (tokens * 30 // 100, tokens * 10 // 100) == (int(tokens * 0.3), int(tokens * 0.1))


@torch.no_grad()
def test_padding_is_hidden_unless_as_released():
    video, frame_mask, _ = tiny_batch(batch=2)
    frame_mask[1, 1:] = False  # whole groups of padding
    dirty = video.clone()
    dirty[1, 1:] += 1
    for padding in ("hidden", "seen"):
        method = made(padding=padding, merge_layer="0-1", merge_frame_num="2-2").eval()
        clean, other = method.encode_video(video, frame_mask), method.encode_video(dirty, frame_mask)
        assert clean.isfinite().all()
        assert torch.allclose(clean, other, atol=1e-6) == (padding == "hidden")


@torch.no_grad()
def test_frames_see_each_other_only_after_a_join():
    video, frame_mask, _ = tiny_batch(batch=1)
    changed = video.clone()
    changed[:, 3] += 1
    for numbers, sees in (("4", [True] * 3), ("2", [False, False, True]), ("1", [False] * 3)):
        method = made(merge_layer="1", merge_frame_num=numbers).eval()
        before, after = method.encode_frames(video, frame_mask), method.encode_frames(changed, frame_mask)
        assert [(before[0, t] - after[0, t]).abs().max().item() > 1e-4 for t in range(3)] == sees


@torch.no_grad()
def test_without_merging_and_joins_it_is_lora():
    video, frame_mask, token_ids = tiny_batch()
    method = made(tome_r=0, merge_layer="1", merge_frame_num="1", merge_token_proportion="0-0").eval()
    torch.manual_seed(1)
    plain = build_method("lora", tiny_clip()).eval()
    for ours, expected in zip(method(video, frame_mask, token_ids), plain(video, frame_mask, token_ids), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("depth", "frames", "layer", "number", "expected"),
    [
        (12, 12, "", "", {8: 2, 9: 2, 10: 3}),
        (12, 16, "", "", {8: 2, 9: 2, 10: 4}),
        (12, 4, "", "", {8: 2, 9: 2}),
        (24, 12, "", "", {16: 2, 17: 2, 18: 3}),
        (4, 12, "", "", {2: 12}),
        (2, 4, "", "", {0: 4}),
        (1, 7, "", "", {0: 7}),
        (12, 1, "", "", {}),
        (12, 12, "3-5", "", {3: 2, 5: 6}),
        (12, 4, "3-5-6", "", {3: 2, 5: 2, 6: 1}),
        (12, 12, "", "4", {8: 4}),
    ],
)
def test_what_is_unset_is_derived_and_told(depth, frames, layer, number, expected, caplog):
    with caplog.at_level(logging.INFO, "stop"):
        assert plan_joins(depth, frames, layer, number) == expected
    told = "-".join(map(str, expected)) or "none"
    assert f"merge_layer {told}" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merge_layer": "8-9-10"}, "--merge_layer 8-9-10 must name rising blocks from 0 to 1"),
        ({"merge_layer": "1-0"}, "--merge_layer 1-0 must name rising blocks"),
        ({"merge_layer": "0,1"}, "--merge_layer '0,1' is no list of whole numbers"),
        ({"merge_frame_num": "2-2"}, r"has 2 numbers and merge_layer has 1 blocks \(0\)"),
        ({"merge_frame_num": "3"}, "--merge_frame_num 3 does not divide the 4 frames of a clip: there are 4 groups"),
        ({"merge_layer": "0", "merge_frame_num": "0"}, "--merge_frame_num 0 does not divide"),
        ({"merge_token_proportion": "30"}, "must be two numbers from 0 to 100"),
        ({"merge_token_proportion": "30-101"}, "must be two numbers from 0 to 100"),
        ({"tome_r": -1}, "--tome_r -1 is out of range"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_a_clip_of_another_length_is_refused():
    video, frame_mask, _ = tiny_batch(frames=3)
    with pytest.raises(ValueError, match="the clip has 3 frames, and this model was made for max_frames=4"):
        made().encode_video(video, frame_mask)
