"""Files of action recognition with any content: every reader returns labelled samples, or raises one short sentence."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataloaders import ACTION_READERS
from dataloaders.protocols import chosen_classes
from dataloaders.samples import Sample
from tests.dataloaders.folders import result_or_message

SSV2 = '{"Opening something": "0", "Closing something": "1"}'
VALID: dict[str, dict[str, str]] = {  # the files of each data set
    "ucf101": {
        "classInd.txt": "1 YoYo\r\n2 Archery\r\n", "testlist01.txt": "YoYo/v_YoYo_g01_c01.avi\r\n",
        "flip_map.csv": "class,mirrored\nYoYo,Archery\n", "base_classes.txt": "YoYo\n",
    },
    "hmdb51": {"kick_test_split1.txt": "a_kick_f_cm_np1_ba_bad_5.avi 2 \n", "sword_test_split1.txt": "b.avi 1 \n"},
    "ssv2": {"labels.json": SSV2, "validation.json": '[{"id": "7", "template": "Closing [something]"}]'},
    "kinetics400": {"val.csv": "label,youtube_id,time_start,time_end\narchery,-a,0,10\n"},
    "custom": {"list.csv": "path,label,start,end\na.mp4,kick,1,2\n"},
    "kinetics600": {"list.csv": "kick/a.mp4 0\nhop/b.mp4 1\n", "labels.csv": "id,name\n0,kick\n1,hop\n"},
}  # fmt: skip
FILES = [(name, file) for name, files in VALID.items() for file in files]
PIECES = ("kick", "YoYo", "/", ".avi", " ", ",", "\n", "\t", '"', "0", "1", "2", "-1", "{", "}", "[", "]", ":", "id")
ODD = ("label", "..", "\\", "\0", "é", "²", "\ud800", "v_YoYo_g01_c01")
pieces = st.sampled_from([*PIECES, *ODD])


@st.composite
def damaged(draw: Callable, text: str) -> bytes:
    """Draw a text, or a valid one with something cut out and something put in."""
    noise = "".join(draw(st.lists(pieces, max_size=6)))
    if draw(st.booleans()):
        return noise.encode("utf-8", "surrogatepass")
    start, end = sorted(draw(st.tuples(*2 * [st.integers(0, len(text))])))
    return (text[:start] + noise + text[end:]).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize(("name", "file"), FILES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(data=st.data())
def test_any_content_is_read_or_refused(tmp_path, name, file, data):
    for other, content in VALID[name].items():
        (tmp_path / other).write_text(content, newline="")
    (tmp_path / file).write_bytes(data.draw(damaged(VALID[name][file])))
    (tmp_path / "videos").mkdir(exist_ok=True)
    with_list = {"val_csv": tmp_path / "list.csv"} if "list.csv" in VALID[name] else {"data_path": tmp_path}
    flags = {"features_path": tmp_path / "videos", **with_list}
    if "labels.csv" in VALID[name]:
        flags["labels_csv"] = tmp_path / "labels.csv"
    reader = ACTION_READERS[name]
    classes = result_or_one_sentence(lambda: reader.read_classes(**flags), tmp_path)
    samples: list[Sample] | None = result_or_one_sentence(lambda: reader.read_split("test", **flags), tmp_path)
    if classes is not None:
        assert len(set(classes.keys)) == len(classes.keys) == len(classes.names) > 0
        assert chosen_classes(classes, "all") is classes
        for key, other in [*classes.mirrored.items(), *classes.reversed.items()]:
            assert {key, other} <= {*classes.keys}
    if samples is not None:
        assert samples
        assert all(sample.label for sample in samples)
        if classes is not None:
            assert {sample.label for sample in samples} <= {*classes.keys}
        assert all(tmp_path / "videos" in sample.path.parents for sample in samples)


def result_or_one_sentence(read: Callable, folder: Path):
    """Return what was read; None after an error, whose message is checked."""
    try:
        found, message = result_or_message(read)
    except FileNotFoundError as error:
        found, message = None, str(error)
    if message:
        assert message.endswith(".")
        assert message.isprintable(), ascii(message)
        assert len(message) - 6 * len(str(folder)) < 700
    return found
