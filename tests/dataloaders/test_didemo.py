"""DiDeMo's files: descriptions of a video joined, ids that are file names, the first 31 seconds."""

import functools

import pytest

from dataloaders.didemo import read_split
from tests.dataloaders.folders import assert_one_sentence, summary, touch_videos, write_json, write_lines


@pytest.fixture
def read(tmp_path):
    write_lines(tmp_path / "train_list.txt", ["1@N02_1_ab.mov", "2@N00_2_cd.avi", "3@N00_3_ef.mp4"])
    moments = [
        {"video": "2@N00_2_cd.avi", "description": "second", "times": [[0, 0], [1, 2]]},
        {"video": "1@N02_1_ab.mov", "description": "a cat. ", "times": [[5, 5]]},
        {"video": "2@N00_2_cd.avi", "description": "first", "times": [[0, 0]]},
        {"video": "3@N00_3_ef", "description": "a dog", "times": [[0, 0]]},
        {"video": "4.mov", "description": "not listed", "times": [[0, 0]]},
    ]
    write_json(tmp_path / "train_data.json", moments)
    videos = touch_videos(tmp_path / "videos", "1@N02_1_ab.mov", "2@N00_2_cd.avi.mp4", "3@N00_3_ef.mp4")
    return functools.partial(read_split, data_path=tmp_path, features_path=videos)


def test_samples(read):
    samples = read("train")
    assert summary(samples) == [
        ("1@N02_1_ab.mov", "1@N02_1_ab.mov", ("a cat.",)),
        ("2@N00_2_cd.avi", "2@N00_2_cd.avi.mp4", ("second first",)),
        ("3@N00_3_ef", "3@N00_3_ef.mp4", ("a dog",)),
    ]
    assert all((sample.start, sample.end) == (0, 31) for sample in samples)


def test_a_video_with_another_extension(read, tmp_path):
    (tmp_path / "videos" / "1@N02_1_ab.mov").rename(tmp_path / "videos" / "1@N02_1_ab.mp4")
    assert read("train")[0].path.name == "1@N02_1_ab.mp4"


ENDINGS = (".", ".null", ".3g2", ".m2ts", ".qt", ".3gpp", ".asf", ".divx", ".mov", ".MOV", ".mpg", ".wmv", ".mp4")


@pytest.mark.parametrize("suffix", ["", ".mp4"])  # at the end of each line, as in STOP's and DGL's lists
@pytest.mark.parametrize("kind", ["as listed", "behind", "instead"])
def test_every_kind_of_name_in_every_kind_of_download(tmp_path, suffix, kind):
    stems = [f"{n}@N0{n}_4898{n}_8b2fb4{n:x}" for n in range(len(ENDINGS))]
    uploads = [stem + ending for stem, ending in zip(stems, ENDINGS, strict=True)]
    write_lines(tmp_path / "train_list.txt", [upload + suffix for upload in uploads])
    write_json(tmp_path / "train_data.json", [{"video": upload, "description": upload} for upload in uploads])
    files = {"as listed": uploads, "behind": [f"{upload}.mp4" for upload in uploads]}
    files["instead"] = [f"{stem}.mp4" for stem in stems]
    videos = touch_videos(tmp_path / "videos", *files[kind])
    found = read_split("train", data_path=tmp_path, features_path=videos)
    assert [sample.path for sample in found] == [videos / name for name in files[kind]]
    assert [sample.captions for sample in found] == [(upload,) for upload in uploads]
    assert [sample.video_id for sample in found] == [upload.removesuffix(".mp4") for upload in uploads]


def test_the_published_counts(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("dataloaders.annotations.log.propagate", True)
    caplog.set_level("INFO", "stop")
    names = [f"{n}.mov" for n in range(8392)]
    write_json(tmp_path / "train_data.json", [{"video": name, "description": name} for name in names])
    (tmp_path / "videos").mkdir()
    for count, noted in ((8392, False), (8391, True)):
        write_lines(tmp_path / "train_list.txt", names[:count])
        assert len(read_split("train", data_path=tmp_path, features_path=tmp_path / "videos")) == count
        assert ("8392" in caplog.text) == noted


@pytest.mark.parametrize(
    "content", [{"video": "a", "description": "b"}, [{"video": "a"}], [3], 3, [{"video": "a", "description": 3}]]
)
def test_json_of_another_kind(read, tmp_path, content):
    write_json(tmp_path / "train_data.json", content)
    assert_one_sentence(lambda: read("train"), ValueError, "--data_path", "train_data.json", "`description`")


def test_what_can_be_missing(read, tmp_path):
    (tmp_path / "videos" / "1@N02_1_ab.mov").unlink()
    assert not read("train")[0].path.exists()
    write_json(tmp_path / "train_data.json", [])
    assert_one_sentence(lambda: read("train"), ValueError, "no caption for 1@N02_1_ab.mov, the first of 3")
