"""Which row of a file of text features is which class."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dataloaders.classes import Classes, subset
from engine.tasks.class_features import ClassFeatures, description
from modules.clip import CLIP
from tests.small_bags import some_features, write_bag
from tests.tiny import tiny_clip

CLASSES = Classes(("ApplyEyeMakeup", "Archery", "YoYo", "brush_hair"), ("eye make-up", "archery", "yo yo", "hair"))


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return tiny_clip()


def read(path: Path, clip: CLIP, mean: str = "padded", classes: Classes = CLASSES) -> ClassFeatures:
    return ClassFeatures.read(str(path), clip, classes, mean)


def refusal(*arguments) -> str:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 (its text is returned)
        read(*arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_rows_are_joined_by_name(clip, tmp_path):
    """Names may be those of the folders or those of the texts, in another order, case and spacing."""
    texts = write_bag(tmp_path / "bag.safetensors", clip, ("Brush Hair", "eye make-up", "archery", "yoyo"))
    features = read(tmp_path / "bag.safetensors", clip)
    assert features.row_of == {"brush_hair": 0, "ApplyEyeMakeup": 1, "Archery": 2, "YoYo": 3}
    some = subset(CLASSES, ("YoYo", "ApplyEyeMakeup"))
    bag = features.bag(some)
    expected = texts.features[[3, 1]]
    torch.testing.assert_close(bag.prompts, expected / expected.norm(dim=2, keepdim=True))
    assert bag.mask.tolist() == [[True, True, False], [True, True, False]]
    assert features.bag(CLASSES).mask.tolist()[3] == [True, True, True]  # the row of the file's first class
    assert (
        len({features.digest(some), features.digest(CLASSES), features.digest(subset(CLASSES, some.keys[::-1]))}) == 3
    )


def test_the_name_of_a_folder_goes_before_what_texts_call_another_class(clip, tmp_path):
    exchanged = replace(CLASSES, names=("archery", "apply eye makeup", "yoyo", "brush hair"))
    write_bag(tmp_path / "bag.safetensors", clip, CLASSES.keys)
    assert read(tmp_path / "bag.safetensors", clip, "padded", exchanged).row_of == {
        key: row for row, key in enumerate(CLASSES.keys)
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("Archery", "Bowling", "Diving", "YoYo"),
            "names Bowling, Diving, which are no class of this data set (ApplyE",
        ),
        (("Archery", "archery", "YoYo", "brush hair"), "has two rows of the class Archery, Archery and archery"),
        (("eye make-up", "YoYo", "ApplyEyeMakeup"), "has two rows of the class ApplyEyeMakeup, eye make-up and ApplyE"),
    ],
)
def test_names_that_do_not_fit(clip, tmp_path, names, message):
    write_bag(tmp_path / "bag.safetensors", clip, names)
    refused = refusal(tmp_path / "bag.safetensors", clip)
    assert message in refused
    assert f"--text_features {tmp_path / 'bag.safetensors'}" in refused


def test_a_file_of_some_classes_serves_these(clip, tmp_path):
    write_bag(tmp_path / "bag.safetensors", clip, ("YoYo", "Archery"))
    features = read(tmp_path / "bag.safetensors", clip)
    assert features.bag(subset(CLASSES, ("Archery", "YoYo"))).prompts.shape == (2, 3, 24)
    with pytest.raises(ValueError, match=r"has no prompts for 2 of these 4 classes \(ApplyEyeMakeup, brush_hair\)"):
        features.bag(CLASSES)


def test_rows_without_names_are_taken_by_position(clip, tmp_path, caplog):
    path, features = tmp_path / "bag.pt", some_features(4, 5)
    features[1, 3:] = features[1, :2]
    torch.save(features.half(), path)
    with caplog.at_level(logging.INFO):
        read_features = read(path, clip)
    assert "names neither its classes nor its CLIP" in caplog.text
    assert "row 0 is taken as ApplyEyeMakeup, row 3 as brush_hair" in caplog.text
    bag = read_features.bag(subset(CLASSES, ("Archery", "brush_hair")))
    torch.testing.assert_close(bag.prompts, torch.nn.functional.normalize(features.half()[[1, 3]].float(), dim=2))
    assert bag.mask.all()
    masked = read(path, clip, "masked").bag(CLASSES).mask
    assert masked[1].tolist() == [True, True, True, False, False]
    assert masked[[0, 2, 3]].all()
    assert "has 4 rows without names, and this data set has 3 classes" in refusal(
        path, clip, "padded", subset(CLASSES, CLASSES.keys[:3])
    )


def test_features_of_another_clip_are_refused(clip, tmp_path):
    write_bag(tmp_path / "bag.safetensors", tiny_clip(seed=1), CLASSES.keys)
    assert "was made with another text tower" in refusal(tmp_path / "bag.safetensors", clip)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt: no such file of text features"):
        read(tmp_path / "nowhere.pt", clip)
    with pytest.raises(ValueError, match="--classifier bag needs --text_features"):
        ClassFeatures.read("", clip, CLASSES, "padded")


def test_what_a_result_row_says(clip, tmp_path):
    write_bag(tmp_path / "bag.safetensors", clip, CLASSES.keys)
    assert description(str(tmp_path / "bag.safetensors"), "masked") == "bag bag.safetensors (xmix, masked mean)"
    assert description("mine/k400_tpl8_xmix.pt", "padded") == "bag k400_tpl8_xmix.pt (by position, padded mean)"
    assert description("nowhere.safetensors", "padded") == "bag nowhere.safetensors (unknown, padded mean)"
