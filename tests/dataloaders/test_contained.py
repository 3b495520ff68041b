"""No reader of any data set lets a list lead out of --features_path."""

import json
import pickle
from pathlib import Path

import pytest

from dataloaders import DATASETS
from tests.dataloaders.folders import assert_one_sentence, touch_videos, write_json, write_lines

FILES = {
    "msrvtt": "list.csv",
    "msrvtt_full": "data.json",
    "msvd": "test_list.txt",
    "vatex": "test_list.txt",
    "didemo": "test_list.txt",
    "activitynet": "val_ids.json",
    "activitynet with a map": "video_path.json",
    "lsmdc": "LSMDC16_challenge_1000_publictect.csv",
    "custom": "list.jsonl",
}


def write_lists(folder: Path, name: str) -> None:
    """Write the files of every data set, each listing this one name."""
    write_lines(folder / "list.csv", ["video_id,sentence", f"{name},a caption"])
    write_lines(folder / "list.jsonl", [json.dumps({"path": name, "caption": "a caption"})])
    write_lines(folder / "test_list.txt", [name])
    write_json(folder / "test_data.json", [{"video": name, "description": "a caption"}])
    (folder / "raw-captions.pkl").write_bytes(pickle.dumps({name: [["a", "caption"]]}))
    write_json(folder / "ref_captions.json", {name: ["a caption"]})
    write_json(folder / "val_ids.json", [name])
    write_json(folder / "val_1.json", {name: {"duration": 3, "sentences": ["a caption"]}})
    write_lines(folder / FILES["lsmdc"], ["\t".join([name, *"1234", "a caption"])])
    sentence = {"video_id": name, "caption": "a caption"}
    write_json(folder / "data.json", {"videos": [{"video_id": name, "split": "test"}], "sentences": [sentence]})


@pytest.mark.parametrize("name", ["../secret", "../secret.mp4", "{root}/secret.mp4", "in/../../secret"])
@pytest.mark.parametrize("data_set", FILES)
def test_a_list_that_leads_out_of_the_folder_is_refused(tmp_path, data_set, name):
    touch_videos(tmp_path, "secret.mp4", "videos/in/a.mp4")
    name = name.format(root=tmp_path)
    write_lists(tmp_path, name)
    if data_set == "activitynet with a map":
        write_json(tmp_path / "video_path.json", {name: name})
    read_split = DATASETS[data_set.partition(" ")[0]]
    json_path = tmp_path / "data.json" if data_set == "msrvtt_full" else tmp_path
    lists = dict.fromkeys(("train_csv", "val_csv"), tmp_path / FILES[data_set])

    def read() -> list:
        return read_split("test", data_path=json_path, features_path=tmp_path / "videos", **lists)

    assert_one_sentence(read, ValueError, str(tmp_path / FILES[data_set]), "names a video", "--features_path")


def test_every_data_set_is_tried():
    assert {name.partition(" ")[0] for name in FILES} == set(DATASETS)
