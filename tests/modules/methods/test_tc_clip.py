"""TC-CLIP against numbers of the original, against plain loops, and its options."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from modules.clip import CLIP, CLIPArchitecture
from modules.methods import build_method
from modules.released_weights import load_released_state_dict
from modules.stop.tokens import at_least_fp32
from modules.tc_clip.context import attend, merge_to
from modules.tc_clip.prompts import OF_TEMPLATE, prompt_states
from modules.token_merging import match
from tests.reference_numbers import largest_relative_difference, recipe_of
from tests.tiny import tiny_batch, tiny_clip

NEW = ("prompt_learner.", "text_encoder.prompt_generation_layer.")


class Original:
    """The method with the weights and inputs of a reference run."""

    def __init__(self, reference, name):
        folder = reference / "oracles"
        self.setting = setting = json.loads((folder / f"{name}.json").read_text())
        self.outputs, self.recipe = dict(np.load(folder / f"{name}.npz")), recipe_of(folder)
        size = setting["clip"]
        architecture = CLIPArchitecture(
            size["embed"], size["image"], size["patch"], size["width"], size["layers"], size["width"] // 64, 77, 49408,
            size["twidth"], size["tlayers"], size["twidth"] // 64,
        )  # fmt: skip
        self.method = build_method(
            "tc_clip", CLIP(architecture), context_tokens=setting["context_tokens"], tome_r=setting["tome_r"],
            seed_share=setting["seed_share"], prompt_heads=setting["prompt_heads"],
        )  # fmt: skip
        load_released_state_dict(
            self.method, {key: self.weight(key, shape) for key, shape in setting["shapes"].items()}
        )
        words = self.method.clip.text.token_embedding
        with torch.no_grad():
            words.weight.copy_(self.weight("text_encoder.token_embedding.weight", words.weight.shape))
        video = self.recipe.video(
            setting["seed"], setting["video_name"], setting["batch"], setting["frames"], setting["size"]
        )
        self.video, self.token_ids = torch.from_numpy(video), torch.tensor(setting["class_token_ids"])
        self.token_ids[:, 1:5] = torch.tensor(OF_TEMPLATE)  # whatever stood there, it is replaced
        self.frame_mask = torch.ones(self.video.shape[:2], dtype=torch.bool)

    def weight(self, key, shape):
        """Return the weights that the recipe has for one of the original's names."""
        if key.startswith(NEW) or key.endswith("local_global_bias_table"):
            return torch.from_numpy(self.recipe.tensor(self.setting["seed"], key, shape))
        key = "clip." + key.replace("image_encoder.", "visual.").removeprefix("text_encoder.")
        for number, letter in enumerate("qkv"):
            for kind in ("weight", "bias"):
                if key.startswith("clip.visual.") and key.endswith(f".{letter}_proj.{kind}"):
                    joined = key.replace(f".{letter}_proj.{kind}", f".in_proj_{kind}")
                    whole = self.recipe.tensor(self.setting["seed"], joined, (3 * shape[0], *shape[1:]))
                    return torch.from_numpy(whole).chunk(3)[number]
        return torch.from_numpy(self.recipe.tensor(self.setting["seed"], key, shape))


@pytest.fixture(scope="module", params=["tcclip_small", pytest.param("tcclip_b16", marks=pytest.mark.slow)])
def original(request, reference):
    return Original(reference, request.param)


def test_outputs_and_loss_are_the_originals(original):
    method, setting, outputs = original.method, original.setting, original.outputs
    frames, context = method.encode_frames(original.video, original.frame_mask)
    assert largest_relative_difference(frames, outputs["frame_output"]) < 1e-5
    assert largest_relative_difference(context.tokens, outputs["context_output"]) < 1e-5
    text, video = method(original.video, original.frame_mask, original.token_ids)
    logits = method.similarity(text, video).T
    assert largest_relative_difference(logits, outputs["logits"]) < 1e-5
    loss = cross_entropy(logits, torch.arange(len(logits)) % logits.shape[1])
    assert loss.item() == pytest.approx(setting["loss"], rel=1e-5)


@pytest.fixture
def in_double(original, monkeypatch):
    """The same in fp64, in which "float" then keeps it: at B/16, gradients in fp32 carry up to 2e-4 of rounding."""
    monkeypatch.setattr(torch.Tensor, "float", at_least_fp32)
    original.method.double()
    yield original
    original.method.to(torch.float32).zero_grad()


