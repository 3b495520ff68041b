"""STDD: what is trained, when masks are drawn, short clips, what its options and messages say, and its cost."""

import copy
import logging
from dataclasses import replace
from itertools import count

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.describe import count_operations
from modules.clip import ARCHITECTURES, CLIP
from modules.clip_weights import read_state_dict
from modules.frame_rows import FrameRows
from modules.methods import build_method
from modules.methods.stdd import STDD
from modules.released_weights import load_released_state_dict
from modules.stdd.masks import training_shifts
from tests.tiny import TINY, tiny_batch, tiny_clip

VARIANTS = [
    "stcross_attend", "none", "expand_temporal_view", "expand_temporal_view_step2", "expand_temporal_view_step3",
    "channel_shift", "cross_frame_attend", "stadapt_zeroinit",
]  # fmt: skip
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def stdd(seed=0, architecture=TINY, **options) -> STDD:
    method = build_method("stdd", tiny_clip(seed, architecture), **options)
    assert isinstance(method, STDD)
    return method


def a_video(seed=0, clips=2, frames=8):
    return tiny_batch(seed, clips, frames)[0]


def test_the_example_of_its_use():
    method = build_method("stdd", tiny_clip(), temporal="stcross_attend", rate=0.5, fold=32, scales="1,2")
    assert method.encode_frames(a_video()).shape == (2, 8, TINY.embed_dim)


# Trained and frozen


def test_it_adds_no_parameter_and_trains_what_the_release_does():
    with torch.device("meta"):
        method = build_method("stdd", CLIP(ARCHITECTURES["ViT-B/16"]))
    trained = dict(method.trainable_parameters())
    assert {name for name in trained if not name.startswith("clip.visual.")} == {"clip.logit_scale"}
    assert sum(parameter.numel() for parameter in trained.values()) == 86_192_640 + 1
    assert method.state_dict().keys() == {f"clip.{name}" for name in method.clip.state_dict()}


def test_what_decays_is_what_decays_in_the_release():
    method = stdd(temporal="stadapt_zeroinit")
    decayed = {name for name, parameter in method.trainable_parameters() if method.decays(name, parameter)}
    assert "clip.logit_scale" in decayed
    assert {"clip.visual.proj", "clip.visual.conv1.weight", "clip.visual.positional_embedding"} <= decayed
    assert {"temporal.0.down.weight", "temporal.1.conv.weight"} <= decayed
    rest = {name for name, _ in method.trainable_parameters()} - decayed
    assert "clip.visual.class_embedding" in rest
    assert all(name.endswith("bias") or ".ln_" in name or "class_embedding" in name for name in rest)


@pytest.mark.parametrize("clamp", [True, False])
def test_the_scale_of_scores_has_a_limit_unless_as_in_the_release(clamp):
    method = stdd(clamp_logit_scale=clamp)
    with torch.no_grad():
        method.clip.logit_scale.fill_(5.0)
    method.after_step()
    assert method.clip.logit_scale.exp().item() == pytest.approx(100 if clamp else 148.413, rel=1e-4)


def test_only_the_attention_over_frames_has_dead_biases():
    assert {name: stdd(temporal=name).dead_parameters() != [] for name in VARIANTS} == {
        name: name == "cross_frame_attend" for name in VARIANTS
    }
    method = stdd(temporal="cross_frame_attend")
    method.encode_frames(a_video()).square().sum().backward()
    parameters = dict(method.named_parameters())
    for part in method.dead_parameters():
        query, key, value = parameters[part.name].grad.chunk(3)
        assert key.abs().max() < 1e-4 * value.abs().max()
        assert query.abs().max() > 0


# Scores


@torch.no_grad()
def test_the_score_is_the_mean_cosine_of_the_real_frames():
    method = stdd().eval()
    video, frame_mask, token_ids = tiny_batch()
    text, rows = method.encode_text(token_ids), method.encode_video(video, frame_mask)
    assert isinstance(rows, FrameRows)
    assert rows.frame_mask.dtype == torch.bool
    assert (rows.frames[~rows.frame_mask] == 0).all()
    scale = method.clip.logit_scale.exp()
    for row, words in enumerate(text):
        for clip in range(3):
            frames = rows.frames[clip][frame_mask[clip]]
            expected = scale * torch.nn.functional.cosine_similarity(frames, words[None], dim=1).mean()
            torch.testing.assert_close(method.similarity(text, rows)[row, clip], expected, **CLOSE)


# Masks


