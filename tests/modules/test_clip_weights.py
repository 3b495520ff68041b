"""Weights from every kind of source end up in the same CLIP, and every bad source gets one clear sentence."""

import dataclasses
import hashlib
import json
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from modules import clip_weights
from modules.clip import CLIP, CLIPArchitecture
from modules.clip_weights import (
    RELEASES,
    backbone_sha256,
    find_weights,
    from_hugging_face_keys,
    from_openai_keys,
    infer_architecture,
    load_clip,
    read_state_dict,
    to_openai_keys,
)

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


@pytest.fixture
def clip() -> CLIP:
    torch.manual_seed(0)
    fresh = CLIP(TINY)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
            parameter.copy_(parameter.half().float())  # so that half-precision files hold exactly these weights
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


class TestSources:
    def test_openai_archive_in_half_precision(self, clip: CLIP, tmp_path: Path) -> None:
        save_archive(half_openai(clip), tmp_path / "mine.pt")
        assert read_state_dict(tmp_path / "mine.pt")["visual.proj"].dtype == torch.float16
        assert_same(load_clip(tmp_path / "mine.pt"), clip)

    @pytest.mark.parametrize("wrapped", [False, True])
    @pytest.mark.parametrize("own_names", [False, True])
    def test_torch_state_dict(self, clip: CLIP, tmp_path: Path, wrapped: bool, own_names: bool) -> None:
        state = clip.state_dict() if own_names else half_openai(clip)
        torch.save({"state_dict": state, "epoch": 3} if wrapped else state, tmp_path / "clip.pth")
        assert_same(load_clip(str(tmp_path / "clip.pth"), activation="quick_gelu"), clip)

    def test_older_torch_format(self, clip: CLIP, tmp_path: Path) -> None:
        torch.save(half_openai(clip), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
        assert_same(load_clip(tmp_path / "old.pt", activation="quick_gelu"), clip)

    def test_sizes_among_the_weights_are_left_out(self, clip: CLIP, tmp_path: Path) -> None:
        torch.save(half_openai(clip) | {"input_resolution": 32, "vocab_size": torch.tensor(100)}, tmp_path / "clip.pt")
        assert_same(load_clip(tmp_path / "clip.pt", activation="quick_gelu"), clip)

    @pytest.mark.parametrize("stated", ["quick_gelu", "gelu"])
    def test_safetensors_with_stated_activation(self, clip: CLIP, tmp_path: Path, stated: str) -> None:
        file = tmp_path / "clip.safetensors"
        save_file(half_openai(clip), file, metadata={"activation": stated})
        clip.architecture = dataclasses.replace(TINY, activation=stated)
        assert_same(load_clip(file), clip)

    @pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
    def test_hugging_face_folder(self, clip: CLIP, tmp_path: Path, activation: str) -> None:
        theirs = to_hugging_face(clip, activation, vision_heads=8, text_heads=4)
        theirs.save_pretrained(tmp_path)
        loaded = load_clip(tmp_path)
        clip.architecture = dataclasses.replace(TINY, activation=activation, vision_heads=8, text_heads=4)
        assert_same(loaded, clip)
        pixels, token_ids = torch.randn(2, 3, 32, 32), torch.tensor([[98, 5, 99], [98, 7, 99]])
        with torch.no_grad():
            output = theirs(input_ids=token_ids, pixel_values=pixels)
            image, words = loaded.visual(pixels), loaded.text(token_ids)
        image, words = image / image.norm(dim=-1, keepdim=True), words / words.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(image, output.image_embeds, rtol=0, atol=1e-5)
        torch.testing.assert_close(words, output.text_embeds, rtol=0, atol=1e-5)

    def test_hugging_face_file_uses_the_config_beside_it(self, clip: CLIP, tmp_path: Path) -> None:
        to_hugging_face(clip, "gelu").save_pretrained(tmp_path)
        assert load_clip(tmp_path / "model.safetensors").architecture.activation == "gelu"
        (tmp_path / "config.json").unlink()
        with pytest.raises(ValueError, match=r"put its config\.json beside it, or pass --clip_activation"):
            load_clip(tmp_path / "model.safetensors")
        assert_same(load_clip(tmp_path / "model.safetensors", activation="quick_gelu"), clip)

    @pytest.mark.parametrize("sharded", [False, True])
    def test_hugging_face_bin_and_shards(self, clip: CLIP, tmp_path: Path, sharded: bool) -> None:
        theirs = to_hugging_face(clip)
        state = theirs.state_dict()
        state["text_model.embeddings.position_ids"] = torch.arange(16)[None]
        state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
        theirs.config.save_pretrained(tmp_path)
        if sharded:
            shards = {name: f"part-{number % 2}.bin" for number, name in enumerate(state)}
            for shard in set(shards.values()):
                torch.save({name: state[name] for name in state if shards[name] == shard}, tmp_path / shard)
            (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": shards}))
        else:
            torch.save(state, tmp_path / "pytorch_model.bin")
        assert_same(load_clip(tmp_path), clip)

    def test_a_config_may_leave_out_its_defaults(self, clip: CLIP, tmp_path: Path) -> None:
        torch.save(to_hugging_face(clip).state_dict(), tmp_path / "pytorch_model.bin")
        (tmp_path / "config.json").write_text(json.dumps({"vision_config": {"num_attention_heads": 4}}))
        architecture = load_clip(tmp_path).architecture
        assert (architecture.vision_heads, architecture.text_heads) == (4, 8)
        assert architecture.activation == "quick_gelu"

    def test_loading_draws_no_random_numbers(self, clip: CLIP, tmp_path: Path) -> None:
        torch.save(half_openai(clip), tmp_path / "clip.pt")
        before = torch.get_rng_state()
        load_clip(tmp_path / "clip.pt", activation="quick_gelu")
        assert torch.equal(torch.get_rng_state(), before)


class TestNames:
    def test_a_name_is_found_under_openais_file_name(self, tmp_path: Path) -> None:
        for release in RELEASES.values():
            (tmp_path / release.file).touch()
        assert {name: find_weights(name, tmp_path).name for name in RELEASES} == {
            "ViT-B/32": "ViT-B-32.pt",
            "ViT-B/16": "ViT-B-16.pt",
            "ViT-L/14": "ViT-L-14.pt",
            "ViT-L/14@336px": "ViT-L-14-336px.pt",
        }

    @pytest.mark.parametrize("file", ["ViT-B-32.safetensors", "clip-vit-base-patch32"])
    def test_other_customary_names(self, tmp_path: Path, file: str) -> None:
        (tmp_path / file).touch()
        assert find_weights("ViT-B/32", str(tmp_path)) == tmp_path / file

    def test_a_file_name_in_the_folder(self, clip: CLIP, tmp_path: Path) -> None:
        save_file(half_openai(clip), tmp_path / "small.safetensors")
        assert_same(load_clip("small.safetensors", pretrained_dir=tmp_path, activation="quick_gelu"), clip)

    def test_the_error_names_the_candidates_and_where_to_get_them(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError) as caught:
            load_clip("ViT-B/32", tmp_path)
        for part in (str(tmp_path), "ViT-B-32.pt", "clip-vit-base-patch32", RELEASES["ViT-B/32"].url):
            assert part in str(caught.value)

    def test_a_name_without_a_folder(self) -> None:
        with pytest.raises(FileNotFoundError, match=r"no folder to find them in; get https://.*ViT-B-16\.pt"):
            load_clip("ViT-B/16")

    def test_neither_path_nor_name(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no CLIP weights at ViT-B-64 nor at .*one of ViT-B/32, ViT-B/16"):
            load_clip("ViT-B-64", tmp_path)
        with pytest.raises(FileNotFoundError, match=r"no CLIP weights at /absent/clip; give"):
            load_clip("/absent/clip", tmp_path)


class TestHash:
    def test_a_changed_openai_archive_is_refused_unless_told_otherwise(self, clip: CLIP, tmp_path: Path) -> None:
        file = tmp_path / "ViT-B-32.pt"
        save_archive(half_openai(clip), file)
        with pytest.raises(
            ValueError, match=r"not the file OpenAI published under this name \(sha256 .*published 40d36"
        ):
            load_clip("ViT-B/32", tmp_path)
        assert_same(load_clip("ViT-B/32", tmp_path, check_sha256=False), clip)

    def test_the_published_hash_is_accepted(self, clip: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "ViT-B-32.pt"
        save_archive(half_openai(clip), file)
        release = RELEASES["ViT-B/32"]._replace(sha256=hashlib.sha256(file.read_bytes()).hexdigest())
        monkeypatch.setitem(clip_weights.RELEASES, "ViT-B/32", release)
        assert_same(load_clip("ViT-B/32", tmp_path), clip)

    def test_a_users_state_dict_may_have_the_name(self, clip: CLIP, tmp_path: Path) -> None:
        torch.save(half_openai(clip), tmp_path / "ViT-B-32.pt")
        assert_same(load_clip("ViT-B/32", tmp_path, activation="quick_gelu"), clip)

    def test_backbone_hash_sees_weights_and_nothing_else(self, clip: CLIP, tmp_path: Path) -> None:
        torch.save(half_openai(clip), tmp_path / "one.pt")
        save_file(half_openai(clip), tmp_path / "two.safetensors")
        first, second = (load_clip(tmp_path / file, activation="gelu") for file in ("one.pt", "two.safetensors"))
        assert backbone_sha256(first) == backbone_sha256(second) == backbone_sha256(clip)
        with torch.no_grad():
            second.text.ln_final.bias[3] += 1e-6
        assert backbone_sha256(second) != backbone_sha256(first)


class TestActivation:
    def test_a_bare_file_takes_the_one_asked_for(self, clip: CLIP, tmp_path: Path) -> None:
        torch.save(half_openai(clip), tmp_path / "clip.pt")
        loaded = load_clip(tmp_path / "clip.pt", activation="gelu")
        assert loaded.architecture.activation == "gelu"
        pixels = torch.randn(1, 3, 32, 32)
        assert (loaded.visual(pixels) - clip.visual(pixels)).abs().max() > 1e-4

    def test_one_that_contradicts_the_file_is_refused(self, clip: CLIP, tmp_path: Path) -> None:
        file = tmp_path / "clip.safetensors"
        save_file(half_openai(clip), file, metadata={"activation": "gelu"})
        with pytest.raises(ValueError, match=r"states that its activation is gelu, and quick_gelu was asked for"):
            load_clip(file, activation="quick_gelu")
        assert load_clip(file, activation="gelu").architecture.activation == "gelu"

    def test_an_unknown_one_is_refused(self, clip: CLIP, tmp_path: Path) -> None:
        torch.save(half_openai(clip), tmp_path / "clip.pt")
        with pytest.raises(ValueError, match="must be one of quick_gelu, gelu, gelu_tanh, not 'swish'"):
            load_clip(tmp_path / "clip.pt", activation="swish")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"vision_config": {"hidden_act": "gelu"}}, r"activations gelu \(vision\) and quick_gelu \(text\)"),
            ({"vision_config": {"hidden_act": "relu"}, "text_config": {"hidden_act": "relu"}}, "activations relu"),
            ({"text_config": {"layer_norm_eps": 1e-6}}, "layer_norm_eps 1e-06"),
        ],
    )
    def test_an_unsupported_config_is_refused(self, clip: CLIP, tmp_path: Path, change: dict, message: str) -> None:
        torch.save(to_hugging_face(clip).state_dict(), tmp_path / "pytorch_model.bin")
        (tmp_path / "config.json").write_text(json.dumps(change))
        with pytest.raises(ValueError, match=message):
            load_clip(tmp_path)


