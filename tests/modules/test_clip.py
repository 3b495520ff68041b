"""Both towers against Hugging Face's CLIPModel and open_clip, and the contract of `embed`, `blocks` and `pool`."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.clip import ARCHITECTURES, CLIP, Attention, Block, CLIPArchitecture, make_blocks
from modules.clip_weights import from_hugging_face_keys, from_openai_keys, to_openai_keys

TINY = CLIPArchitecture(
    embed_dim=24,
    image_size=32,
    patch_size=8,
    vision_width=64,
    vision_layers=3,
    vision_heads=4,
    context_length=16,
    vocab_size=100,
    text_width=48,
    text_layers=2,
    text_heads=3,
)
MASKS = ["none", "bool", "float", "per_head"]


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter at random, biases and norms too, so that a misplaced one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = name.endswith("weight") and parameter.dim() == 1
            parameter.copy_(1 + 0.2 * noise if is_norm else noise * (0.2 if parameter.dim() < 2 else 0.15))
    return module.eval()


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return pixels [3, 3, 32, 32] and token ids [3, 16] with END (99) at 15, 6 and 2."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(3, 3, 32, 32, generator=generator)
    token_ids = torch.randint(1, 98, (3, 16), generator=generator)
    for row, end in zip(token_ids, (15, 6, 2), strict=True):
        row[0], row[end], row[end + 1 :] = 98, 99, 0
    return pixels, token_ids


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_features_equal_hugging_face(activation: str) -> None:
    transformers = pytest.importorskip("transformers")
    shared = {"hidden_act": activation, "attention_dropout": 0.0}
    vision = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256}
    text = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 192}
    theirs = transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config={**vision, **shared, "image_size": 32, "patch_size": 8},
            text_config={
                **text,
                **shared,
                "vocab_size": 100,
                "max_position_embeddings": 16,
                "bos_token_id": 98,
                "eos_token_id": 99,
            },
            projection_dim=24,
        )
    )
    randomised(theirs)
    ours = CLIP(dataclasses.replace(TINY, activation=activation)).eval()
    ours.load_state_dict(from_openai_keys(from_hugging_face_keys(theirs.state_dict())))
    pixels, token_ids = batch()
    with torch.no_grad():
        output = theirs(input_ids=token_ids, pixel_values=pixels)
        image, words = ours.visual(pixels), ours.text(token_ids)
    assert image.shape == words.shape == (3, 24)
    torch.testing.assert_close(F.normalize(image, dim=-1), output.image_embeds, rtol=0, atol=1e-5)
    torch.testing.assert_close(F.normalize(words, dim=-1), output.text_embeds, rtol=0, atol=1e-5)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_features_equal_open_clip(activation: str) -> None:
    model = pytest.importorskip("open_clip.model")
    theirs = model.CLIP(
        embed_dim=24,
        vision_cfg=model.CLIPVisionCfg(layers=3, width=64, head_width=16, patch_size=8, image_size=32),
        text_cfg=model.CLIPTextCfg(context_length=16, vocab_size=100, width=48, heads=3, layers=2),
        quick_gelu=activation == "quick_gelu",
    )
    randomised(theirs)
    ours = CLIP(dataclasses.replace(TINY, activation=activation)).eval()
    ours.load_state_dict(from_openai_keys(theirs.state_dict()))
    pixels, token_ids = batch()
    with torch.no_grad():
        torch.testing.assert_close(ours.visual(pixels), theirs.encode_image(pixels), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.text(token_ids), theirs.encode_text(token_ids), rtol=1e-5, atol=1e-5)


def test_the_two_activations_differ() -> None:
    pixels, _ = batch()
    features = []
    for activation in ("quick_gelu", "gelu"):
        clip = randomised(CLIP(dataclasses.replace(TINY, activation=activation)))
        features.append(clip.visual(pixels))
    assert (features[0] - features[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "parameters"), [("ViT-B/32", 151_277_313), ("ViT-B/16", 149_620_737), ("ViT-L/14", 427_616_513)]
)
def test_published_sizes_on_the_meta_device(name: str, parameters: int) -> None:
    with torch.device("meta"):
        clip = CLIP(ARCHITECTURES[name])
        image, words = clip.visual(torch.empty(2, 3, 224, 224)), clip.text(torch.zeros(3, 32, dtype=torch.int64))
    assert sum(parameter.numel() for parameter in clip.parameters()) == parameters
    assert image.shape == (2, clip.architecture.embed_dim)
    assert words.shape == (3, clip.architecture.embed_dim)


def test_forward_is_embed_blocks_pool() -> None:
    clip = randomised(CLIP(TINY))
    pixels, token_ids = batch()
    tokens = clip.visual.embed(pixels)
    assert tokens.shape == (3, 1 + clip.visual.grid**2, clip.visual.width) == (3, 17, 64)
    for block in clip.visual.blocks:
        tokens = block(tokens)
    # The tower skips the outputs of its last block that are never read.
    torch.testing.assert_close(clip.visual(pixels), clip.visual.pool(tokens), atol=1e-5, rtol=0)
    words = clip.text.embed(token_ids)
    for block in clip.text.blocks:
        words = block(words, causal=True)
    ends = words[torch.arange(3), torch.tensor([15, 6, 2])]
    torch.testing.assert_close(clip.text(token_ids), clip.text.pool(ends), atol=1e-5, rtol=0)


@pytest.mark.parametrize("with_context", [False, True])
def test_first_token_equals_the_whole_blocks(with_context: bool) -> None:
    block = randomised(CLIP(TINY)).visual.blocks[0]
    x, context = torch.randn(3, 5, 64), torch.randn(3, 4, 64) if with_context else None
    mask = torch.rand(3, 1, 1, 9 if with_context else 5) > 0.3
    mask[..., 0] = True
    context = None if context is None else block.context(context)
    whole = block(x, context, mask)
    torch.testing.assert_close(block.first_token(x, context, mask), whole[:, :1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_block_takes_tokens_already_normalised(frozen: bool) -> None:
    block = randomised(CLIP(TINY)).visual.blocks[0].requires_grad_(not frozen)
    x = 3 * torch.randn(3, 5, 64) + 1
    normal, context = torch.nn.functional.layer_norm(x, (64,)), block.context(torch.randn(3, 4, 64))
    torch.testing.assert_close(block(x, context, normal=normal), block(x, context), atol=1e-5, rtol=1e-5)
    first = block.first_token(x, context, normal=normal)
    torch.testing.assert_close(first, block.first_token(x, context), atol=1e-5, rtol=1e-5)
    with torch.no_grad():  # tensors derived from frozen weights are computed again when one of them changes
        block.ln_1.weight.mul_(2)
        block.ln_1.bias.add_(1)
    torch.testing.assert_close(block(x, context, normal=normal), block(x, context), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("contexts", [0, 1, 3])
def test_attending_from_one_token_equals_the_whole_block(contexts: int) -> None:
    """`contexts` 1: the same context for all rows, but each row's tokens see other parts of it."""
    block = randomised(CLIP(TINY)).text.blocks[0]
    x, places, context, seen, mask = torch.randn(3, 5, 48), torch.tensor([4, 0, 2]), None, None, None
    if contexts:
        context, seen = block.context(torch.randn(contexts, 4, 48)), torch.rand(3, 1, 5, 4) > 0.4
        mask = torch.cat([torch.ones(3, 1, 5, 5, dtype=torch.bool), seen], dim=-1)
    whole = block.attend(x, context, mask, causal=True)
    alone = block.attend_from(x, places, context, seen)
    assert alone.shape == (3, 1, 48)
    torch.testing.assert_close(alone.squeeze(1), whole[torch.arange(3), places], atol=1e-5, rtol=0)


