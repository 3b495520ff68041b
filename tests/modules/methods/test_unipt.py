"""UniPT: against the original's numbers and a loop from its definition, and what a training step costs."""

import pytest
import torch
import torch.nn.functional as F

from modules.clip import ARCHITECTURES, CLIP
from modules.losses import symmetric_info_nce
from modules.methods import build_method
from tests.modules.methods.peer_oracles import check_gradient, method_of
from tests.reference_numbers import largest_relative_difference, load_oracle
from tests.tiny import tiny_batch, tiny_clip

EXCLAMATION = 0  # the token "!", which pads too


@pytest.mark.parametrize("size", ["small", pytest.param("b32", marks=pytest.mark.slow)])
def test_equals_the_original(reference, size):
    oracle = load_oracle(reference, f"unipt_{size}")
    method = method_of(oracle, "unipt", text_mask="nonzero")
    real = torch.arange(oracle.setting["frames"]) < torch.tensor(oracle.setting["frames_of_clip"])[:, None]
    video = oracle.video * real[:, :, None, None, None]
    text, clips = method(video, real, oracle.token_ids)
    similarity = method.similarity(text, clips)
    loss = symmetric_info_nce(similarity)
    assert largest_relative_difference(method.encode_frames(video), oracle.outputs["frame_output"]) < 1e-5
    assert largest_relative_difference(text, oracle.outputs["text_output"]) < 1e-5
    assert largest_relative_difference(similarity, oracle.outputs["similarity"]) < 1e-5
    assert loss.item() == pytest.approx(oracle.setting["loss"], rel=1e-5)
    loss.backward()
    expected = oracle.setting["gradients_norm_sum_first4"]
    trained = dict(method.trainable_parameters())
    assert {method.released_name(name) for name in trained} == expected.keys() == oracle.setting["trained"].keys()
    for name, parameter in trained.items():
        if not name.endswith("gate.bias"):  # zero but for rounding
            check_gradient(parameter.grad, expected[method.released_name(name)])


def naive(network, taps, z, place, real):
    """One row: taps are lists of tokens, [L, D] each. Section 3 of the paper, with every K computed."""
    q = network.query(F.relu(z))
    gates, features = [], []
    for layer, tap in zip(network.keys, taps, strict=True):
        keys = [layer(F.relu(token)) for token in tap]
        mean = sum(key for key, counts in zip(keys, real, strict=True) if counts) / sum(real)
        weights = [F.relu(key @ q) if counts else 0.0 for key, counts in zip(keys, real, strict=True)]
        total = max(float(sum(weights)), 1e-6)
        gates.append(network.gate(q * mean))
        features.append(sum(w / total * key for w, key in zip(weights, keys, strict=True)) + keys[place])
    shares = torch.stack(gates).softmax(dim=0)
    return z + network.up(F.relu(sum(share * feature for share, feature in zip(shares, features, strict=True))))


@pytest.mark.parametrize("text_mask", ["length", "nonzero"])
def test_against_a_loop(text_mask):
    method = build_method("unipt", tiny_clip(), text_mask=text_mask).eval()
    video, frame_mask, token_ids = tiny_batch()
    token_ids[0, 3] = EXCLAMATION
    visual, text = method.clip.visual, method.clip.text
    with torch.no_grad():
        texts, clips = method(video, frame_mask, token_ids)
        for row, mask in enumerate(frame_mask):
            frames = []
            for image in video[row, mask]:
                taps = [visual.embed(image[None])]
                for block in visual.blocks:
                    taps.append(block(taps[-1]))
                z = visual.pool(taps[-1])[0]
                frames.append(naive(method.image_adapter, [tap[0] for tap in taps], z, 0, [True] * taps[0].shape[1]))
            torch.testing.assert_close(clips[row], F.normalize(torch.stack(frames), dim=1).mean(dim=0))
        for row, ids in enumerate(token_ids):
            end = int(ids.argmax())
            taps = [text.embed(ids[None])]
            for block in text.blocks:
                taps.append(block(taps[-1], causal=True))
            real = [n <= end for n in range(len(ids))] if text_mask == "length" else [bool(n) for n in ids]
            z = text.pool(taps[-1][:, end])[0]
            torch.testing.assert_close(
                texts[row], naive(method.text_adapter, [tap[0] for tap in taps], z, end, real), atol=1e-5, rtol=1e-5
            )


def test_an_exclamation_mark_counts_as_padding_in_the_release_alone():
    _, _, token_ids = tiny_batch(batch=1)
    token_ids[0, 3] = EXCLAMATION
    texts = {}
    for text_mask in ("length", "nonzero"):
        torch.manual_seed(0)
        method = build_method("unipt", tiny_clip(), text_mask=text_mask).eval()
        with torch.no_grad():
            texts[text_mask] = method.encode_text(token_ids)
            longer = method.encode_text(F.pad(token_ids, (0, 4)))
        torch.testing.assert_close(longer, texts[text_mask])  # padding does not count in either
    assert not torch.allclose(texts["length"], texts["nonzero"], atol=1e-4)


def test_nothing_of_clip_is_kept_for_backward():
    method = build_method("unipt", tiny_clip())
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t):
        text, clips = method(*tiny_batch())
        method.similarity(text, clips)
    hidden = 4 * tiny_clip().visual.width  # of the MLPs, whose gradients would need their activations
    assert kept
    assert all(hidden not in shape for shape in kept)


def test_the_size_is_the_one_in_the_table():
    with torch.device("meta"):
        method = build_method("unipt", CLIP(ARCHITECTURES["ViT-B/32"]))
    sizes = {
        part: sum(p.numel() for p in getattr(method, part).parameters()) for part in ("image_adapter", "text_adapter")
    }
    assert sizes == {"image_adapter": 5_644_289, "text_adapter": 3_940_353}
    assert sum(parameter.numel() for _, parameter in method.trainable_parameters()) == 9_584_642
