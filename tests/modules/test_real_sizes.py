"""One B model of each family at its real size, with random weights: loaded from a folder as open_clip publishes it, it
gives open_clip's features, logits and pixels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from modules.clip_weights import backbone_of, load_clip
from tests.modules.hub_folder import as_our_pixels, relative

open_clip = pytest.importorskip("open_clip")
matplotlib = pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

NAMES = ["ViT-B-32/laion2b_s34b_b79k", "PE-Core-B-16/meta", "ViT-B-16-SigLIP/webli", "ViT-B-32-SigLIP2-256/webli"]


def photograph() -> np.ndarray:
    """Return matplotlib's photograph of Grace Hopper, uint8 [600, 512, 3]."""
    path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    return np.asarray(Image.open(path).convert("RGB")).copy()


def drawn(name: str) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Return open_clip's model with random weights and biases, and its configurations of model and pixels."""
    model_name, tag = name.split("/")
    config = open_clip.get_model_config(model_name)
    kind = open_clip.model.CustomTextCLIP if config.get("custom_text") else open_clip.model.CLIP
    torch.manual_seed(0)
    model = kind(**{key: value for key, value in config.items() if key != "custom_text"}).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.05 * torch.randn_like(parameter))
            elif key == "logit_bias":
                parameter.fill_(-9.0)
    return model, config, open_clip.pretrained.get_pretrained_cfg(model_name, tag)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_real_sizes_equal_open_clip(name: str, tmp_path: Path) -> None:
    theirs, config, pixels = drawn(name)
    kept = {key: list(value) if isinstance(value, tuple) else value for key, value in pixels.items()}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": kept}))
    file = tmp_path / "open_clip_model.safetensors"
    save_file({key: value.contiguous() for key, value in theirs.state_dict().items()}, file)
    ours = load_clip(tmp_path)
    file.unlink()
    assert ours.backbone == backbone_of(f"open_clip:{name}")

    stated = {key: pixels[key] for key in ("mean", "std", "interpolation", "resize_mode")}
    cfg = open_clip.transform.PreprocessCfg(**stated, size=ours.architecture.image_size)
    transform = open_clip.transform.image_transform_v2(cfg, is_train=False)
    photo = photograph()
    views = [photo, photo[:, ::-1], photo[100:400], photo[:, 150:350]]
    own = torch.stack([as_our_pixels(np.ascontiguousarray(view), ours) for view in views])
    expected = torch.stack([transform(Image.fromarray(view)) for view in views])
    levels = (own - expected).abs() * 255 * torch.tensor(ours.backbone.preprocessing.std).view(3, 1, 1)
    # Pillow and torch round the weights of a resize differently, most where one side grows and the other shrinks.
    assert (levels < 2.01).float().mean() > 0.999
    assert levels.max() < 10.01

    length = ours.architecture.context_length
    token_ids = torch.randint(1, 1000, (3, length), generator=torch.Generator().manual_seed(1))
    token_ids[:, 9:] = 0
    token_ids[:, 9] = ours.architecture.vocab_size - 1
    with torch.no_grad():
        image, text = ours.visual(own), ours.text(token_ids)
        assert relative(image, theirs.encode_image(own)) < 1e-5
        assert relative(text, theirs.encode_text(token_ids)) < 1e-5
        logits = ours.logit_scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
        if ours.logit_bias is not None:
            logits = logits + ours.logit_bias
        assert relative(logits, theirs.get_logits(own, token_ids)[0]) < 1e-5
    assert (ours.logit_bias is None) == (theirs.logit_bias is None)
    assert relative(image[:1], image[1:2]) > 1e-4
    assert relative(text[:1], text[1:2]) > 1e-4
