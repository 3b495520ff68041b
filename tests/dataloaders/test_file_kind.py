"""The kind of files that a split has; an evaluation on another kind is noticed."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from dataloaders.file_kind import SAMPLE, FileKind, Quartiles, file_kind
from dataloaders.samples import Sample
from engine.checkpoint import read_header
from main_task_retrieval import main
from tests.small_data import write_small_data


def make(path: Path, width: int, height: int, fps: int | Fraction, codec: str = "libx264") -> Sample:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(3):
            picture = np.zeros((height, width, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return Sample(path.stem, path, ("a caption",))


def kind(sides: list[float], rates: list[float], codec: str = "h264") -> FileKind:
    def quartiles(values):
        return Quartiles(*np.quantile(values, (0.25, 0.5, 0.75)).tolist())

    return FileKind(len(sides), codec, quartiles(sides), quartiles(rates))


def test_what_the_headers_say(tmp_path):
    samples = [make(tmp_path / f"{number}.mp4", 64, 48, 3) for number in range(3)]
    samples += [make(tmp_path / "high.mp4", 36, 96, 30), make(tmp_path / "old.avi", 64, 48, 3, "mpeg4")]
    found = file_kind(samples)
    assert found == FileKind(5, "h264", Quartiles(48, 48, 48), Quartiles(3, 3, 3), found.seconds)
    assert found.seconds.median == pytest.approx(1, abs=0.01)  # three frames
    part = [replace(sample, start=0.25, end=0.5) for sample in samples]
    assert file_kind(part).seconds.median == 0.25
    assert str(found) == "h264, short side 48, 3 fps"
    assert FileKind.from_facts(json.loads(json.dumps(found.facts))) == found
    older = {name: fact for name, fact in found.facts.items() if name != "seconds"}
    assert FileKind.from_facts(older).seconds == (0, 0, 0)
    ntsc = file_kind([make(tmp_path / "ntsc.mp4", 64, 48, Fraction(30000, 1001))])
    assert str(ntsc) == "h264, short side 48, 30 fps"
    assert ntsc.fps.median == pytest.approx(29.97, abs=0.01)


def test_no_file_can_stop_it(tmp_path):
    good = make(tmp_path / "good.mp4", 64, 48, 3)
    for name, content in (("text.mp4", b"no video"), ("empty.mp4", b""), ("cut.mp4", good.path.read_bytes()[:100])):
        (tmp_path / name).write_bytes(content)
    bad = [Sample(name, tmp_path / name, ("x",)) for name in ("text.mp4", "empty.mp4", "cut.mp4", "missing.mp4", "")]
    assert file_kind(bad) is None
    assert file_kind([]) is None
    found = file_kind([*bad, good])
    assert found is not None
    assert found.files == 1
    for facts in ({}, {"files": 1}, {"files": 1, "codec": "h264", "short_side": [1], "fps": "x"}):
        assert FileKind.from_facts(facts) is None


def test_only_a_few_files_are_opened(monkeypatch):
    opened = []
    monkeypatch.setattr("dataloaders.file_kind.open_container", lambda path: opened.append(path))
    file_kind([Sample(str(number), Path(str(number)), ("x",)) for number in range(1000)])
    assert len(opened) == SAMPLE
    assert (opened[0], opened[-1]) == (Path("0"), Path("937"))  # evenly spread


@pytest.mark.parametrize(
    ("there", "here", "differ"),
    [
        (kind([224] * 16, [3] * 16), kind([240] * 16, [25] * 16), True),  # re-encoded against raw
        (kind([224] * 16, [3] * 16), kind([360] * 16, [3] * 16), True),
        (kind([224] * 16, [3] * 16), kind([224] * 16, [3] * 16, "vp9"), False),
        (kind([224] * 16, [29.97] * 16), kind([240] * 16, [30] * 16), False),
        # From the web: the medians differ by chance.
        (kind([240, 240, 360, 480, 720], [15, 24, 25, 30, 30]), kind([240, 360, 480, 480, 1080], [25] * 5), False),
        (kind([224] * 16, [0] * 16), kind([224] * 16, [25] * 16), False),  # a rate that the files do not state
    ],
)
def test_other_sizes_or_rates_are_another_kind(there, here, differ):
    assert there.differs_from(here) == here.differs_from(there) == differ


def test_an_evaluation_on_raw_files_after_training_on_small_ones_says_so(tmp_path):
    data = write_small_data(tmp_path / "data", n_train=4, n_test=2)
    flags = [*data.flags(), "--epochs", "1", "--batch_size", "4", "--output_dir", str(tmp_path / "run")]
    assert main(["--do_train", "--method", "vpt", *flags]) == 0
    checkpoint = tmp_path / "run" / "last.safetensors"
    assert read_header(checkpoint).trained_on == {
        "files": 4, "codec": "h264", "short_side": [48.0] * 3, "fps": [3.0] * 3, "seconds": pytest.approx([5 / 3] * 3),
    }  # fmt: skip
    assert "another kind" not in (tmp_path / "run" / "log.txt").read_text()

    for name in ("video4", "video5"):
        make(data.videos / f"{name}.mp4", 640, 360, 25)
    assert main(["--do_eval", "--init_model", str(checkpoint), "--output_dir", str(tmp_path / "eval")]) == 0
    told = "files of another kind (h264, short side 48, 3 fps) than the test files (h264, short side 360, 25 fps)"
    assert (tmp_path / "eval" / "log.txt").read_text().count(told) == 1
    line = json.loads((tmp_path / "eval" / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["trained_on"] == "h264, short side 48, 3 fps"
    assert line["test_files"] == "h264, short side 360, 25 fps"
