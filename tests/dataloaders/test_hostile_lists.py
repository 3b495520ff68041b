"""Lists and annotations with any content: every reader returns samples of texts, or raises one short sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataloaders import DATASETS
from dataloaders.samples import Sample
from tests.dataloaders.folders import result_or_message

VALID: dict[str, dict[str, Any]] = {  # the JSON files of each data set, with one test video "v_a"
    "msrvtt": {"data.json": {"sentences": [{"video_id": "v_a", "caption": "a dog"}]}},
    "msrvtt_full": {
        "data.json": {
            "videos": [{"video_id": "v_a", "split": "test"}],
            "sentences": [{"video_id": "v_a", "caption": "a dog"}],
        }
    },
    "vatex": {"ref_captions.json": {"v_a": ["a dog", "it runs"]}},
    "didemo": {"test_data.json": [{"video": "v_a", "description": "a dog", "times": [[0, 1]]}]},
    "activitynet": {
        "val_ids.json": ["v_a"],
        "val_1.json": {"v_a": {"duration": 12.5, "timestamps": [[0, 1]], "sentences": ["a dog", "it runs"]}},
        "video_path.json": {"v_a": "a.mp4"},
    },
    "custom": {"list.jsonl": {"path": "a.mp4", "caption": "a dog", "start": 1, "end": 2.5, "split": "test"}},
}
FILES = [(name, file) for name, files in VALID.items() for file in files]

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("\ud800")
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
)


def places(value: Any) -> list[tuple]:
    """Yield the paths of keys to everything in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(), *((key, *rest) for key, inner in items for rest in places(inner))]


def replaced(value: Any, place: tuple, by: Any) -> Any:
    """Return a JSON value with something else at one place."""
    if not place:
        return by
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = replaced(value[place[0]], place[1:], by)
    return copy


class Folder:
    """The files of a data set, valid until one is rewritten."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        (folder / "videos").mkdir(exist_ok=True)
        (folder / "train.csv").write_text("video_id\nv_a\n")
        (folder / "test_list.txt").write_text("v_a\n")
        for file, content in VALID[name].items():
            (folder / file).write_text(json.dumps(content))

    def read(self) -> list[Sample]:
        single = {"msrvtt": "data.json", "msrvtt_full": "data.json"}.get(self.name, "")
        return DATASETS[self.name](
            "train" if self.name == "msrvtt" else "test",  # its test split needs no JSON
            data_path=self.folder / single,
            features_path=self.folder / "videos",
            train_csv=self.folder / "train.csv",
            val_csv=self.folder / "list.jsonl",
        )


def samples_or_one_sentence(read: Callable[[], list[Sample]], most: int = 600) -> list[Sample] | None:
    """Return what was read, checked to the last value; None after an error, whose message is checked."""
    samples, message = result_or_message(read)
    if message:
        assert message.isprintable()
        assert message.endswith(".")
        assert len(message) < most
        return None
    assert samples
    for sample in samples:
        assert sample.captions
        for text in (sample.video_id, *sample.captions):
            assert type(text) is str
            assert text.encode()
            assert "\0" not in text
        assert all(caption == caption.strip() != "" for caption in sample.captions)
        for seconds in (sample.start, sample.end):
            assert seconds is None or 0 <= seconds < float("inf")
        assert sample.end is None or (sample.start or 0) < sample.end
    return samples


@pytest.mark.parametrize("name", VALID)
def test_the_valid_files_are_valid(tmp_path, name):
    (sample,) = Folder(tmp_path, name).read()
    assert sample.captions[0].startswith("a dog")


@pytest.mark.parametrize(("name", "file"), FILES)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_at_any_place(tmp_path, name, file, data):
    folder, valid = Folder(tmp_path, name), VALID[name][file]
    place = data.draw(st.sampled_from(places(valid)))
    changed = replaced(valid, place, data.draw(values))
    (tmp_path / file).write_text(json.dumps(changed))
    samples_or_one_sentence(folder.read)


@pytest.mark.parametrize(("name", "file"), FILES)
@pytest.mark.parametrize("huge", ["x" * 10**6, ["y" * 50] * 10_000, {"z" * 10**6: [0] * 1000}])
def test_megabytes_at_any_place(tmp_path, name, file, huge):
    folder, valid = Folder(tmp_path, name), VALID[name][file]
    for place in places(valid):
        (tmp_path / file).write_text(json.dumps(replaced(valid, place, huge)))
        samples_or_one_sentence(folder.read)


@pytest.mark.parametrize(
    ("name", "file"),
    [*FILES, ("msrvtt", "train.csv"), ("vatex", "test_list.txt"), ("didemo", "test_list.txt"), ("custom", "list.csv")],
)
def test_a_json_of_one_line_as_any_file(tmp_path, name, file):
    folder = Folder(tmp_path, name)
    text = json.dumps({"sentences": [{"video_id": f"video{n}", "text": "a dog, " * 5} for n in range(20_000)]})
    assert len(text) > 1_000_000
    (tmp_path / file).write_text(text)
    if file == "list.csv":
        (tmp_path / file).rename(tmp_path / "list.jsonl")
    assert samples_or_one_sentence(folder.read) is None
