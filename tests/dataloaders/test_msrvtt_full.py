"""MSR-VTT's own split, read from the json alone."""

import functools

import pytest

from dataloaders.msrvtt_full import read_split
from tests.dataloaders.folders import assert_one_sentence, summary, touch_videos, write_json

VIDEOS = [{"video_id": f"video{n}", "split": split} for n, split in enumerate(("train", "validate", "test", "test"))]
SENTENCES = [{"video_id": f"video{n % 4}", "caption": f"caption {n}"} for n in range(8)]


@pytest.fixture
def read(tmp_path):
    write_json(tmp_path / "MSRVTT_data.json", {"videos": VIDEOS, "sentences": SENTENCES})
    videos = touch_videos(tmp_path / "videos", *(f"video{n}.mp4" for n in range(4)))
    return functools.partial(read_split, data_path=tmp_path / "MSRVTT_data.json", features_path=videos)


def test_samples(read):
    assert summary(read("train")) == [("video0", "video0.mp4", ("caption 0", "caption 4"))]
    assert summary(read("val")) == [("video1", "video1.mp4", ("caption 1", "caption 5"))]
    assert summary(read("test")) == [
        ("video2", "video2.mp4", ("caption 2", "caption 6")),
        ("video3", "video3.mp4", ("caption 3", "caption 7")),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "a list `videos`"),
        ({"sentences": SENTENCES}, "a list `videos`"),
        ({"videos": [{"video_id": "video0"}], "sentences": SENTENCES}, "`split`"),
        ({"videos": [*VIDEOS, VIDEOS[0]], "sentences": SENTENCES}, "has video0 2 times in `videos`"),
        ({"videos": [{"video_id": "video9", "split": "Test"}]}, "split 'Test', not one of train, validate, test"),
        ({"videos": [*VIDEOS, "video9"], "sentences": SENTENCES}, "but 'video9'"),
        ({"videos": [], "sentences": SENTENCES}, "no video of the split 'test'"),
        ({"videos": VIDEOS}, "a list `sentences`"),
        ({"videos": VIDEOS, "sentences": SENTENCES[:3]}, "no caption for video3"),
    ],
)
def test_json_of_another_kind(read, tmp_path, content, message):
    write_json(tmp_path / "MSRVTT_data.json", content)
    assert_one_sentence(lambda: read("test"), ValueError, "--data_path", "MSRVTT_data.json", message)
