"""T-MASS against numbers of the original head, against a plain loop, and what its draws depend on."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize, softmax

from engine.tasks.contrastive import ContrastiveStep
from modules.clip import CLIP, CLIPArchitecture
from modules.losses import symmetric_info_nce
from modules.methods import build_method
from modules.methods.t_mass import RadiusBranch, TextRows, VideoRows
from modules.released_weights import load_released_state_dict
from modules.rows import map_rows, take
from modules.t_mass.pooling import FramePooling
from modules.weight_names import HUGGING_FACE_BLOCK_PARTS, HUGGING_FACE_TO_OPENAI, to_openai_key
from tests.reference_numbers import largest_relative_difference, recipe_of
from tests.tiny import TINY, tiny_batch, tiny_clip


class Original:
    """The head with the weights and inputs of a reference run. Texts and videos are numbered from 0."""

    def __init__(self, reference, name):
        folder = reference / "oracles"
        self.setting = json.loads((folder / f"{name}.json").read_text())
        self.outputs = dict(np.load(folder / f"{name}.npz"))
        recipe, seed = recipe_of(folder), self.setting["seed"]
        width, frames, batch = (self.setting[key] for key in ("dim", "frames", "batch"))
        architecture = CLIPArchitecture(width, 32, 16, 64, 1, 1, 16, 64, 64, 1, 1)
        self.method = build_method("t_mass", CLIP(architecture), max_frames=frames, trials=self.setting["trials"])
        shapes = self.setting["shapes"]
        weights = {key: torch.from_numpy(recipe.tensor(seed, key, shape)) for key, shape in shapes.items()}
        load_released_state_dict(self.method, weights)
        with torch.no_grad():
            self.method.clip.logit_scale.fill_(np.log(100.0))
        text = 10 * torch.from_numpy(recipe.tensor(seed, "input.text", [batch, width]))
        clips = 10 * frames**0.5 * torch.from_numpy(recipe.tensor(seed, "input.frames", [batch, frames, width]))
        self.text = TextRows(text, torch.arange(batch))
        self.video = VideoRows(clips, torch.ones(batch, frames, dtype=torch.bool), torch.arange(batch))
        self.method.noise = self.noise

    def noise(self, text, video, trials):
        """Return the reference's noise of pairs: for the test by pair and trial, in training by text."""
        if text.dim() == 1:
            return torch.from_numpy(self.outputs["noise"])[text].unsqueeze(1)
        drawn = torch.from_numpy(self.outputs["trial_noise"])  # [video,trial,text,d]
        return drawn.transpose(1, 2)[video.expand(len(text), -1), text.expand(-1, len(video))]


@pytest.fixture(params=["tmass_head_small", "tmass_head_512"])
def original(request, reference, monkeypatch):
    monkeypatch.setattr("modules.t_mass.pooling.DROPOUT", 0.0)  # off, as there
    monkeypatch.setattr("modules.methods.t_mass.DROPOUT", 0.0)
    return Original(reference, request.param)


def test_losses_and_gradients_are_the_originals(original):
    method, setting = original.method.train(), original.setting
    losses = []

    def loss(logits, video_index=None):
        losses.append(symmetric_info_nce(logits))
        return losses[-1]

    total = method.batch_loss(loss, original.text, original.video)
    assert total.item() == pytest.approx(setting["loss"], rel=1e-5)
    assert [part.item() for part in losses] == pytest.approx(list(setting["losses"].values()), rel=1e-5)
    total.backward()
    ours = {method.released_name(name): own.grad for name, own in method.named_parameters()}
    ours["logit_scale"] = method.clip.logit_scale.grad
    expected = {name: of for name, of in setting["gradients_norm_sum_first4"].items() if of is not None}
    largest = max(norm for norm, _, _ in expected.values())
    for name, (norm, _, first) in expected.items():
        if norm > 2e-6 * largest:
            assert ours[name].norm().item() == pytest.approx(norm, rel=1e-4), name
            assert ours[name].flatten()[:4].tolist() == pytest.approx(first, rel=1e-3, abs=1e-5 * norm), name


