"""STDD scores clips with a bag and with a matrix of class texts as the original does."""

import pytest
import torch

from engine.precision import autocast_for
from engine.tasks.classification import ClassificationLoss, ClassificationStep
from modules.bag import make_bag
from modules.clip import CLIP, CLIPArchitecture
from modules.clip_weights import to_openai_keys
from modules.methods import STDD, build_method
from modules.released_weights import load_released_state_dict
from modules.similarity import unit

SMALL = CLIPArchitecture(
    embed_dim=32,
    image_size=64,
    patch_size=16,
    vision_width=64,
    vision_layers=2,
    vision_heads=1,  # OpenAI's width // 64
    context_length=8,
    vocab_size=49408,
    text_width=16,
    text_layers=1,
    text_heads=1,
)
FP32 = autocast_for("fp32", torch.device("cpu"))


@pytest.fixture(scope="module")
def original(reference):
    return torch.load(reference / "oracles" / "stdd.pt", weights_only=True)["clip_model"]


def built(state, temporal: str = "stcross_attend") -> STDD:
    """Return the method with the original's vision tower and temperature; no text is encoded here."""
    method = build_method("stdd", CLIP(SMALL), temporal=temporal)
    load_released_state_dict(method, to_openai_keys(method.clip.state_dict()) | state)
    return method


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("kind", ["bag3d", "flat2d"])
def test_scores_are_those_of_the_original(original, kind, mode):
    """Also with the frozen CLIP beside the method, whose scores the original returns in evaluation."""
    inputs = original["inputs"]
    video, frame_mask = inputs["clips"].transpose(1, 2), torch.ones(2, 8, dtype=torch.bool)
    bag = make_bag(inputs["text_bag"], torch.ones(inputs["text_bag"].shape[:2]))

    def scores(method: STDD) -> torch.Tensor:
        texts = bag if kind == "bag3d" else torch.zeros(5, 8, dtype=torch.int64)
        step = ClassificationStep(method, ClassificationLoss(), FP32, 5, texts)
        with torch.no_grad():
            classifier = bag if kind == "bag3d" else unit(inputs["text_flat"])
            return step.logits(classifier, method.encode_video(video, frame_mask))

    for with_raw in (False, True):
        case = original[f"{kind}/{mode}/keep_raw={with_raw}"]
        method = built(original["model_state"]).train(mode == "train")
        method.inject_masks(case["masks"])
        torch.testing.assert_close(scores(method), case["pred"], atol=1e-5, rtol=1e-6)
    assert ("raw_pred" in case) == (mode == "eval")
    if "raw_pred" in case:
        found = scores(built(original["raw_state"], "none").eval())
        torch.testing.assert_close(found, case["raw_pred"], atol=1e-5, rtol=1e-6)
