"""Models of an index: their key, what is refused, and how long their windows are."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from modules.methods import METHODS, build_method
from modules.methods.clip4clip import CLIP4Clip
from search.model import ModelMismatch, Source, check_method, load_encoder
from search.store import Store
from search.updating import enter_model
from tests.tiny import fitting_options, tiny_clip

SIZES = 4, 8  # frames, words
REFUSED = {"mug_stan", "stdd", "t_mass", "tc_clip", "stop_released"}  # more than one vector, or mixed with the batch


@pytest.mark.parametrize("name", METHODS)
def test_methods_that_can_be_indexed(name):
    method = build_method(name, tiny_clip(), **fitting_options(name, max_frames=4)).eval()
    if name not in REFUSED:
        check_method(method, *SIZES)
        return
    with pytest.raises(ValueError, match=rf"--checkpoint: the method {name} cannot be indexed, because"):
        check_method(method, *SIZES)


def test_an_embedding_that_depends_on_its_batch_is_refused_and_can_be_mended():
    method = build_method("stop_released", tiny_clip(), max_frames=4)
    with pytest.raises(ValueError, match="changes with the other clips of a batch: pass --inter_frame_norm clip"):
        check_method(method, *SIZES)
    check_method(build_method("stop_released", tiny_clip(), max_frames=4, inter_frame_norm="clip"), *SIZES)


class _Biased(CLIP4Clip):
    def similarity(self, text: Tensor, video: Tensor) -> Tensor:
        return super().similarity(text, video) + video[:, :1].T


class _Tokens(CLIP4Clip):
    def encode_text(self, token_ids: Tensor) -> Tensor:
        return super().encode_text(token_ids)[:, None]


@pytest.mark.parametrize(("kind", "part"), [(_Biased, "no scaled cosine"), (_Tokens, "more than one vector")])
def test_a_similarity_that_is_no_cosine_is_refused(kind, part, monkeypatch):
    monkeypatch.setitem(METHODS, "odd", kind)
    with pytest.raises(ValueError, match=part):
        check_method(kind(tiny_clip()), *SIZES)


def test_vectors_have_length_1_and_do_not_depend_on_the_batch(encoder):
    generator = torch.Generator().manual_seed(0)
    clips = [
        (torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8, generator=generator), torch.ones(3, dtype=torch.bool))
        for _ in range(4)
    ]
    vectors = encoder.encode_windows(clips)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.concatenate([encoder.encode_windows([clip]) for clip in clips]), vectors, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(encoder.encode_text(["a red half", "blue"]), axis=1), 1, rtol=1e-5)
    with pytest.raises(ValueError, match="has no words"):
        encoder.encode_text(["red", " "])


def test_windows_are_as_long_as_the_clips_of_training(encoder):
    assert encoder.window == pytest.approx(5 / 3)  # five frames, three a second
    assert encoder.stride == encoder.window / 2


def test_the_key_is_of_content_and_not_of_names(trained, small_data, encoder, tmp_path):
    copy, clip = tmp_path / "renamed.safetensors", tmp_path / "other_name.safetensors"
    copy.write_bytes(trained.checkpoint.read_bytes())
    clip.write_bytes(small_data.clip.read_bytes())
    again = load_encoder(Source(str(copy), pretrained_clip_name=str(clip)), probe=False)
    assert again.key == encoder.key
    assert again.source.checkpoint == str(copy)
    assert load_encoder(replace(again.source, window=2.0), probe=False).key != encoder.key


def test_another_model_of_the_same_name_is_refused_with_the_difference(encoder, trained, tmp_path):
    other = load_encoder(Source(str(trained.checkpoint), window=3.0, stride=1.0), probe=False)
    with Store(tmp_path, write=True) as store:
        model = enter_model(store, encoder)
        assert enter_model(store, encoder) == model
        with pytest.raises(ModelMismatch, match=re.escape("stride is 0.83")) as caught:
            enter_model(store, other)
        assert "window is 1.6" in str(caught.value)
        assert "method" not in str(caught.value)
        assert enter_model(store, other, "second").id != model.id
        with pytest.raises(ValueError, match="is in the index as second"):
            enter_model(store, other, "third")
        with pytest.raises(ModelMismatch):
            other.check_same(model)


@pytest.mark.parametrize(
    ("source", "part"),
    [
        (Source("nowhere.safetensors"), "nowhere.safetensors: no such checkpoint"),
        (Source(pretrained_clip_name="nowhere.pt"), "nowhere.pt"),
        (Source(window=-1.0), "--window and --stride"),
    ],
)
def test_mistakes_in_a_source(source, part):
    with pytest.raises((ValueError, OSError), match=part):
        load_encoder(source)


def test_mistakes_in_settings_of_the_method(trained, tmp_path):
    checkpoint = str(trained.checkpoint)
    with pytest.raises(ValueError, match=r"--colour is neither a flag of this command nor a setting of .* vpt"):
        load_encoder(Source(checkpoint, options={"colour": "red"}))
    with pytest.raises(ValueError, match="leaves gaps"):
        load_encoder(Source(checkpoint, window=2.0, stride=3.0), probe=False)
    (tmp_path / "old.pth").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"pass a \.safetensors file"):
        load_encoder(Source(str(tmp_path / "old.pth")))