def test_training_draws_from_the_random_state_and_evaluation_does_not():
    method, video = stdd(), a_video()
    torch.manual_seed(3)
    first, second = method.train().encode_frames(video), method.encode_frames(video)
    assert (first - second).abs().max() > 1e-3  # drawn anew at every pass
    torch.manual_seed(3)
    assert torch.equal(method.encode_frames(video), first)
    for shuffle_eval in (False, True):
        method = stdd(shuffle_eval=shuffle_eval).eval()
        state = torch.get_rng_state()
        found = method.encode_frames(video)
        torch.manual_seed(99)
        assert torch.equal(method.encode_frames(video), found)
        torch.set_rng_state(state)
        method.encode_frames(video)
        assert torch.equal(torch.get_rng_state(), state)


@torch.no_grad()
def test_training_without_any_choice_is_evaluation():
    """Without a shuffle the offset is left, which a seed may draw as zero; without dropped patches nothing is."""
    video = a_video(clips=1)
    method = stdd(rate=0.0)
    torch.testing.assert_close(method.train().encode_frames(video), method.eval().encode_frames(video))
    method = stdd(shuffle_train=False)
    expected = method.eval().encode_frames(video)
    method.train()

    def offsets(seed):
        generator, whole = torch.Generator().manual_seed(seed), torch.ones(1, 8, dtype=torch.bool)
        return training_shifts(2, whole, 4, shuffle=False, spatial_repeat=True, generator=generator)[:, 0, 0]

    for offsets_are_zero in (True, False):
        seed = next(seed for seed in count() if (offsets(seed) == 0).all() == offsets_are_zero)
        torch.manual_seed(seed)
        same = (method.encode_frames(video) - expected).abs().max() < 1e-6
        assert same == offsets_are_zero


@torch.no_grad()
def test_shuffled_evaluation_depends_on_its_seed_and_not_on_the_batch():
    video = a_video(clips=3)
    shuffled = stdd(shuffle_eval=True, shuffle_seed=1).eval()
    together = shuffled.encode_frames(video)
    for row in range(3):
        torch.testing.assert_close(shuffled.encode_frames(video[row : row + 1])[0], together[row], **CLOSE)
    for other in (stdd(shuffle_eval=True, shuffle_seed=2), stdd()):
        assert (other.eval().encode_frames(video) - together).abs().max() > 1e-3


@torch.no_grad()
def test_injected_masks_replace_drawn_ones():
    method, video = stdd(), a_video()
    expected = method.eval().encode_frames(video)
    shift = torch.arange(8)[:, None]
    masks = (((torch.arange(4) - shift) % 4) < 2).repeat(1, 4).expand(2, 2, 8, 16)
    for mode in (True, False):
        method.train(mode).inject_masks(masks)
        torch.testing.assert_close(method.encode_frames(video), expected, **CLOSE)
        method.inject_masks(~masks)
        assert (method.encode_frames(video) - expected).abs().max() > 1e-3
    method.inject_masks(None)
    assert torch.equal(method.encode_frames(video), expected)
    method.inject_masks(masks)
    with pytest.raises(ValueError, match=r"masks are for \[2, 8\] clips and frames, and the video has \[3, 8\]"):
        method.encode_frames(a_video(clips=3))
    with pytest.raises(ValueError, match=r"must be bool \[2,B,T,16\]"):
        method.inject_masks(masks[..., :4])
    with pytest.raises(ValueError, match="only --temporal stcross_attend has masks"):
        stdd(temporal="none").inject_masks(masks)


# Short clips


@settings(max_examples=12)
@given(st.sampled_from(VARIANTS), st.lists(st.integers(1, 6), min_size=1, max_size=3), st.integers(0, 3), st.booleans())
@torch.no_grad()
def test_a_padded_clip_is_the_clip_without_its_padding(name, lengths, more, shuffle_eval):
    """The first real frames of a batch, whatever is behind them, give what they give alone."""
    method = stdd(temporal=name, shuffle_eval=shuffle_eval).eval()
    frames = max(lengths) + more
    video = a_video(clips=len(lengths), frames=frames)
    frame_mask = torch.arange(frames) < torch.tensor(lengths)[:, None]
    found = method.encode_video(video, frame_mask).frames
    for clip, length in enumerate(lengths):
        alone = method.encode_frames(video[clip : clip + 1, :length])[0]
        torch.testing.assert_close(found[clip, :length], alone, **CLOSE)


@torch.no_grad()
def test_a_repeated_last_frame_is_not_padding():
    """The original repeats the last frame of a short clip. These frames count: the frame before has a successor."""
    method, video = stdd().eval(), a_video(clips=1, frames=4)
    video[:, 3] = video[:, 2]
    repeated = method.encode_frames(video)
    padded = method.encode_frames(video, torch.tensor([[True, True, True, False]]))
    assert (repeated[:, 2] - padded[:, 2]).abs().max() > 1e-4