def test_end_positions_are_where_the_largest_id_stands() -> None:
    _, token_ids = batch()
    assert CLIP(TINY).text.end_positions(token_ids).tolist() == [15, 6, 2]


def test_patches_run_row_by_row() -> None:
    clip = randomised(CLIP(TINY))
    pixels = torch.zeros(1, 3, 32, 32)
    changed = pixels.clone()
    changed[:, :, 8:16, 16:24] = 1  # second row, third column of a grid of 4
    moved = (clip.visual.embed(changed) - clip.visual.embed(pixels)).abs().sum(-1)[0]
    assert moved.nonzero().flatten().tolist() == [1 + 1 * 4 + 2]


def test_text_sees_nothing_after_end() -> None:
    clip = randomised(CLIP(TINY))
    _, token_ids = batch()
    changed = token_ids.clone()
    changed[1, 7:] = 5
    changed[2, 3:] = 7
    torch.testing.assert_close(clip.text(changed), clip.text(token_ids), rtol=0, atol=1e-5)
    changed[1, 3] += 1 if changed[1, 3] < 90 else -1
    assert (clip.text(changed)[1] - clip.text(token_ids)[1]).abs().max() > 1e-3


def test_a_text_may_be_shorter_than_the_context() -> None:
    clip = randomised(CLIP(TINY))
    _, token_ids = batch()
    torch.testing.assert_close(clip.text(token_ids[1:, :7]), clip.text(token_ids)[1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_context_equals_joined_tokens_whose_outputs_are_dropped(causal: bool) -> None:
    block = randomised(Block(32, 4, "quick_gelu"))
    x, context = torch.randn(2, 5, 32), torch.randn(2, 3, 32)
    allowed = torch.ones(8, 8, dtype=torch.bool)
    if causal:
        allowed[:5, :5] = torch.ones(5, 5, dtype=torch.bool).tril()
    joined = block(torch.cat([x, context], dim=1), mask=allowed)[:, :5]
    torch.testing.assert_close(block(x, block.context(context), causal=causal), joined, rtol=0, atol=1e-5)


def slow_attention(attention: Attention, x: Tensor, context: Tensor, bias: Tensor) -> Tensor:
    """Return softmax(q k / sqrt(d) + bias) v, head by head; bias [N, heads, L, L + S]."""
    width, heads = attention.width, attention.heads
    joined = torch.cat([x, context], dim=1)
    wq, wk, wv = attention.in_proj_weight.split(width)
    bq, bk, bv = attention.in_proj_bias.split(width)
    outputs = []
    for head in range(heads):
        part = slice(head * width // heads, (head + 1) * width // heads)
        q, k, v = x @ wq[part].T + bq[part], joined @ wk[part].T + bk[part], joined @ wv[part].T + bv[part]
        weights = (q @ k.transpose(1, 2) / (width // heads) ** 0.5 + bias[:, head]).softmax(-1)
        outputs.append(weights @ v)
    return torch.cat(outputs, dim=-1) @ attention.out_proj.weight.T + attention.out_proj.bias


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("context_tokens", [0, 3])
@pytest.mark.parametrize("kind", MASKS)
def test_masks_against_a_slow_attention(kind: str, context_tokens: int, causal: bool) -> None:
    torch.manual_seed(0)
    attention = randomised(Attention(24, 3))
    x, context = torch.randn(2, 5, 24), torch.randn(2, context_tokens, 24)
    keys = 5 + context_tokens
    bias = torch.zeros(2, 3, 5, keys)
    mask = None
    if kind == "bool":  # one text's last word is padding
        mask = torch.ones(2, 1, 1, keys, dtype=torch.bool)
        mask[0, ..., 4] = False
        bias = bias.masked_fill(~mask, float("-inf"))
    elif kind == "float":
        mask = torch.randn(1, 1, 1, keys)
        bias = bias + mask
    elif kind == "per_head":
        mask = torch.randn(2, 3, 5, keys)
        bias = bias + mask
    if causal:
        bias[..., :5] = bias[..., :5].masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), float("-inf"))
    expected = slow_attention(attention, x, context, bias)
    result = attention(x, attention.keys_values(context) if context_tokens else None, mask=mask, causal=causal)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_projections_by_parts_equal_the_whole() -> None:
    attention = randomised(Attention(24, 3))
    x = torch.randn(2, 5, 24)
    q, k, v = attention.project(x)
    assert q.shape == k.shape == v.shape == (2, 5, 24)
    for part, whole in zip((attention.query(x), *attention.keys_values(x)), (q, k, v), strict=True):
        torch.testing.assert_close(part, whole, rtol=0, atol=1e-5)


def test_a_block_is_its_two_halves_and_leaves_its_inputs_alone() -> None:
    block = randomised(Block(32, 4, "gelu"))
    x, context = torch.randn(2, 5, 32), torch.randn(2, 3, 32)
    x_before, context_before = x.clone(), context.clone()
    made = block.context(context)
    assert torch.equal(block(x, made), block.feed_forward(block.attend(x, made)))
    assert torch.equal(x, x_before)
    assert torch.equal(context, context_before)


def test_gradient_reaches_every_parameter_and_the_context() -> None:
    clip = CLIP(TINY)
    pixels, token_ids = batch()
    (clip.visual(pixels).square().sum() + clip.text(token_ids).square().sum() + clip.logit_scale).backward()
    assert [name for name, parameter in clip.named_parameters() if parameter.grad is None] == []
    context = torch.randn(3, 2, 64, requires_grad=True)
    block = clip.visual.blocks[0]
    block(clip.visual.embed(pixels), block.context(context)).sum().backward()
    assert context.grad is not None
    assert context.grad.abs().sum() > 0


def test_bfloat16_autocast_takes_a_float_mask() -> None:
    block = randomised(Block(32, 4, "quick_gelu"))
    x, mask = torch.randn(2, 5, 32), torch.randn(5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = block(x, mask=mask)
    torch.testing.assert_close(rough.float(), block(x, mask=mask), rtol=0.1, atol=0.1)


def test_fresh_weights_follow_the_published_draws() -> None:
    torch.manual_seed(0)
    clip = CLIP(dataclasses.replace(TINY, vision_width=256, text_width=128, text_heads=2, vocab_size=2000))
    block = clip.visual.blocks[1]
    expected = {
        clip.text.token_embedding.weight: 0.02,
        clip.text.positional_embedding: 0.01,
        clip.text.text_projection: 128**-0.5,
        clip.visual.proj: 256**-0.5,
        clip.visual.positional_embedding: 256**-0.5,
        block.attn.in_proj_weight: 256**-0.5,
        block.attn.out_proj.weight: 256**-0.5 * 6**-0.5,
        block.mlp.c_fc.weight: 512**-0.5,
        block.mlp.c_proj.weight: 256**-0.5 * 6**-0.5,
    }
    for parameter, deviation in expected.items():
        assert parameter.std().item() == pytest.approx(deviation, rel=0.05)
    assert clip.logit_scale.exp().item() == pytest.approx(1 / 0.07)


def test_depth_does_not_change_the_variance_of_a_fresh_stack() -> None:
    torch.manual_seed(0)
    spreads = []
    for layers in (2, 16):
        x = torch.randn(4, 10, 64)
        for block in make_blocks(64, layers, 1, "gelu"):
            x = block(x)
        spreads.append(x.std().item())
    assert spreads[1] == pytest.approx(spreads[0], rel=0.25)


def test_openai_names_and_back() -> None:
    state = CLIP(TINY).state_dict()
    openai = to_openai_keys(state)
    assert "visual.transformer.resblocks.2.attn.in_proj_weight" in openai
    assert "transformer.resblocks.1.mlp.c_fc.bias" in openai
    assert {"token_embedding.weight", "positional_embedding", "ln_final.weight", "text_projection"} <= openai.keys()
    assert list(from_openai_keys(openai)) == list(state)


def test_wrong_image_size_is_named() -> None:
    with pytest.raises(ValueError, match="takes images of 32x32 pixels, not 32x40"):
        CLIP(TINY).visual(torch.zeros(1, 3, 32, 40))


def test_too_long_a_text_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 16 tokens, not 17: lower --max_words"):
        CLIP(TINY).text(torch.zeros(1, 17, dtype=torch.int64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "relu"}, "must be one of quick_gelu, gelu, gelu_tanh, not 'relu'"),
        ({"patch_size": 33}, "image size 32 is less than its patch size 33"),
        ({"text_heads": 5}, "width 48 does not divide into 5 attention heads"),
    ],
)
def test_impossible_architectures_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)