def test_cosines_are_the_originals(original):
    method, outputs = original.method, original.outputs
    with torch.no_grad():
        stochastic, support = method.train().pair_cosines(original.text, original.video)
        scores = method.eval().similarity(original.text, original.video) / 100
        text, video = method.prepare(original.text), method.prepare(original.video)
        pooled = method._pooled(text, video).transpose(0, 1)
    for got, name in (
        (stochastic, "cosine_text_video"),
        (support, "cosine_support"),
        (scores, "cosine_test_text_video"),
        (pooled, "pooled"),
    ):
        assert largest_relative_difference(got.contiguous(), outputs[name]) < 1e-5, name


@pytest.fixture
def method():
    method = build_method("t_mass", tiny_clip(), max_frames=4, trials=5)
    with torch.no_grad():
        for parameter in [*method.pool_frames.parameters(), *method.std_branch.parameters()]:
            parameter.add_(0.3 * torch.randn_like(parameter))
    return method


def test_scores_are_those_of_a_plain_loop(method):
    video, frame_mask, token_ids = tiny_batch(batch=3, frames=4)
    method.eval()
    with torch.no_grad():
        text, clips = method(video, frame_mask, token_ids)
        scores, head = method.similarity(text, clips), method.pool_frames
        w = head.cross_attn
        for n, t in enumerate(text.texts):
            for b in range(3):
                frames = clips.frames[b][frame_mask[b]]
                a, keys = head.layer_norm1(t), head.layer_norm1(frames)
                shares = softmax(w.k_proj(keys) @ w.q_proj(a) / len(t) ** 0.5, dim=0)
                p = head.layer_norm2(w.out_proj(shares @ w.v_proj(keys)))
                pooled = head.layer_norm3(p + head.linear_proj(p))
                cosines = cosine_similarity(frames, t.unsqueeze(0), dim=1)
                r = (
                    method.std_branch.linear_proj.weight[:, : len(frames)] @ cosines
                    + method.std_branch.linear_proj.bias
                )
                e = method.noise(text.number[n], clips.number[b], 5)
                best = max(cosine_similarity(t + draw * r.exp(), pooled, dim=0).item() for draw in e)
                assert scores[n, b].item() == pytest.approx(best * method.clip.logit_scale.exp().item(), abs=1e-4)


def test_scores_do_not_depend_on_the_gallery(method, monkeypatch):
    """The same caption and video draw the same alone, in another order, and in blocks of any size."""
    video, frame_mask, token_ids = tiny_batch(batch=3, frames=4)
    method.eval()
    with torch.no_grad():
        text, clips = method(video, frame_mask, token_ids)
        together = method.similarity(text, clips)
        alone = [
            [method.similarity(take(text, np.array([n])), take(clips, np.array([b]))) for b in range(3)]
            for n in range(3)
        ]
        torch.testing.assert_close(torch.tensor(alone), together, atol=1e-5, rtol=1e-5)
        order = torch.tensor([2, 0, 1])
        shuffled = method.similarity(map_rows(lambda x: x[order], text), map_rows(lambda x: x[order], clips))
        torch.testing.assert_close(shuffled, together[order][:, order], atol=1e-5, rtol=1e-5)
        monkeypatch.setattr("modules.methods.t_mass.AT_ONCE", 2 * 5 * TINY.embed_dim)
        torch.testing.assert_close(method.similarity(text, clips), together, atol=1e-5, rtol=1e-5)
        padded = torch.cat([token_ids, torch.zeros_like(token_ids[:, :2])], dim=1)
        assert torch.equal(method.encode_text(padded).number, text.number)
        other = build_method("t_mass", tiny_clip(), max_frames=4, trials=5, draw_seed=7).eval()
        other.load_state_dict(method.state_dict())
        assert not torch.allclose(other.similarity(text, clips), together)


def test_more_trials_score_at_least_as_high(method):
    method.eval()
    with torch.no_grad():
        text, clips = method(*tiny_batch())
        few = method.similarity(text, clips)
        method.trials = 20
        many = method.similarity(text, clips)
    assert (many >= few).all()
    assert (many > few).any()


def test_training_draws_anew_and_in_the_same_way_twice(method):
    batch = tiny_batch()
    method.train()
    rows = [method(*batch) for _ in range(2)]
    losses = [method.batch_loss(symmetric_info_nce, *pair).item() for pair in (*rows, rows[0])]
    assert losses[0] == losses[2]
    assert losses[0] != losses[1]


