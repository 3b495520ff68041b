"""STDD against the numbers of the original modules (`oracles/stdd.pt`)."""

from collections.abc import Callable
from dataclasses import replace
from zlib import crc32

import numpy as np
import pytest
import torch

from modules.clip import ARCHITECTURES, CLIP, CLIPArchitecture
from modules.frame_rows import FrameRows
from modules.methods import build_method
from modules.methods import stdd as method_file
from modules.methods.stdd import STDD
from modules.stdd.mixing import mix_channels
from tests.modules.stdd.loops import window_order

SMALL = CLIPArchitecture(
    embed_dim=32,
    image_size=64,
    patch_size=16,
    vision_width=64,
    vision_layers=2,
    vision_heads=2,
    context_length=8,
    vocab_size=16,
    text_width=16,
    text_layers=1,
    text_heads=2,
)
SMALL_STCA = [
    "small_eval_noshuffle", "small_eval_shuffle", "small_train", "small_train_nospatialrepeat_noshuffle",
    "small_scale1", "small_scale2", "small_scale123_fold8", "small_mask025", "small_mask075",
]  # fmt: skip
SMALL_CASES = [
    *SMALL_STCA, "small_none", "small_channel_shift", "small_expand_temporal_view", "small_expand_temporal_view_step2",
    "small_expand_temporal_view_step3", "small_cross_frame_attend", "small_stadapt_zeroinit",
]  # fmt: skip
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def oracle(reference):
    return torch.load(reference / "oracles" / "stdd.pt", weights_only=True)


def visual_parameters(method: STDD) -> dict[str, torch.nn.Parameter]:
    """Return the parameters of the vision tower and of the temporal parts, by the original's names."""
    named = {method.released_name(name): parameter for name, parameter in method.named_parameters()}
    return {
        name.removeprefix("visual."): parameter
        for name, parameter in named.items()
        if name is not None and name.startswith("visual.")
    }


@torch.no_grad()
def load(method: STDD, state: dict[str, torch.Tensor]) -> None:
    parameters = visual_parameters(method)
    assert parameters.keys() == state.keys()
    for name, parameter in parameters.items():
        parameter.copy_(state[name].reshape(parameter.shape))


def of_case(case: dict, architecture: CLIPArchitecture = SMALL) -> STDD:
    """Return the method of a case, with its masks and in its mode."""
    vision = case["vis"]
    method = build_method(
        "stdd",
        CLIP(architecture),
        temporal=vision["temporal_modeling_type"] or "none",
        rate=vision["mask_rate"],
        fold=vision["channel_fold"],
        scales=",".join(map(str, vision["temporal_scale"])),
        spatial_repeat=vision["spatial_repeat"],
        channel_shift="scrambled",
    )
    assert isinstance(method, STDD)
    method.inject_masks(case["masks"])
    return method.train(case["run"]["train"])


