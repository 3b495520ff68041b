"""Additions to CLIP's linear layers against a CLIP whose dense weights hold W + B A."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.block import Block
from modules.clip_weights import backbone_sha256
from modules.deltas import InputDelta, WeightDelta
from modules.losses import symmetric_info_nce
from tests.modules.lora import LAYERS, LoRAMethod, MergedLoRA
from tests.tiny import tiny_batch, tiny_clip

KINDS = ["input", "weight"]
ROWS = {"q": 0, "k": 1, "v": 2}


def lora(kind: str = "input", dropout: float = 0.0, rank: int = 4) -> LoRAMethod:
    """Return LoRA with a random B, so that it has an effect."""
    method = LoRAMethod(tiny_clip(), rank=rank, dropout=dropout, kind=kind)
    torch.manual_seed(1)
    with torch.no_grad():
        for delta in method.deltas:
            delta.b.normal_(std=0.3)
    return method


def blocks_of(clip) -> list[Block]:
    return [*clip.visual.blocks, *clip.text.blocks]


def dense_weight(block: Block, name: str) -> tuple[Tensor, slice]:
    """Return the weight that holds the layer, and its rows."""
    if name in ROWS:
        width = block.attn.width
        return block.attn.in_proj_weight, slice(ROWS[name] * width, (ROWS[name] + 1) * width)
    return {"out": block.attn.out_proj, "c_fc": block.mlp.c_fc, "c_proj": block.mlp.c_proj}[name].weight, slice(None)


def dense_twin(method: LoRAMethod):
    """Return a CLIP without deltas whose weights are W + B A, all of them trained."""
    clip = tiny_clip()
    clip.load_state_dict(method.clip.state_dict())
    deltas = iter(method.deltas)
    with torch.no_grad():
        for block in blocks_of(clip):
            for name in LAYERS:
                weight, rows = dense_weight(block, name)
                weight[rows] += next(deltas).weight()
    return clip


def loss_of(text: Tensor, video: Tensor, clip) -> Tensor:
    return symmetric_info_nce(clip.logit_scale.exp() * F.normalize(text, dim=-1) @ F.normalize(video, dim=-1).T)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_towers_and_gradients_equal_the_dense_model(kind, training):
    method = lora(kind).train(training)
    twin = dense_twin(method)
    video, _, token_ids = tiny_batch()
    outputs = [clip.visual(video.flatten(0, 1)) for clip in (method.clip, twin)]
    texts = [clip.text(token_ids) for clip in (method.clip, twin)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*texts, rtol=1e-4, atol=1e-5)
    for clip, images, words in zip((method.clip, twin), outputs, texts, strict=True):
        loss_of(words, images.unflatten(0, video.shape[:2]).mean(dim=1), clip).backward()
    deltas = iter(method.deltas)
    for block in blocks_of(twin):
        for name in LAYERS:  # the chain rule: dL/dB = dL/dW A^T, dL/dA = B^T dL/dW
            weight, rows = dense_weight(block, name)
            delta, gradient = next(deltas), weight.grad[rows]
            torch.testing.assert_close(delta.b.grad, gradient @ delta.a.T, rtol=1e-3, atol=1e-6)
            torch.testing.assert_close(delta.a.grad, delta.b.T @ gradient, rtol=1e-3, atol=1e-6)
    assert all(parameter.grad is None for parameter in method.clip.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_every_way_through_a_block_has_the_deltas(kind, training):
    """first_token, attend_from, contexts, masks, an input that is normalised already, and projections by parts."""
    method = lora(kind).train(training)
    twin = dense_twin(method)
    torch.manual_seed(0)
    x, others, places = torch.randn(3, 5, 32), torch.randn(3, 4, 32), torch.tensor([4, 0, 2])
    normal, seen = F.layer_norm(x, (32,)), torch.rand(3, 1, 5, 4) > 0.4
    mask = torch.randn(1, 1, 1, 9)
    results = []
    for clip in (method.clip, twin):
        block = clip.visual.blocks[1]
        context = block.context(others)
        results.append(
            [
                block(x, context, mask),
                block(x, causal=True),
                block(x, context, normal=normal),
                block.first_token(x, context),
                block.first_token(x, context, normal=normal),
                block.attend_from(x, places, context, seen),
                *block.attn.project(x),
                block.attn.query(normal, block.ln_1),
                *block.attn.keys_values(normal, block.ln_1),
            ]
        )
    for ours, naive in zip(*results, strict=True):
        torch.testing.assert_close(ours, naive, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_for_evaluation_equals_unmerged(kind):
    method = lora(kind)
    batch = tiny_batch()
    with torch.no_grad():
        unmerged = method.train()(*batch)
        merged = method.eval()(*batch)
        again = method(*batch)
    for one, other, third in zip(unmerged, merged, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert torch.equal(other, third)


@pytest.mark.parametrize("kind", KINDS)
def test_the_sum_is_made_once_until_a_tensor_changes(kind, monkeypatch):
    calls = []
    weight = MergedLoRA.weight
    monkeypatch.setattr(MergedLoRA, "weight", lambda self: calls.append(self) or weight(self))
    method, batch = lora(kind).eval(), tiny_batch()
    with torch.no_grad():
        first = method(*batch)
        assert len(calls) == len(method.deltas)
        method(*batch)
        assert len(calls) == len(method.deltas)
        for times in (1, 2, 3):  # a new sum may get the memory of an older one
            method.deltas[0].b.add_(1)
            changed = method(*batch)
            assert len(calls) == len(method.deltas) + 3 * times  # q, k and v are rows of one weight
            assert not torch.equal(changed[1], first[1])
            fresh = copy.deepcopy(method)
            calls_before = len(calls)
            for one, other in zip(changed, fresh(*batch), strict=True):
                assert torch.equal(one, other)
            del calls[calls_before:]
            first = changed
    if kind == "input":  # in training the weight itself is not formed
        method.train()(*batch)
        assert len(calls) == len(method.deltas) + 9


def test_dropout_acts_in_training_only():
    method = lora(dropout=0.5)
    batch = tiny_batch()
    with torch.no_grad():
        assert not torch.equal(method.train()(*batch)[0], method(*batch)[0])
        plain = lora()
        for one, other in zip(method.eval()(*batch), plain.eval()(*batch), strict=True):
            assert torch.equal(one, other)


def test_training_learns_and_leaves_the_base_unchanged():
    method = lora().train()
    before, sha256 = copy.deepcopy(method.clip.state_dict()), backbone_sha256(method.clip)
    assert list(before) == list(tiny_clip().state_dict())
    (group,) = method.parameter_groups(1e-2, 1e-3, 0.2)
    assert group["name"] == "new"
    assert group["lr"] == 1e-2
    assert len(group["params"]) == 2 * len(method.deltas)
    optimizer, batch, losses = torch.optim.AdamW(group["params"], 2e-2), tiny_batch(), []
    for _ in range(8):
        optimizer.zero_grad()
        text, video = method(*batch)
        loss = symmetric_info_nce(method.similarity(text, video))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    for name, tensor in method.clip.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert backbone_sha256(method.clip) == sha256
    with torch.no_grad():  # what it learned is there in evaluation, merged
        text, video = method.eval()(*batch)
        assert symmetric_info_nce(method.similarity(text, video)) < 0.7 * losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_has_its_own_deltas(kind):
    method = lora(kind).eval()
    batch = tiny_batch()
    with torch.no_grad():
        before = method(*batch)
        copied = copy.deepcopy(method)
        for delta in copied.deltas:
            delta.b.zero_()
        plain = LoRAMethod(tiny_clip()).eval()
        for one, other in zip(copied(*batch), plain(*batch), strict=True):
            torch.testing.assert_close(one, other)
        for one, other in zip(method(*batch), before, strict=True):
            assert torch.equal(one, other)
        for one, other in zip(method.double()(batch[0].double(), *batch[1:]), before, strict=True):
            torch.testing.assert_close(one.float(), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_recomputing_in_backward_changes_no_gradient(kind):
    gradients = []
    for recompute in (False, True):
        method = lora(kind, dropout=0.3).train()
        for block in blocks_of(method.clip):
            block.recompute = recompute
        torch.manual_seed(5)
        text, video = method(*tiny_batch())
        symmetric_info_nce(method.similarity(text, video)).backward()
        gradients.append([parameter.grad for _, parameter in method.trainable_parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_block_has_the_deltas(kind):
    method = lora(kind).train()
    block, x = method.clip.visual.blocks[0], torch.randn(2, 5, 32)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), block(x))
    compiled(x).square().sum().backward()
    ours = [delta.b.grad.clone() for delta in method.deltas[: len(LAYERS)]]
    method.zero_grad()
    block(x).square().sum().backward()
    for one, delta in zip(ours, method.deltas, strict=False):
        torch.testing.assert_close(one, delta.b.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_autocast_is_near_fp32(kind):
    method = lora(kind)
    batch = tiny_batch()
    exact = method.eval()(*batch)
    for training in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            rough = method.train(training)(*batch)
        for one, other in zip(rough, exact, strict=True):
            assert F.cosine_similarity(one.float(), other).min() > 0.999


class Adapter(InputDelta):
    """A bottleneck that is not a matrix, so it is never merged."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(inputs, 3), nn.Linear(3, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x).relu())


