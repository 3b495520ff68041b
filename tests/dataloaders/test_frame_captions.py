"""Captions of single frames: read, missing, wrong, and in the items to train on."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloaders.frame_captions import FrameCaptions, captioned, read_frame_captions
from dataloaders.samples import Sample
from tests.dataloaders.folders import assert_one_sentence, write_json

SAMPLES = [
    Sample("a", Path("a.mp4"), ("a dog", "a cat")),
    Sample("b", Path("b.mp4"), ("a cat",)),
    Sample("c", Path("c.mp4"), ("a cow",)),
]
CAPTIONS = {
    "a_a dog": ["p", "q"],
    "a_a cat": ["r", "s"],
    "b_a cat": ["t", "u"],
    "c_a cow": ["v", "ü w"],
    "d_x": ["y", "z"],
}


def test_each_pair_has_its_own():
    kept, missing = captioned(SAMPLES, CAPTIONS, Path("f.json"), drop=False)
    assert (kept, missing) == (SAMPLES, [])
    found = FrameCaptions(kept, CAPTIONS)
    assert [found(0, 0), found(0, 1), found(1, 0), found(2, 0)] == [["p", "q"], ["r", "s"], ["t", "u"], ["v", "ü w"]]
    assert found.sha256() != FrameCaptions(kept[:2], CAPTIONS).sha256()


@settings(max_examples=20)
@given(st.lists(st.lists(st.text("aü \0\n"), min_size=2, max_size=2), min_size=1, max_size=4))
def test_any_text_comes_back(texts):
    samples = [Sample(str(i), Path("x"), ("t",)) for i in range(len(texts))]
    found = FrameCaptions(samples, {f"{i}_t": pair for i, pair in enumerate(texts)})
    assert [found(i, 0) for i in range(len(texts))] == [[t.replace("\0", " ") for t in pair] for pair in texts]


def test_pairs_without_are_named_or_dropped():
    few = {key: CAPTIONS[key] for key in ("a_a cat", "c_a cow")}
    with pytest.raises(ValueError, match=r"no entry for 2 of the 4 training pairs \(a_a dog, b_a cat\)"):
        captioned(SAMPLES, few, Path("f.json"), drop=False)
    kept, missing = captioned(SAMPLES, few, Path("f.json"), drop=True)
    assert [(sample.video_id, sample.captions) for sample in kept] == [("a", ("a cat",)), ("c", ("a cow",))]
    assert missing == ["a_a dog", "b_a cat"]
    with pytest.raises(ValueError, match="no entry for 4 of the 4"):
        captioned(SAMPLES, {}, Path("f.json"), drop=True)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ([], "is not a JSON object"),
        ({"a_x": "y"}, "the entry a_x is not a list of captions"),
        ({"a_x": ["y", 3]}, "the entry a_x is not a list of captions"),
        ({"a_x": ["y"]}, "the entry a_x has 1 captions for the 2 frames of a clip"),
    ],
)
def test_wrong_files_are_refused(content, part, tmp_path):
    write_json(tmp_path / "f.json", content)
    assert_one_sentence(lambda: read_frame_captions(tmp_path / "f.json", 2), ValueError, "f.json", part)


def test_no_such_file(tmp_path):
    assert_one_sentence(lambda: read_frame_captions(tmp_path / "f.json", 2), FileNotFoundError, "f.json")
