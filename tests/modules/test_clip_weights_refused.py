"""Weights with wrong keys or shapes, and files that are no weights, each get one clear sentence."""

import dataclasses
import json
import zipfile
from pathlib import Path

import pytest
import torch

from modules.clip import CLIP
from modules.clip_weights import (
    from_hugging_face_keys,
    from_openai_keys,
    infer_architecture,
    load_clip,
    read_state_dict,
    to_openai_keys,
)
from tests.modules.clip_files import TINY, exact_in_half, half_openai, save_archive, to_hugging_face


@pytest.fixture
def clip() -> CLIP:
    return exact_in_half()


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
