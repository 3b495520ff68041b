"""CLIP weights from every kind of source end up in the same model; their names, hashes and activations."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modules import clip_weights
from modules.clip import CLIP
from modules.clip_weights import RELEASES, backbone_sha256, find_weights, load_clip, read_state_dict
from tests.modules.clip_files import TINY, assert_same, exact_in_half, half_openai, save_archive, to_hugging_face


@pytest.fixture
def clip() -> CLIP:
    return exact_in_half()


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