# The released code's checkpoints


@pytest.mark.parametrize("name", ["stcross_attend", "cross_frame_attend", "stadapt_zeroinit"])
@pytest.mark.parametrize("prefix", ["model.", "module.model.", ""])
def test_released_checkpoints_are_read(name, prefix, caplog):
    source, target = stdd(1, temporal=name), stdd(2, temporal=name)
    state = {f"{prefix}{source.released_name(key)}": value for key, value in source.state_dict().items()}
    if prefix:  # what the release saves beside its model
        state |= {f"{prefix.removesuffix('model.')}raw_model.visual.proj": torch.zeros(3)}
        state |= {f"{prefix.removesuffix('model.')}projector.0.weight": torch.zeros(3)}
    else:  # what OpenAI saves beside the weights
        state |= {"input_resolution": torch.tensor(32)}
    for key in list(state):
        if "stadapt" in key and key.endswith("weight"):  # 3-D convolutions there
            state[key] = state[key].reshape(*state[key].shape, *(1,) * (5 - state[key].dim()))
    with caplog.at_level(logging.INFO, "stop"):
        load_released_state_dict(target, state)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in target.state_dict().items())
    assert ("2 tensors that served its training alone (raw_model.visual.proj, projector" in caplog.text) == bool(prefix)


def test_their_key_names():
    method = stdd(temporal="stadapt_zeroinit")
    names = {method.released_name(name) for name in method.state_dict()}
    assert {
        "visual.transformer.resblocks.0.attn.in_proj_weight", "visual.transformer.resblocks.1.stadapt_conv3d_1.weight",
        "transformer.resblocks.1.mlp.c_fc.bias", "token_embedding.weight", "logit_scale", "visual.proj",
    } <= names  # fmt: skip


def test_what_does_not_fit_is_named():
    method = stdd()
    state = {f"model.{method.released_name(key)}": value for key, value in method.state_dict().items()}
    del state["model.visual.proj"]
    state["model.stray"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"1 key missing \(visual.proj\); 1 key unknown \(stray\)"):
        load_released_state_dict(method, state)


def test_their_files_are_read(tmp_path):
    """They save with `model_state`, beside the optimiser's state and their settings as a text."""
    state = {"model.visual.proj": torch.ones(2)}
    torch.save({"epoch": 3, "model_state": state, "optimizer_state": {}, "cfg": "TRAIN: ..."}, tmp_path / "c.pyth")
    assert read_state_dict(tmp_path / "c.pyth").keys() == state.keys()


# Bad input


def test_an_odd_grid_is_refused_where_windows_are_needed():
    odd = replace(TINY, image_size=24)
    with pytest.raises(ValueError, match=r"needs an even grid of patches, and this CLIP's is 3 x 3: take a CLIP such"):
        stdd(architecture=odd)
    for name in VARIANTS[1:]:
        assert stdd(architecture=odd, temporal=name).crossing is False


def test_a_fold_beyond_the_width_is_refused():
    assert stdd(fold=32).fold == 32
    with pytest.raises(ValueError, match="--fold 33 is out of range: it takes a number from 2 to 32, the width"):
        stdd(fold=33)


def test_a_copy_keeps_its_own_masks():
    method = stdd()
    masks = torch.zeros(2, 2, 8, 16, dtype=torch.bool)
    method.inject_masks(masks)
    twin = copy.deepcopy(method)
    method.inject_masks(None)
    with pytest.raises(ValueError, match="masks are for"):
        twin.encode_frames(a_video(clips=1))


# Cost


def operations(layers=12, **options) -> int:
    architecture = replace(ARCHITECTURES["ViT-B/16"], vision_layers=layers, text_layers=1)
    with torch.device("meta"):
        method = build_method("stdd", CLIP(architecture), **options)
    method.eval().requires_grad_(False)
    return count_operations(method, max_frames=8, max_words=1)


def test_the_operations_of_a_block_of_vit_b_16():
    """Two scales take 1.34 times those of `temporal` none in the release; here one projection serves both."""
    blocks = {}
    for options in ({"temporal": "none"}, {"scales": "1"}, {"scales": "1,2"}):
        two, three = (operations(layers, **options) for layers in (2, 3))
        blocks[options.get("scales", "none")] = three - two  # a block that is not the last
    assert blocks["1,2"] / blocks["none"] == pytest.approx(1.077, abs=0.003)
    assert blocks["1"] / blocks["none"] == pytest.approx(1.059, abs=0.003)
