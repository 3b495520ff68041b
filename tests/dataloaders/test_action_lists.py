"""Lists of labelled videos with any names, in all forms, against what was written; and the class of each line."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataloaders.action_lists import Entry, keys_by_folder, label_entries, read_list
from tests.dataloaders.folders import assert_one_sentence, result_or_message, write_lines

# No line begins or ends with a blank, which we take for layout.
letters = st.characters(
    codec="utf-8", exclude_characters="\n\r\0\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029/\\", exclude_categories=["Cs"]
)
names = st.text(letters, min_size=1, max_size=12).map(str.strip).filter(lambda name: name.strip(" ,.\t") != "")
paths = st.builds("{}/{}{}".format, names, names, st.sampled_from([".avi", ".mp4", ".webm"]))
numbers = st.integers(0, 600)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(paths, st.tuples(numbers, numbers), min_size=1, max_size=6),
    st.sampled_from([" ", "\t", "  ", ",", ", "]),
    st.sampled_from(["path label", "path", "folder frames label"]),
    st.sampled_from(["\n", "\r\n", " \n\n"]),
)
def test_any_list_is_read_as_it_was_written(tmp_path, content, separator, form, line_end):
    lines, expected = [], []
    for path, (label, frames) in content.items():
        stem = path.rpartition(".")[0] if form == "folder frames label" else path
        lines.append(
            separator.join(
                {"path label": (path, str(label)), "path": (path,)}.get(form, (stem, str(frames), str(label)))
            )
        )
        found = {"path label": (path, label, None), "path": (path, None, None)}.get(form, (stem, label, frames))
        expected.append(found)
    if len({path for path, *_ in expected}) < len(expected):
        return
    if form == "folder frames label" and any(path.endswith((" ", ",", "\t")) or "." in path for path, *_ in expected):
        return  # another separator, or a name that ends in a video's extension, and so a video
    list_path = tmp_path / "list.txt"
    list_path.write_bytes("".join(f"{line}{line_end}" for line in lines).encode())
    entries = read_list(list_path, "--train_csv")
    assert [(entry.path, entry.number, entry.n_frames) for entry in entries] == expected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60))
def test_any_text_is_a_list_or_one_sentence(tmp_path, text):
    path = tmp_path / "list.txt"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    entries, message = result_or_message(lambda: read_list(path, "--train_csv"))
    if message:
        assert message.startswith(f"--train_csv {path}")
        assert message.endswith(".")
        assert "\n" not in message
        assert len(message) < 600
    else:
        assert all(entry.path == entry.path.strip() != "" for entry in entries)


def test_lines_that_are_repeated_and_a_header(tmp_path, caplog):
    write_lines(tmp_path / "list.txt", ["path,label", "a b/c.avi,1", "d.avi,0", "a b/c.avi,1"])
    with caplog.at_level("INFO", logger="stop"):
        entries = read_list(tmp_path / "list.txt", "--train_csv")
    assert entries == (Entry("a b/c.avi", 1, None, 2), Entry("d.avi", 0, None, 3))
    assert "repeats 1 of its videos" in caplog.text


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["a.avi 1", "b.avi one"], "line 2, is not like the others"),
        (["a.avi 1", "b.avi -1"], "line 2"),
        (["a.avi 1", "b.avi 1.0"], "line 2"),
        (["a.avi 1", "b.avi 1234567890"], "line 2"),
        (["a.avi 1", "b.avi ²"], "line 2"),
        (["a.avi 1", "a.avi 2"], "line 2: a.avi has the label 2, in line 1 it has 1"),
        (["a.avi one"], "line 1"),
        (["a"], "line 1"),
        (["path,label"], "lists no video"),
        ([" "], "lists no video"),
    ],
)
def test_lists_that_are_none(tmp_path, lines, said):
    write_lines(tmp_path / "list.txt", lines)
    assert_one_sentence(
        lambda: read_list(tmp_path / "list.txt", "--val_csv"), ValueError, "--val_csv", "list.txt", said
    )


def test_what_is_no_text(tmp_path):
    (tmp_path / "video.mp4").write_bytes(b"\x00\x00\x00\x20ftypisom")
    assert_one_sentence(lambda: read_list(tmp_path / "video.mp4", "--val_csv"), ValueError, "NUL")
    assert_one_sentence(lambda: read_list(tmp_path, "--val_csv"), FileNotFoundError, "--val_csv")


# ---- the class of each line, against a loop ----

KEYS = ("kick", "kick_ball", "ApplyEyeMakeup", "petting animal (not cat)")


def entries(*lines: tuple[str, int | None]) -> list[Entry]:
    return [Entry(path, number, None, row) for row, (path, number) in enumerate(lines, 1)]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=6))
def test_folders_tell_and_numbers_must_agree(rows):
    """Compare with the definition: a list is right if each number is the place of its video's class."""
    listed = entries(*((f"{KEYS[told]}/v{row}.avi", number) for row, (told, number) in enumerate(rows)))
    found, message = result_or_message(
        lambda: label_entries(listed, KEYS, "the list", numbered=KEYS, numbered_by="--labels_csv l")
    )
    right = all(told == number for told, number in rows)
    one_to_one = len({told for told, _ in rows}) == len({number for _, number in rows}) == len(set(rows))
    assert (found is not None) == right
    if right:
        assert found == [KEYS[told] for told, _ in rows]
    else:
        assert ("calls class" in message) == one_to_one
    found, message = result_or_message(lambda: label_entries(listed, KEYS, "the list", numbered=KEYS))
    assert (found is not None) == one_to_one  # any numbers, if they are the list's own


@pytest.mark.parametrize("folder", ["ApplyEyeMakeup", "apply_eye_makeup", "Apply Eye Makeup", "applyeyemakeup"])
def test_folders_are_compared_without_case_and_punctuation(folder):
    assert label_entries(entries((f"x/{folder}/a.avi", None)), KEYS, "the list") == ["ApplyEyeMakeup"]


def test_a_class_that_the_labels_lack():
    listed = entries(("kick/a.avi", None), ("kick_ball/a.avi", None))
    assert_one_sentence(
        lambda: label_entries(listed, KEYS, "list.txt", numbered=KEYS[:1], numbered_by="--labels_csv l.csv"),
        ValueError, "list.txt has videos of kick_ball", "l.csv lacks",
    )  # fmt: skip


def test_classes_of_folders():
    assert keys_by_folder(entries(("b/1.avi", 0), ("a/2.avi", 1)), "list.txt") == ("b", "a")
    assert keys_by_folder(entries(("b/1.avi", 5), ("a/2.avi", 1)), "list.txt") == ("a", "b")
    assert_one_sentence(
        lambda: keys_by_folder(entries(("b/1.avi", 0), ("B/2.avi", 1)), "list.txt"), ValueError, "differ only in case"
    )
    assert_one_sentence(lambda: keys_by_folder(entries(("1.avi", 0)), "list.txt"), ValueError, "--labels_csv")