class TestWrongKeys:
    def test_missing_and_surplus_keys_are_named_together(self, clip: CLIP, tmp_path: Path) -> None:
        state = half_openai(clip)
        del state["visual.ln_post.bias"], state["transformer.resblocks.0.mlp.c_fc.weight"]
        state["visual.extra"] = torch.zeros(1)
        torch.save(state, tmp_path / "clip.pt")
        with pytest.raises(ValueError, match=r"missing keys \(2\)") as caught:
            load_clip(tmp_path / "clip.pt")
        for part in (
            "visual.ln_post.bias",
            "transformer.resblocks.0.mlp.c_fc.weight",
            "surplus keys (1): visual.extra",
        ):
            assert part in str(caught.value)
        assert str(tmp_path / "clip.pt") in str(caught.value)

    def test_ten_are_named_and_the_rest_counted(self, clip: CLIP, tmp_path: Path) -> None:
        state = {key: value for key, value in half_openai(clip).items() if "visual.transformer.resblocks.1." not in key}
        torch.save(state, tmp_path / "clip.pt")
        with pytest.raises(
            ValueError, match=r"missing keys \(12\): (visual\.transformer\.resblocks\.1\.\S+ ){10}and 2 more"
        ):
            load_clip(tmp_path / "clip.pt")

    def test_missing_sizes_are_named_like_any_other(self, clip: CLIP) -> None:
        state = half_openai(clip)
        del state["text_projection"], state["visual.conv1.weight"], state["ln_final.bias"]
        with pytest.raises(
            ValueError, match=r"missing keys \(3\): visual\.conv1\.weight, text_projection, ln_final\.bias\."
        ):
            infer_architecture(state)

    @pytest.mark.parametrize(
        ("key", "shape", "message"),
        [
            ("visual.proj", (128, 23), r"visual\.proj \[128, 23\] instead of \[128, 24\]"),
            ("transformer.resblocks.1.ln_1.bias", (65,), r"ln_1\.bias \[65\] instead of \[64\]"),
            (
                "visual.conv1.weight",
                (128, 3, 8),
                r"visual\.conv1\.weight has shape \[128, 3, 8\] instead of \[D, 3, pa",
            ),
            ("visual.conv1.weight", (128, 1, 8, 8), r"\[128, 1, 8, 8\] instead of \[128, 3, 8, 8\]"),
            ("visual.positional_embedding", (16, 128), "for 15 patches, which make no square"),
            ("logit_scale", (1,), r"logit_scale \[1\] instead of \[\]"),
        ],
    )
    def test_wrong_shapes_are_named(
        self, clip: CLIP, tmp_path: Path, key: str, shape: tuple[int, ...], message: str
    ) -> None:
        torch.save(half_openai(clip) | {key: torch.zeros(shape)}, tmp_path / "clip.pt")
        with pytest.raises(ValueError, match=message):
            load_clip(tmp_path / "clip.pt")

    def test_hugging_face_attention_in_parts(self, clip: CLIP) -> None:
        state = to_hugging_face(clip).state_dict()
        start = "text_model.encoder.layers.1.self_attn."
        lacking = {key: value for key, value in state.items() if key != f"{start}q_proj.weight"}
        with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.q_proj\.weight is missing\.$"):
            from_hugging_face_keys(lacking)
        with pytest.raises(ValueError, match=r"v_proj\.bias have different shapes"):
            from_hugging_face_keys(state | {f"{start}v_proj.bias": torch.zeros(3)})

    def test_renaming_keeps_unknown_keys_and_the_input(self, clip: CLIP) -> None:
        state = {"ln_final.bias": torch.zeros(1), "else": torch.ones(1)}
        assert list(from_openai_keys(state)) == ["text.ln_final.bias", "else"]
        assert list(state) == ["ln_final.bias", "else"]

    def test_architecture_from_weights_alone(self, clip: CLIP) -> None:
        assert infer_architecture(to_openai_keys(clip.state_dict())) == TINY
        other = infer_architecture(to_openai_keys(clip.state_dict()), "gelu", vision_heads=4, text_heads=2)
        assert other == dataclasses.replace(TINY, activation="gelu", vision_heads=4, text_heads=2)