def test_gradients_are_the_originals(in_double):
    method, setting = in_double.method, in_double.setting
    text, video = method(in_double.video.double(), in_double.frame_mask, in_double.token_ids)
    logits = method.similarity(text, video).T
    assert logits.dtype == torch.float64
    cross_entropy(logits, torch.arange(len(logits)) % logits.shape[1]).backward()
    gradients = {}
    for name, own in method.trainable_parameters():
        key = method.released_name(name)
        parts = own.grad.chunk(3) if "{q,k,v}" in key else (own.grad,)
        gradients |= {key.replace("{q,k,v}", letter): part for letter, part in zip("qkv", parts, strict=False)}
    assert sum(own.numel() for _, own in method.trainable_parameters()) == setting["trainable"]
    expected = {name: of for name, of in setting["gradients_norm_sum_first4"].items() if of is not None}
    assert expected.keys() == gradients.keys()
    largest = max(norm for norm, _, _ in expected.values())
    for name, (norm, _, first) in expected.items():
        if norm > 2e-6 * largest:
            assert gradients[name].norm().item() == pytest.approx(norm, rel=2e-5), name
            assert gradients[name].flatten()[:4].tolist() == pytest.approx(first, rel=1e-3, abs=1e-4 * norm), name


def test_chosen_tokens_are_the_originals(original, monkeypatch):
    """Follow each patch into the context token that it ends in, through all rounds of merging."""
    blocks, places = [], []

    def recorded_attend(*arguments):
        result = attend(*arguments)
        blocks.append(result.seeds)
        places.append([])
        return result

    def recorded_match(*arguments, **options):
        places[-1].append(match(*arguments, **options))
        return places[-1][-1]

    monkeypatch.setattr("modules.methods.tc_clip.attend", recorded_attend)
    monkeypatch.setattr("modules.tc_clip.context.match", recorded_match)
    with torch.no_grad():
        original.method.encode_frames(original.video, original.frame_mask)
    expected = torch.from_numpy(original.outputs["context_of_patch"]).long()
    patches = original.method.clip.visual.grid**2
    for layer, (seeds, rounds) in enumerate(zip(blocks, places, strict=True)):
        batch, frames, _ = seeds.shape
        at = torch.arange(seeds.shape[1] * seeds.shape[2]).repeat(batch, 1)
        for place in rounds:
            at = place.gather(1, at)
        patch = (seeds + patches * torch.arange(frames)[:, None]).flatten(1)
        got = torch.full((batch, frames * patches), -1).scatter(1, patch, at)
        assert torch.equal(got, expected[:, layer]), layer


@pytest.fixture
def method():
    method = build_method("tc_clip", tiny_clip(), context_tokens=5, tome_r=4)
    with torch.no_grad():
        for own in method.generation.parameters():
            own.add_(0.1 * torch.randn_like(own))
    return method.eval()


def test_a_padded_clip_is_the_clip_without_its_padding(method):
    video, frame_mask, _ = tiny_batch(batch=3, frames=4)
    with torch.no_grad():
        together = method.encode_video(video, frame_mask)
        alone = method.encode_video(video[1:2, :3], frame_mask[1:2, :3])
    for ours, shared in zip(alone, together, strict=True):
        torch.testing.assert_close(ours[0], shared[1], atol=1e-5, rtol=1e-5)


def test_a_pair_is_a_text_with_the_video_s_tokens_in_the_whole_last_block(method):
    """The last block over all tokens of a text, with the tokens of each video in their places, scores the same."""
    clip = method.clip
    video, frame_mask, token_ids = tiny_batch(batch=3, frames=4)
    with torch.no_grad():
        text, clips = method(video, frame_mask, token_ids)
        scores = method.similarity(text, clips)
        for n in range(3):
            for b in range(3):
                states = text.states[n : n + 1].clone()
                states[0, 1:5] = clips.prompts[b]
                end = clip.text.blocks[-1](states, causal=True)[0, text.end[n]]
                cosine = torch.cosine_similarity(clip.text.pool(end), clips.video[b], dim=0)
                torch.testing.assert_close(scores[n, b], clip.logit_scale.exp() * cosine, atol=1e-4, rtol=1e-5)


def test_states_of_learned_tokens_are_those_of_every_text(method):
    _, _, token_ids = tiny_batch(batch=3)
    text = method.clip.text
    with torch.no_grad():
        start = text.token_embedding(torch.tensor(49406))
        states = prompt_states(text, start, method.ctx)
        for row in method.encode_text(token_ids).states:
            torch.testing.assert_close(row[1:5], states)


