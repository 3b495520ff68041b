"""MV-Adapter: against the original's numbers, where it starts, its size, its padding and its refusals."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F

from modules.clip import ARCHITECTURES, CLIP
from modules.losses import symmetric_info_nce
from modules.methods import build_method
from modules.released_weights import load_released_state_dict
from tests.modules.methods.peer_oracles import check_gradient, method_of
from tests.reference_numbers import largest_relative_difference, load_oracle, recipe_of
from tests.tiny import tiny_batch, tiny_clip


def mv_adapter(**options):
    """Return a tiny model with random values in the parts that start at zero."""
    method = build_method("mv_adapter", tiny_clip(), **{"max_frames": 4, **options}).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for _, parameter in method.trainable_parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return method


def as_recipe(folder, oracle):
    """Give CLIP's tensors, which have names of the release's own, the values that the recipe has by OpenAI's names."""
    recipe = recipe_of(folder)
    for key, tensor in oracle.weights.items():
        if ".adapter." in key:
            continue
        openai = key.replace(".attn.ln.", ".ln_1.").replace(".mlp.ln.", ".ln_2.")
        shape = list(tensor.shape)
        split = re.fullmatch(r"(.+\.attn\.)([qkv])_proj\.(weight|bias)", openai)
        if split:
            openai = f"{split[1]}in_proj_{split[3]}"
            whole = torch.from_numpy(recipe.tensor(oracle.setting["seed"], openai, [3 * shape[0], *shape[1:]]))
            oracle.weights[key] = whole.chunk(3)["qkv".index(split[2])]
        else:
            oracle.weights[key] = torch.from_numpy(recipe.tensor(oracle.setting["seed"], openai, shape))


@pytest.fixture(scope="module", params=["small", pytest.param("b32", marks=pytest.mark.slow)])
def original(reference, request):
    oracle = load_oracle(reference, f"mvadapter_{request.param}")
    as_recipe(reference / "oracles", oracle)
    sizes = {"max_frames": oracle.setting["frames"], "max_words": oracle.setting["words"]}
    method = method_of(oracle, "mv_adapter", train_clip_biases=True, **sizes)
    real = torch.arange(oracle.setting["frames"]) < torch.tensor(oracle.setting["frames_of_clip"])[:, None]
    return oracle, method, oracle.video * real[:, :, None, None, None], real


def test_equals_the_original(original):
    oracle, method, video, real = original
    found = {}

    def keep(name, read):
        return lambda _, inputs, output: found.__setitem__(name, read(output))

    first, last = method.visual_adapters[0], method.visual_adapters[-1]
    hooks = [
        first.calibration.register_forward_hook(keep("calibration0", lambda out: out)),
        first.register_forward_hook(keep("visual_adapter0_cls", lambda out: out[:, :, 0])),
        first.register_forward_hook(keep("visual_adapter0_patch0", lambda out: out[:, :, 1])),
        last.register_forward_hook(keep("visual_adapter_last_cls", lambda out: out[:, :, 0])),
        method.text_adapters[0].register_forward_hook(
            keep("text_adapter0_first", lambda out: out[:, :3].transpose(0, 1))
        ),
    ]
    with torch.no_grad():
        found["frame_output"] = method.encode_frames(video, real)
        text, clips = method(video, real, oracle.token_ids)
        found |= {"text_output": text, "similarity": method.similarity(text, clips)}
    for hook in hooks:
        hook.remove()
    assert found.keys() == oracle.outputs.keys()
    for name, ours in found.items():
        assert largest_relative_difference(ours, oracle.outputs[name]) < 1e-5, name
    assert symmetric_info_nce(found["similarity"]).item() == pytest.approx(oracle.setting["loss"], rel=1e-5)


def test_learns_as_the_original(original):
    oracle, method, video, real = original
    text, clips = method(video, real, oracle.token_ids)
    symmetric_info_nce(method.similarity(text, clips)).backward()
    expected = oracle.setting["gradients_norm_sum_first4"]
    ours = {method.released_name(name): parameter.grad for name, parameter in method.trainable_parameters()}
    for key in [key for key in ours if key.startswith("clip.") and key.endswith(".attn.in_proj_bias")]:
        if ".adapter." not in key:
            parts = ours.pop(key).chunk(3)
            ours |= {
                key.replace("in_proj_", f"{letter}_proj."): part for letter, part in zip("qkv", parts, strict=True)
            }
    ours = {key.replace(".ln_1.", ".attn.ln.").replace(".ln_2.", ".mlp.ln."): value for key, value in ours.items()}
    theirs = {
        key.replace(".ln_1.", ".attn.ln.").replace(".ln_2.", ".mlp.ln."): value for key, value in expected.items()
    }
    assert ours.keys() == theirs.keys()
    largest = max(norm for norm, *_ in theirs.values())
    for key, gradient in ours.items():
        if theirs[key][0] > 2e-6 * largest:  # the others are zero but for rounding
            check_gradient(gradient, theirs[key])
    method.zero_grad()