class Gain(WeightDelta):
    """A ΔW whose tensor is a buffer."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.register_buffer("delta", torch.randn(outputs, inputs) * 0.1)

    def weight(self) -> Tensor:
        return self.delta


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("name", [*LAYERS, "qkv"])
def test_an_adapter_reads_and_writes_what_the_layer_does(name, activation):
    """It sees the layer's own input and output, whatever factors are folded into the weights beside it."""
    torch.manual_seed(0)
    block = Block(16, 2, activation).requires_grad_(False).eval()
    adapter = Adapter(block.layers()[name].outputs, block.layers()[name].inputs)
    block.layers()[name].add(adapter)
    x = torch.randn(2, 5, 16)

    def layer(x: Tensor, weight: Tensor, bias: Tensor, own: str) -> Tensor:
        return F.linear(x, weight, bias) + (adapter(x) if own == name else 0)

    normed = block.ln_1(x)
    weights, biases = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
    qkv = [layer(normed, *pair, own) for *pair, own in zip(weights, biases, "qkv", strict=True)]
    if name == "qkv":
        qkv = [part + more for part, more in zip(qkv, adapter(normed).chunk(3, dim=-1), strict=True)]
    q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in qkv)
    gathered = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    naive = x + layer(gathered, block.attn.out_proj.weight, block.attn.out_proj.bias, "out")
    z = layer(block.ln_2(naive), block.mlp.c_fc.weight, block.mlp.c_fc.bias, "c_fc")
    hidden = z * torch.sigmoid(1.702 * z) if activation == "quick_gelu" else F.gelu(z)
    naive = naive + layer(hidden, block.mlp.c_proj.weight, block.mlp.c_proj.bias, "c_proj")
    torch.testing.assert_close(block(x), naive, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(block(x, normal=F.layer_norm(x, (16,))), naive, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(block.first_token(x), naive[:, :1], rtol=1e-4, atol=1e-5)


def test_several_deltas_of_one_layer_add_up():
    torch.manual_seed(0)
    block, twin = (Block(16, 2, "quick_gelu").requires_grad_(False) for _ in range(2))
    twin.load_state_dict(block.state_dict())
    gains = [Gain(48, 16), Gain(16, 16), Gain(16, 16)]
    for name, gain in zip(("qkv", "k", "k"), gains, strict=True):
        block.layers()[name].add(gain)
    twin.attn.in_proj_weight += gains[0].delta
    twin.attn.in_proj_weight[16:32] += gains[1].delta + gains[2].delta
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(block(x), twin(x), rtol=1e-4, atol=1e-5)
    gains[2].delta.zero_()  # a buffer counts as a source too
    assert not torch.allclose(block(x), twin(x))


def test_without_deltas_the_weights_are_used_as_they_are():
    block = tiny_clip().requires_grad_(False).visual.blocks[0]
    weight, bias = block.attn.projection()
    assert weight is block.attn.in_proj_weight
    assert bias is block.attn.in_proj_bias
    assert block.attn.out_deltas.merged(block.attn.out_proj.weight) is block.attn.out_proj.weight
    y = torch.zeros(2, 3)
    assert block.mlp.in_deltas.add_to(y, torch.ones(2, 3)) is y
    assert y.eq(0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_inference_mode_gives_the_same_and_training_goes_on_after_it(kind):
    method = lora(kind).eval()
    batch = tiny_batch()
    with torch.autocast("cpu", torch.bfloat16):
        with torch.inference_mode():
            first = method(*batch)
        with torch.no_grad():
            for one, other in zip(method(*batch), first, strict=True):
                assert torch.equal(one, other)
        text, video = method.train()(*batch)
    method.similarity(text.float(), video.float()).sum().backward()
    assert all(parameter.grad is not None for parameter in method.deltas.parameters())
