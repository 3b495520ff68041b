"""Every method on a tiny backbone of every family: it runs and learns, or refuses in one sentence."""

import pytest
import torch

from modules.backbones import NEEDS
from modules.methods import METHODS, build_method
from tests.backbones import FAMILIES
from tests.tiny import fitting_options, tiny_batch, tiny_clip

PAIRS = [(name, family) for name in METHODS for family in FAMILIES]
RUNNING = [(name, family) for name, family in PAIRS if not FAMILIES[family].lacks(METHODS[name].needs)]


def built(name, family, **options):
    return build_method(name, tiny_clip(architecture=FAMILIES[family]), **fitting_options(name, **options))


@pytest.mark.parametrize(("name", "family"), [pair for pair in PAIRS if pair not in RUNNING])
def test_what_is_not_defined_is_refused(name, family):
    lacking = FAMILIES[family].lacks(METHODS[name].needs)
    with pytest.raises(ValueError, match=f"method {name} needs .*which this backbone does not have") as caught:
        built(name, family)
    assert all(NEEDS[need] in str(caught.value) for need in lacking)


def test_the_families_of_the_main_methods():
    everywhere = {name for name in METHODS if all((name, family) in RUNNING for family in FAMILIES)}
    assert {"stop", "clip4clip", "vpt", "lora", "bias", "adapter_attn", "adapter_ffn"} <= everywhere


@pytest.mark.parametrize(("name", "family"), [pair for pair in RUNNING if pair[1] != "clip"])
def test_forward_gradient_and_independence_of_the_batch(name, family):
    method = built(name, family)
    video, frame_mask, token_ids = tiny_batch(architecture=FAMILIES[family])
    text, clips = method.eval()(video, frame_mask, token_ids)
    scores = method.similarity(text, clips)
    assert scores.shape == (3, 3)
    assert scores.isfinite().all()
    alone = method.encode_video(video[1:2], frame_mask[1:2])
    torch.testing.assert_close(method.similarity(text, alone), scores[:, 1:2], atol=2e-4, rtol=1e-4)

    before = {key: value.clone() for key, value in method.state_dict().items()}
    method.train()
    trainable = {key: parameter for key, parameter in method.named_parameters() if parameter.requires_grad}
    rows = method(video, frame_mask, token_ids)
    (method.similarity(*rows) * torch.randn(3, 3)).sum().backward()
    with torch.no_grad():
        for parameter in trainable.values():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad.sign()
    changed = {key for key, value in method.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert changed <= trainable.keys()

    again = built(name, family)
    again.load_state_dict(method.state_dict())
    scores = [one.similarity(*one(video, frame_mask, token_ids)) for one in (again.eval(), method.eval())]
    assert torch.equal(*scores)


@pytest.mark.parametrize("family", FAMILIES)
def test_joint_attention_ignores_padding_on_every_family(family):
    method = built("stop", family, attention="joint").eval()
    video, frame_mask, _ = tiny_batch(architecture=FAMILIES[family])
    frame_mask[1] = torch.tensor([1, 1, 0, 0])
    short = method.encode_video(video[1:2, :2], frame_mask[1:2, :2])
    torch.testing.assert_close(method.encode_video(video, frame_mask)[1:2], short, atol=1e-4, rtol=1e-4)


def test_tokens_merge_only_where_a_class_token_is_read():
    with pytest.raises(ValueError, match=r"--merge .* needs a vision tower that is read by its class token"):
        built("stop", "pe", merge="2")