def test_alpha_starts_as_one():
    method = build_method("mv_adapter", tiny_clip(), max_frames=4)
    assert method.visual_adapters[0].calibration.excite.weight.eq(0).all()


def test_initial_values_are_the_releases(original):
    """Means and deviations of the original's constructor, for tensors with enough values to tell."""
    oracle, method, _, _ = original
    torch.manual_seed(0)
    sizes = {"max_frames": oracle.setting["frames"], "max_words": oracle.setting["words"]}
    fresh = build_method("mv_adapter", copy.deepcopy(method.clip), **sizes)
    for name, parameter in fresh.requires_grad_(False).named_parameters():
        if name.startswith("clip."):
            continue
        mean, std, _, _ = oracle.setting["at_init_mean_std_min_max"][fresh.released_name(name)]
        if parameter.numel() >= 2048 or std == 0:
            assert float(parameter.std()) == pytest.approx(std, rel=0.1, abs=1e-9), name
            assert float(parameter.mean()) == pytest.approx(mean, abs=0.1 * std + 1e-9), name


def test_a_clip_depends_on_no_other_clip_and_on_no_padding():
    method, (video, frame_mask, _) = mv_adapter(), tiny_batch()
    with torch.no_grad():
        together = method.encode_frames(video, frame_mask)
        changed = video.clone()
        changed[1, -1] += 1
        again = method.encode_frames(changed, frame_mask)
        assert torch.allclose(again[frame_mask], together[frame_mask], atol=1e-6)
        seen = method.encode_frames(changed, torch.ones_like(frame_mask))
        assert not torch.allclose(seen[1, 0], together[1, 0], atol=1e-4)  # if it is a frame, the others see it


def test_a_text_may_be_shorter_and_not_longer():
    method, (_, _, token_ids) = mv_adapter(max_words=12), tiny_batch(words=8)
    with torch.no_grad():
        torch.testing.assert_close(
            method.encode_text(F.pad(token_ids, (0, 4))), method.encode_text(token_ids), atol=1e-5, rtol=1e-5
        )
    with pytest.raises(ValueError, match="the text has 13 tokens, and this model was made for max_words=12"):
        method.encode_text(F.pad(token_ids, (0, 5)))


def test_both_towers_share_a_factor_that_scales_rows():
    method, (video, frame_mask, token_ids) = mv_adapter(shared_blocks=1), tiny_batch()
    assert [adapter.of_shared is None for adapter in method.visual_adapters] == [True, False]
    text, clips = method(video, frame_mask, token_ids)
    for rows in (text, clips):
        assert torch.autograd.grad(rows.sum(), method.shared[0], retain_graph=True)[0].any()
    adapter, y = method.text_adapters[1], torch.randn(2, 3, 16)
    rows = method.shared[0] @ adapter.of_shared.weight.T + adapter.of_shared.bias
    expected = y @ (torch.diag(rows) @ adapter.down.weight).T + adapter.down.bias
    torch.testing.assert_close(adapter.narrow(y, method.shared[0]), expected)


@pytest.mark.parametrize(("biases", "count"), [(False, 3_325_696), (True, 3_325_696 + 171_008)])
def test_the_size_is_the_one_in_the_table(biases, count):
    with torch.device("meta"):
        method = build_method("mv_adapter", CLIP(ARCHITECTURES["ViT-B/32"]), train_clip_biases=biases)
    assert sum(parameter.numel() for _, parameter in method.trainable_parameters()) == count


def test_groups_are_the_releases():
    groups = {group["name"]: group for group in mv_adapter(train_clip_biases=True).parameter_groups(5e-6, 0.02, 0.2)}
    assert {name: group["weight_decay"] for name, group in groups.items()} == {
        "clip": 0.2, "new": 0.2, "new, no decay": 0.0,
    }  # fmt: skip
    assert groups["clip"]["lr"] == pytest.approx(1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter_width": 6}, "--adapter_width 6 is not a multiple of 4"),
        ({"shared_blocks": 3}, "--shared_blocks 3 is out of range: it takes a number from 0 to 2, the blocks of this"),
    ],
)
def test_bad_options_are_one_sentence(options, message):
    with pytest.raises(ValueError, match=r"^--") as caught:
        mv_adapter(**options)
    assert str(caught.value).startswith(message)


def test_a_released_state_without_a_part_is_refused():
    method = mv_adapter()
    state = {method.released_name(name): tensor for name, tensor in method.state_dict().items()}
    key = "clip.transformer.resblocks.1.attn.in_proj_bias"
    q, k, v = state.pop(key).chunk(3)
    state |= {key.replace("in_proj_", f"{letter}_proj."): part for letter, part in (("q", q), ("k", k), ("v", v))}
    load_released_state_dict(method, state)
    del state["clip.transformer.resblocks.1.attn.k_proj.bias"]
    with pytest.raises(ValueError, match=r"clip\.transformer\.resblocks\.1\.attn\.k_proj\.bias is missing"):
        load_released_state_dict(method, state)