def whole_blocks(method: STDD, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Make the last block compute all tokens, too, and return the list that gets the output of every block."""
    outputs: list[torch.Tensor] = []

    def recorded(*arguments, first_only, **more):
        outputs.append(cross_attend(*arguments, first_only=False, **more))
        return outputs[-1]

    cross_attend = method_file.cross_attend
    monkeypatch.setattr(method_file, "cross_attend", recorded)
    for variant in method.temporal:
        variant.register_forward_pre_hook(lambda module, arguments: (*arguments[:3], False))
        variant.register_forward_hook(lambda module, arguments, output: outputs.append(output))
    return outputs


def as_theirs(method: STDD, tokens: torch.Tensor) -> torch.Tensor:
    """Bring tokens `[B,T,1+N,D]` to the original's layout `[1+N,B*T,D]`, patches row by row."""
    patches = tokens[:, :, 1:]
    if method.crossing:
        order = torch.tensor(window_order(method.clip.visual.grid)).argsort()
        patches = patches[:, :, order]
    return torch.cat([tokens[:, :, :1], patches], dim=2).flatten(0, 1).transpose(0, 1)


@pytest.mark.parametrize("tag", SMALL_CASES)
def test_outputs_and_gradients_of_small_towers(oracle, tag):
    case = oracle["cases"][tag]
    method = of_case(case)
    load(method, case.get("state_dict", oracle["cases"]["small_eval_noshuffle"]["state_dict"]))
    out = method.encode_frames(oracle["small_input"].unflatten(0, (2, 8))).flatten(0, 1)
    torch.testing.assert_close(out, case["out"], **CLOSE)
    (out * case["probe"]).sum().backward()
    parameters = visual_parameters(method)
    assert parameters.keys() == case["grads"].keys()
    for name, parameter in parameters.items():
        expected = case["grads"][name].reshape(parameter.shape)
        assert (parameter.grad - expected).abs().max() <= 1e-5 * expected.abs().max() + 1e-7, name


@torch.no_grad()
@pytest.mark.parametrize("tag", SMALL_CASES)
def test_every_block_of_small_towers(oracle, tag, monkeypatch):
    case = oracle["cases"][tag]
    method = of_case(case)
    load(method, case.get("state_dict", oracle["cases"]["small_eval_noshuffle"]["state_dict"]))
    outputs = whole_blocks(method, monkeypatch)
    out = method.encode_frames(oracle["small_input"].unflatten(0, (2, 8))).flatten(0, 1)
    torch.testing.assert_close(out, case["out"], **CLOSE)
    for ours, theirs in zip(outputs, case["blocks"], strict=True):
        torch.testing.assert_close(as_theirs(method, ours), theirs, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("tag", SMALL_STCA)
def test_the_parts_of_the_first_block(oracle, tag, monkeypatch):
    """Masked and mixed tokens, the plain path Y, the mean of the temporal branch H, and the padded shortcut Q."""
    case = oracle["cases"][tag]
    expected = case["block0"]
    method = of_case(case)
    load(method, oracle["cases"]["small_eval_noshuffle"]["state_dict"])
    seen = {}

    def mix(tokens, frame_mask, scales, fold):
        mixed = mix_channels(tokens, frame_mask, scales, fold)
        seen.setdefault("x_masked", tokens)
        for scale, of_scale in zip(scales, mixed, strict=True):
            own = tokens[..., of_scale.shape[-1] :]
            seen.setdefault(f"mix_scale{scale}", torch.cat([of_scale, own], dim=-1))
        return mixed

    def feed_forward(block, plain, shortcut):
        seen.setdefault("full_attn", plain)
        seen.setdefault("padded", shortcut)
        return _feed_forward(block, plain, shortcut)

    from modules.stdd import cross_attention

    _feed_forward: Callable[..., torch.Tensor] = cross_attention._feed_forward
    monkeypatch.setattr(cross_attention, "mix_channels", mix)
    monkeypatch.setattr(cross_attention, "_feed_forward", feed_forward)
    method.encode_frames(oracle["small_input"].unflatten(0, (2, 8)))
    assert expected.keys() == seen.keys() | {"x_in", "avg"}
    for name in ("x_masked", *(key for key in seen if key.startswith("mix"))):
        ours = seen[name].flatten(0, 1).transpose(0, 1)  # kept patches stay in window order, theirs too
        torch.testing.assert_close(ours, expected[name], **CLOSE, msg=lambda found, name=name: f"{name}: {found}")
    for name in ("full_attn", "padded"):
        torch.testing.assert_close(as_theirs(method, seen[name]), expected[name], **CLOSE)
    kept = ~case["masks"][0].flatten(0, 1)
    branch = seen["padded"].flatten(0, 1)
    places = torch.cat([torch.ones(len(kept), 1, dtype=torch.bool), kept], dim=1)
    ours = branch[places].unflatten(0, (len(kept), -1)).transpose(0, 1)
    torch.testing.assert_close(ours, expected["avg"], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("tag", ["flat2d/train/keep_raw=False", "flat2d/train/keep_raw=True"])
def test_the_matrix_classifier_in_training(oracle, tag):
    """Scores of the fine-tuned model; with the raw model also the normalised frames of both."""
    model, case = oracle["clip_model"], oracle["clip_model"][tag]
    video = model["inputs"]["clips"].transpose(1, 2)
    method = with_weights(model["model_state"]).train()
    method.inject_masks(case["masks"])
    frames = method.encode_frames(video)
    torch.testing.assert_close(scores_of(method, model["inputs"]["text_flat"], frames), case["pred"], **CLOSE)
    if "img" in case:
        assert_frames(frames, case["img"])
        assert_frames(with_weights(model["raw_state"], temporal="none").encode_frames(video), case["raw_img"])


@torch.no_grad()
@pytest.mark.parametrize("tag", ["flat2d/eval/keep_raw=False", "flat2d/eval/keep_raw=True"])
def test_the_matrix_classifier_in_evaluation(oracle, tag):
    model, case = oracle["clip_model"], oracle["clip_model"][tag]
    video = model["inputs"]["clips"].transpose(1, 2)
    method = with_weights(model["model_state"]).eval()
    method.inject_masks(case["masks"])
    text = model["inputs"]["text_flat"]
    torch.testing.assert_close(scores_of(method, text, method.encode_frames(video)), case["pred"], **CLOSE)
    if "raw_pred" in case:
        raw = with_weights(model["raw_state"], temporal="none").eval()
        torch.testing.assert_close(scores_of(raw, text, raw.encode_frames(video)), case["raw_pred"], **CLOSE)


def with_weights(state: dict[str, torch.Tensor], **options) -> STDD:
    """Return a method with the weights of the whole model, whose heads are 64 wide."""
    method = build_method("stdd", CLIP(replace(SMALL, vision_heads=1)), **options)
    assert isinstance(method, STDD)
    load(method, {key.removeprefix("visual."): value for key, value in state.items() if key != "logit_scale"})
    with torch.no_grad():
        method.clip.logit_scale.copy_(state["logit_scale"])
    return method


def scores_of(method: STDD, text: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Return the scores `[B,K]` of clips whose frames are all real."""
    return method.similarity(text, FrameRows(frames, torch.ones(frames.shape[:2], dtype=torch.bool))).T


def assert_frames(frames: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.nn.functional.normalize(frames, dim=-1).flatten(0, 1), expected, **CLOSE)


def of_recipe(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the tensor that the recipe of the large cases makes for a name."""
    numbers = np.random.RandomState(crc32(name.encode()) & 0x7FFFFFFF).standard_normal(shape)
    key, width = name.removeprefix("visual."), shape[-1]
    if ".ln_" in name and key.endswith("weight"):
        numbers = 1 + 0.1 * numbers
    elif key in ("class_embedding", "positional_embedding"):
        numbers = numbers / np.sqrt(width) * 4
    elif len(shape) == 1:
        numbers = 0.02 * numbers
    elif key == "proj":
        numbers = numbers / np.sqrt(shape[0])
    elif name != "input_b16":
        numbers = numbers / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(numbers.astype(np.float32))


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("tag", ["b16_eval_noshuffle", "b16_train", "b16_none"])
def test_vit_b_16(oracle, tag, monkeypatch):
    case = oracle["cases"][tag]
    method = of_case(case, ARCHITECTURES["ViT-B/16"])
    for name, parameter in visual_parameters(method).items():
        parameter.copy_(of_recipe(f"visual.{name}", tuple(parameter.shape)))
    video = of_recipe("input_b16", (8, 3, 224, 224))
    assert float(video.double().sum()) == pytest.approx(oracle["b16_input_checksum"], rel=1e-6)
    outputs = whole_blocks(method, monkeypatch)
    out = method.encode_frames(video.unsqueeze(0))[0]
    torch.testing.assert_close(out, case["out"], **CLOSE)
    classes = torch.stack([tokens[0, :, 0] for tokens in outputs])
    torch.testing.assert_close(classes, case["blocks_cls"], **CLOSE)
    facts = torch.stack([torch.stack([x.mean(), x.std(), x.abs().max()]) for x in outputs])
    torch.testing.assert_close(facts, case["blocks_stats"], **CLOSE)
    last, expected = as_theirs(method, outputs[-1]), case["block_last_tok"]  # all tokens of one frame
    difference = (last - expected.unsqueeze(1)).abs().amax(dim=(0, 2)).min()
    assert difference <= 1e-5 * expected.abs().max()
