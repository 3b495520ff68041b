"""TC-CLIP against numbers of the original, against plain loops, and its options."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from modules.clip import ARCHITECTURES, CLIP, CLIPArchitecture
from modules.methods import build_method
from modules.released_weights import load_released_state_dict
from modules.tc_clip.prompts import OF_TEMPLATE
from modules.text_prompts import seen_after_start
from modules.weight_names import to_openai_key
from tests.reference_numbers import largest_relative_difference, recipe_of
from tests.tiny import tiny_batch, tiny_clip

NEW = ("prompt_learner.", "text_encoder.prompt_generation_layer.")


class Original:
    """The method with the weights and inputs of a reference run."""

    def __init__(self, reference, name):
        folder = reference / "oracles"
        self.setting = setting = json.loads((folder / f"{name}.json").read_text())
        self.outputs, self.recipe = dict(np.load(folder / f"{name}.npz")), recipe_of(folder)
        size = setting["clip"]
        architecture = CLIPArchitecture(
            size["embed"], size["image"], size["patch"], size["width"], size["layers"], size["width"] // 64, 77, 49408,
            size["twidth"], size["tlayers"], size["twidth"] // 64,
        )  # fmt: skip
        self.method = build_method(
            "tc_clip", CLIP(architecture), context_tokens=setting["context_tokens"], tome_r=setting["tome_r"],
            seed_share=setting["seed_share"], prompt_heads=setting["prompt_heads"],
        )  # fmt: skip
        load_released_state_dict(self.method, {key: self.weight(key, shape) for key, shape in setting["shapes"].items()})
        words = self.method.clip.text.token_embedding
        with torch.no_grad():
            words.weight.copy_(self.weight("text_encoder.token_embedding.weight", words.weight.shape))
        video = self.recipe.video(
            setting["seed"], setting["video_name"], setting["batch"], setting["frames"], setting["size"]
        )
        self.video, self.token_ids = torch.from_numpy(video), torch.tensor(setting["class_token_ids"])
        self.token_ids[:, 1:5] = torch.tensor(OF_TEMPLATE)  # whatever stood there, it is replaced
        self.frame_mask = torch.ones(self.video.shape[:2], dtype=torch.bool)

    def weight(self, key, shape):
        """Return the weights that the recipe has for one of the original's names."""
        if key.startswith(NEW) or key.endswith("local_global_bias_table"):
            return torch.from_numpy(self.recipe.tensor(self.setting["seed"], key, shape))
        key = "clip." + key.replace("image_encoder.", "visual.").removeprefix("text_encoder.")
        for number, letter in enumerate("qkv"):
            for kind in ("weight", "bias"):
                if key.startswith("clip.visual.") and key.endswith(f".{letter}_proj.{kind}"):
                    joined = key.replace(f".{letter}_proj.{kind}", f".in_proj_{kind}")
                    whole = self.recipe.tensor(self.setting["seed"], joined, (3 * shape[0], *shape[1:]))
                    return torch.from_numpy(whole).chunk(3)[number]
        return torch.from_numpy(self.recipe.tensor(self.setting["seed"], key, shape))


@pytest.fixture(params=["tcclip_small", pytest.param("tcclip_b16", marks=pytest.mark.slow)])
def original(request, reference):
    return Original(reference, request.param)


def test_outputs_loss_and_gradients_are_the_originals(original):
    method, setting, outputs = original.method, original.setting, original.outputs
    frames, context = method.encode_frames(original.video, original.frame_mask)
    assert largest_relative_difference(frames, outputs["frame_output"]) < 1e-5
    assert largest_relative_difference(context.tokens, outputs["context_output"]) < 1e-5
    text, video = method(original.video, original.frame_mask, original.token_ids)
    logits = method.similarity(text, video).T
    assert largest_relative_difference(logits, outputs["logits"]) < 1e-5
    loss = cross_entropy(logits, torch.arange(len(logits)) % logits.shape[1])
    assert loss.item() == pytest.approx(setting["loss"], rel=1e-5)
    loss.backward()
    gradients = {}
    for name, own in method.trainable_parameters():
        key = method.released_name(name)
        parts = own.grad.chunk(3) if "{q,k,v}" in key else (own.grad,)
        gradients |= {key.replace("{q,k,v}", letter): part for letter, part in zip("qkv", parts, strict=False)}
    expected = {name: of for name, of in setting["gradients_norm_sum_first4"].items() if of is not None}
    assert expected.keys() == gradients.keys()
    largest = max(norm for norm, _, _ in expected.values())
    for name, (norm, _, first) in expected.items():
        if norm > 2e-6 * largest:
            assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-4), name
            assert gradients[name].flatten()[:4].tolist() == pytest.approx(first, rel=1e-3, abs=1e-4 * norm), name
