"""A small CLIP, and its weights in the files of OpenAI and Hugging Face."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from modules.clip import CLIP, CLIPArchitecture
from modules.clip_weights import to_openai_keys

TINY = CLIPArchitecture(
    embed_dim=24,
    image_size=32,
    patch_size=8,
    vision_width=128,
    vision_layers=3,
    vision_heads=2,
    context_length=16,
    vocab_size=100,
    text_width=64,
    text_layers=2,
    text_heads=1,
)


def exact_in_half() -> CLIP:
    """Return a CLIP with random weights, biases and norms that a file in half precision holds exactly."""
    torch.manual_seed(0)
    fresh = CLIP(TINY)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
            parameter.copy_(parameter.half().float())
    return fresh.eval()


def assert_same(loaded: CLIP, original: CLIP) -> None:
    """Check for bit-equal weights, float32, trainable, in evaluation mode, same architecture."""
    assert loaded.architecture == original.architecture
    assert not any(module.training for module in loaded.modules())
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in loaded.parameters())
    expected = original.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def save_archive(state: dict[str, Tensor], path: Path) -> None:
    """Write a TorchScript archive with these parameter names and, like OpenAI's, three sizes as buffers."""
    root = nn.Module()
    for key, tensor in state.items():
        module = root
        *parents, leaf = key.split(".")
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = getattr(module, parent)
        module.register_parameter(leaf, nn.Parameter(tensor.clone()))
    for name, size in (("input_resolution", 32), ("context_length", 16), ("vocab_size", 100)):
        root.register_buffer(name, torch.tensor(size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.script(root), path)


def half_openai(clip: CLIP) -> dict[str, Tensor]:
    return {key: tensor.half() for key, tensor in to_openai_keys(clip.state_dict()).items()}


def to_hugging_face(clip: CLIP, activation: str = "quick_gelu", vision_heads: int = 2, text_heads: int = 1):
    """Return a Hugging Face model with the weights of `clip`, its tensors filled one by one by their meaning."""
    transformers = pytest.importorskip("transformers")
    a = clip.architecture
    theirs = transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config={
                "hidden_size": a.vision_width,
                "intermediate_size": 4 * a.vision_width,
                "num_hidden_layers": a.vision_layers,
                "num_attention_heads": vision_heads,
                "image_size": a.image_size,
                "patch_size": a.patch_size,
                "hidden_act": activation,
            },
            text_config={
                "hidden_size": a.text_width,
                "intermediate_size": 4 * a.text_width,
                "num_hidden_layers": a.text_layers,
                "num_attention_heads": text_heads,
                "vocab_size": a.vocab_size,
                "max_position_embeddings": a.context_length,
                "bos_token_id": 98,
                "eos_token_id": 99,
                "hidden_act": activation,
            },
            projection_dim=a.embed_dim,
        )
    )
    named = dict(theirs.named_parameters())
    source = {"logit_scale": clip.logit_scale}
    vision, text = "vision_model", "text_model"
    source[f"{vision}.embeddings.class_embedding"] = clip.visual.class_embedding
    source[f"{vision}.embeddings.patch_embedding.weight"] = clip.visual.conv1.weight
    source[f"{vision}.embeddings.position_embedding.weight"] = clip.visual.positional_embedding
    source[f"{text}.embeddings.token_embedding.weight"] = clip.text.token_embedding.weight
    source[f"{text}.embeddings.position_embedding.weight"] = clip.text.positional_embedding
    source["visual_projection.weight"] = clip.visual.proj.T
    source["text_projection.weight"] = clip.text.text_projection.T
    modules = {
        f"{vision}.pre_layrnorm": clip.visual.ln_pre,
        f"{vision}.post_layernorm": clip.visual.ln_post,
        f"{text}.final_layer_norm": clip.text.ln_final,
    }
    for tower, blocks in ((vision, clip.visual.blocks), (text, clip.text.blocks)):
        for number, block in enumerate(blocks):
            start = f"{tower}.encoder.layers.{number}"
            modules[f"{start}.layer_norm1"], modules[f"{start}.layer_norm2"] = block.ln_1, block.ln_2
            modules[f"{start}.mlp.fc1"], modules[f"{start}.mlp.fc2"] = block.mlp.c_fc, block.mlp.c_proj
            modules[f"{start}.self_attn.out_proj"] = block.attn.out_proj
            weights, biases = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
            for letter, weight, bias in zip("qkv", weights, biases, strict=True):
                source[f"{start}.self_attn.{letter}_proj.weight"] = weight
                source[f"{start}.self_attn.{letter}_proj.bias"] = bias
    for name, module in modules.items():
        source |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    assert named.keys() == source.keys()
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(source[name])
    return theirs.eval()