def test_learned_tokens_start_as_the_template_and_stand_in_its_place(method):
    """With new prompts, a text with the template scores as in CLIP before the last block, and one without as if it had
    the template before its words."""
    text = method.clip.text
    assert torch.equal(method.ctx, text.token_embedding(torch.tensor(OF_TEMPLATE)))
    bare = torch.tensor([[49406, 900, 901, 49407, 0, 0, 0, 0]])
    filled = torch.tensor([[49406, *OF_TEMPLATE, 900, 901, 49407]])
    with torch.no_grad():
        x = text.embed(filled)
        for block in list(text.blocks)[:-1]:
            x = block(x, causal=True)
        for ids in (bare, filled):
            rows = method.encode_text(ids)
            assert rows.end.item() == 7
            torch.testing.assert_close(rows.states[:, :8], x)
            assert (rows.states[:, 8:] == 0).all()


def test_context_is_merged_as_in_a_plain_loop():
    """Rounds of merging, written for single tokens with lists."""
    torch.manual_seed(0)
    tokens = torch.randn(2, 23, 6)
    got = merge_to(tokens, 5, 4)
    for row, start in zip(got, tokens, strict=True):
        rest = [(token, 1.0) for token in start]
        goes = [4] * ((23 - 5) // 4)
        while len(rest) > 5:
            m = min(goes.pop() if goes else len(rest) - 5, len(rest) // 2)
            a, b = rest[::2], rest[1::2]
            cosines = [[torch.cosine_similarity(x, y, dim=0).item() for y, _ in b] for x, _ in a]
            order = sorted(range(len(a)), key=lambda i: -max(cosines[i]))
            sums = [(token * size, size) for token, size in b]
            for i in order[:m]:
                j = cosines[i].index(max(cosines[i]))
                sums[j] = sums[j][0] + a[i][0] * a[i][1], sums[j][1] + a[i][1]
            rest = [a[i] for i in order[m:]] + [(total / size, size) for total, size in sums]
        torch.testing.assert_close(row, torch.stack([token for token, _ in rest]))
    assert torch.equal(merge_to(tokens[:, :4], 5, 4), tokens[:, :4])


def test_frames_see_other_frames(method):
    """A change of one frame changes the embeddings of the others, through the context of the block before."""
    video, frame_mask, _ = tiny_batch(batch=1)
    other = video.clone()
    other[0, 3] += 1
    with torch.no_grad():
        first, second = (method.encode_frames(clip, frame_mask)[0] for clip in (video, other))
    assert (first[0, :3] - second[0, :3]).abs().max() > 1e-4


def test_blocks_of_texts_do_not_change_scores(method, monkeypatch):
    with torch.no_grad():
        rows = method(*tiny_batch())
        expected = method.similarity(*rows)
        monkeypatch.setattr("modules.methods.tc_clip.AT_ONCE", 1)
        torch.testing.assert_close(method.similarity(*rows), expected)


def test_options_that_do_not_fit_this_clip():
    with pytest.raises(
        ValueError, match=r"--seed_share 0.05 of the 16 patches of this CLIP is not one patch: .* 0.0625"
    ):
        build_method("tc_clip", tiny_clip(), seed_share=0.05)
    with pytest.raises(ValueError, match="--prompt_heads 3 does not divide 16, the width of this CLIP's text tower"):
        build_method("tc_clip", tiny_clip(), prompt_heads=3)
    method = build_method("tc_clip", tiny_clip())
    long = torch.tensor([[49406, *range(900, 914), 49407]])
    with pytest.raises(
        ValueError, match="no room for the 4 learned tokens among the 16 of this CLIP: lower --max_words"
    ):
        method.encode_text(long)
    assert method.encode_text(long[:, [0, 1, 2, 15]]).states.shape[1] == 8


def test_a_release_with_a_part_missing_is_refused():
    method = build_method("tc_clip", tiny_clip())
    theirs = {}
    for name, tensor in method.state_dict().items():
        if (key := method.released_name(name)) is not None:
            parts = tensor.chunk(3) if "{q,k,v}" in key else (tensor,)
            theirs |= {key.replace("{q,k,v}", letter): part for letter, part in zip("qkv", parts, strict=False)}
    load_released_state_dict(method, theirs)
    gone = "image_encoder.transformer.resblocks.1.attn.k_proj.weight"
    del theirs[gone]
    with pytest.raises(ValueError, match=f"{gone} is missing"):
        load_released_state_dict(method, theirs)