def test_accumulated_steps_have_the_gradient_of_the_whole_batch(method, monkeypatch):
    """The rows of the whole batch are drawn part by part, so the parts' numbers are given here."""
    step = ContrastiveStep(method.train(), lambda: torch.autocast("cpu", enabled=False))
    video, frame_mask, token_ids = tiny_batch(batch=4)
    inputs = ((video * 20 + 128).clamp(0, 255).to(torch.uint8), frame_mask, token_ids)

    def numbered(values):
        queue = iter(values)
        monkeypatch.setattr(method, "_random_numbers", lambda count: torch.tensor([next(queue) for _ in range(count)]))

    numbered(range(8))  # texts 0-3, videos 4-7
    whole = step(*inputs)
    whole.backward()
    expected = {name: own.grad.clone() for name, own in method.trainable_parameters()}
    method.zero_grad()
    part = [0, 1, 4, 5, 2, 3, 6, 7]  # the same numbers, part by part
    numbered(part)
    loss, parts = step.in_parts(inputs, 2)
    assert loss.item() == pytest.approx(whole.item(), rel=1e-6)
    numbered(part)
    for piece in parts:
        step(*piece.inputs).backward()
    for name, own in method.trainable_parameters():
        torch.testing.assert_close(own.grad, expected[name], atol=2e-5, rtol=1e-3, msg=name)


def test_at_the_start_the_radius_is_one_beyond_the_frames():
    method = build_method("t_mass", tiny_clip(), max_frames=4)
    radius = method.std_branch(torch.rand(3, 4)).exp()
    assert (radius[:, 4:] == 1).all()
    assert (radius[:, :4] > 1).all()


def test_parameters_of_the_head_at_vit_b_32():
    head = [*FramePooling(512).parameters(), *RadiusBranch(512, 12).parameters()]
    assert sum(own.numel() for own in head) == 1_323_009


def test_parameters_that_cannot_learn(method):
    batch = tiny_batch()
    method.train().batch_loss(symmetric_info_nce, *method(*batch)[:2]).backward()
    dead = {part.name for part in method.dead_parameters()}
    for name, own in method.trainable_parameters():
        if not name.startswith("clip."):
            assert (own.grad.abs().max() < 1e-5) == (name in dead), name


def test_a_release_with_hugging_face_names_loads_whole():
    method, theirs = build_method("t_mass", tiny_clip(), max_frames=4), {}
    for name, tensor in tiny_clip(seed=1).state_dict().items():
        key, own = to_openai_key(name), tensor.clone()
        for hugging_face, openai in (HUGGING_FACE_TO_OPENAI | HUGGING_FACE_BLOCK_PARTS).items():
            start = key.startswith(openai) or openai.startswith(".")
            key = key.replace(openai, hugging_face, 1) if start and not key.startswith(("vision_", "text_m")) else key
            key = key.replace(openai, hugging_face) if openai.startswith(".") else key
        own = own.T if name in ("visual.proj", "text.text_projection") else own
        for letter, part in zip("qkv", own.chunk(3), strict=True) if "{q,k,v}" in key else (("", own),):
            theirs["clip." + key.replace("{q,k,v}", letter)] = part
    theirs["clip.text_model.embeddings.position_ids"] = torch.arange(16)
    head = {name: tensor + 1 for name, tensor in method.state_dict().items() if not name.startswith("clip.")}
    load_released_state_dict(method, theirs | {method.released_name(name): tensor for name, tensor in head.items()})
    expected = {f"clip.{name}": tensor for name, tensor in tiny_clip(seed=1).state_dict().items()} | head
    assert all(torch.equal(tensor, expected[name]) for name, tensor in method.state_dict().items())


def test_longer_clips_are_refused(method):
    video, frame_mask, _ = tiny_batch(frames=5)
    with pytest.raises(ValueError, match="the clip has 5 frames, and this model was made for max_frames=4"):
        method.encode_video(video, frame_mask)


def test_unit_directions(method):
    """The support text is exp(r) away from its text, seen along each dimension of a unit vector."""
    text, clips = method.eval()(*tiny_batch())
    prepared, video = method.prepare(text), method.prepare(clips)
    pooled = method._pooled(prepared, video)
    direction = normalize(pooled.mean(dim=0) - prepared.texts, dim=-1)
    spread = method.std_branch((prepared.units.unsqueeze(1) * video.units).sum(dim=-1)).exp()
    expected = cosine_similarity((prepared.texts + direction * spread).unsqueeze(1), pooled, dim=-1)
    torch.testing.assert_close(method.pair_cosines(text, clips)[1], expected)