class TestWrongFiles:
    @pytest.mark.parametrize("name", ["notes.pt", "notes.safetensors", "notes.bin"])
    @pytest.mark.parametrize("content", [b"", b"these are my notes\n" * 50, b"\x80\x02garbage"])
    def test_something_else(self, tmp_path: Path, name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is not a weights file .* download it again"):
            load_clip(tmp_path / name)

    def test_another_zip(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "videos.zip", "w") as archive:
            archive.writestr("a.txt", "text")
        with pytest.raises(ValueError, match=r"videos\.zip is not a weights file"):
            load_clip(tmp_path / "videos.zip")

    def test_half_a_download(self, clip: CLIP, tmp_path: Path) -> None:
        save_archive(half_openai(clip), tmp_path / "whole.pt")
        content = (tmp_path / "whole.pt").read_bytes()
        (tmp_path / "ViT-B-32.pt").write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=r"ViT-B-32\.pt is not a weights file .* download it again"):
            load_clip("ViT-B/32", tmp_path)

    def test_a_pickle_that_would_run_code(self, tmp_path: Path) -> None:
        torch.save({"state_dict": {}, "settings": Path("x")}, tmp_path / "run.pt")
        with pytest.raises(ValueError, match=r"run\.pt is not a weights file"):
            load_clip(tmp_path / "run.pt")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([1, 2], "holds a list and not a state dict"),
            ({"epoch": 3, "lr": 0.1}, r"some entries are not named tensors \(2\): epoch, lr"),
            ({"encoder.weight": torch.zeros(2)}, r"none of its keys is one of CLIP's \(it has encoder\.weight\)"),
            ({}, r"none of its keys is one of CLIP's \(it has none\)"),
            ({"visual.layer1.0.conv1.weight": torch.zeros(2), "visual.conv1.weight": torch.zeros(2)}, "is a ResNet"),
        ],
    )
    def test_other_things_saved_by_torch(self, tmp_path: Path, content: object, message: str) -> None:
        torch.save(content, tmp_path / "thing.pt")
        with pytest.raises(ValueError, match=message) as caught:
            load_clip(tmp_path / "thing.pt")
        assert str(tmp_path / "thing.pt") in str(caught.value)

    def test_a_folder_without_weights(self, tmp_path: Path) -> None:
        with pytest.raises(
            FileNotFoundError, match=r"holds no weights: looked for model\.safetensors and pytorch_model"
        ):
            load_clip(tmp_path)

    def test_a_folder_that_lacks_a_shard(self, tmp_path: Path) -> None:
        index = {"weight_map": {"logit_scale": "part-1.bin"}}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        with pytest.raises(
            FileNotFoundError, match=r"lacks files its pytorch_model\.bin\.index\.json lists: part-1\.bin"
        ):
            load_clip(tmp_path)

    @pytest.mark.parametrize(("config", "message"), [("{", "is not JSON"), ("[]", "is not a JSON object")])
    def test_a_broken_config(self, clip: CLIP, tmp_path: Path, config: str, message: str) -> None:
        torch.save(to_hugging_face(clip).state_dict(), tmp_path / "pytorch_model.bin")
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(ValueError, match=rf"config\.json {message}"):
            load_clip(tmp_path)

    def test_read_state_dict_of_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no weights file .*absent\.pt"):
            read_state_dict(tmp_path / "absent.pt")
