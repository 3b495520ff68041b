"""A name in a list leads to the right file, whatever its name on disk, or to one sentence that names both."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataloaders.listed_videos import VIDEO_EXTENSIONS, find_clips, find_listed_files, find_videos, walk_files
from tests.dataloaders.folders import assert_one_sentence, touch_videos

LIST = Path("lists/test_list.txt")
EXTENSIONS = ("", ".mp4", ".avi", ".mp4.mkv")


@pytest.mark.parametrize(
    ("video_id", "files", "expected"),
    [
        ("a", ["a.webm", "a.mp4", "a.avi"], "a.mp4"),
        ("a", ["A.mp4", "a.txt", "a.MKV"], "a.MKV"),
        ("a", ["y/b.mkv", "x/deep/a.mkv"], "x/deep/a.mkv"),
        ("a", ["a", "a.txt"], "a"),
        ("a", ["a", "a.avi"], "a.avi"),
        ("a_0.5-0.9", ["a_0.5-0.9.avi", "a_0.5-0.mp4"], "a_0.5-0.9.avi"),
        ("a.mov", ["a.mov", "a.mov.mp4", "a.mp4"], "a.mov"),
        ("a.mov", ["a.mov.mp4", "a.mp4"], "a.mov.mp4"),
        ("a.MOV", ["b.mov", "a.mp4"], "a.mp4"),
        ("a.MOV", ["a.mov", "a.MOV"], "a.MOV"),
        ("a.mov.mp4", ["a.mov"], "a.mov"),
        ("a.mov.mp4", ["a.mkv"], "a.mkv"),
        ("x/a.mpg", ["x/a.mp4", "y/a.mpg", "a.mpg"], "x/a.mp4"),
        ("x/a", ["y/a.mp4", "x/a.avi"], "x/a.avi"),
    ],
)
def test_the_file_of_an_id(tmp_path, video_id, files, expected):
    assert find_videos([video_id], touch_videos(tmp_path, *files)) == [tmp_path / expected]


@pytest.mark.parametrize("ending", [".", ".null", ".3g2", ".m2ts", ".qt", ".3gpp", ".asf", ".divx", ".ogv", ".MTS"])
@pytest.mark.parametrize("file", ["{name}", "{name}.mp4", "{stem}.mp4", "{stem}.mkv"])
def test_uploaded_names_are_found_in_every_form_that_files_take(tmp_path, ending, file):
    name, stem = f"12@N01_345_0a1b{ending}", "12@N01_345_0a1b"
    touch_videos(tmp_path, file.format(name=name, stem=stem), "12@N01_345_0a1c.mp4")
    assert find_videos([name], tmp_path) == [tmp_path / file.format(name=name, stem=stem)]


@pytest.mark.parametrize("video_id", ["a_0.5-0.9", "a.part1", "a.mp3"])
def test_an_unknown_extension_is_part_of_the_name(tmp_path, video_id):
    touch_videos(tmp_path, "a_0.5-0.mp4", "a.mp4")
    assert find_videos([video_id], tmp_path) == [tmp_path / f"{video_id}.mp4"]


def test_a_video_that_is_not_there_gets_the_path_where_it_should_be(tmp_path):
    expected = [tmp_path / "a.mp4", tmp_path / "b.mov", tmp_path / "sub" / "c.avi"]
    assert find_videos(["a", "b.mov", "sub/c.avi"], tmp_path) == expected
    assert find_listed_files(["a", "b.mov", "sub/c.avi"], tmp_path) == expected
    for find in (find_videos, find_listed_files):
        with pytest.raises(FileNotFoundError, match=r"none is not a directory"):
            find(["a"], tmp_path / "none")


@pytest.mark.parametrize(
    "files", [("x/a.mp4", "y/a.mp4"), ("a.mp4", "sub/a.mp4"), ("raw/a.mov", "small/a.mp4"), ("x/deep/a.avi", "x/a")]
)
def test_files_of_one_id_in_two_folders_are_an_error_that_names_both(tmp_path, files):
    touch_videos(tmp_path, *files, "x/b.mp4")
    if files[1] == "x/a":  # a file without any extension counts if there is no other
        assert find_videos(["a"], tmp_path) == [tmp_path / files[0]]
        return
    both = [str(tmp_path / file) for file in files]
    assert_one_sentence(
        lambda: find_videos(["b", "a.mov"], tmp_path, LIST), ValueError, *both, "video a.mov", str(LIST)
    )
    assert find_videos(["b"], tmp_path, LIST) == [tmp_path / "x/b.mp4"]  # the other was not asked for


def test_links_to_one_file_are_one_file(tmp_path):
    touch_videos(tmp_path, "x/a.mp4", "y/other.mp4")
    (tmp_path / "y/a.mp4").symlink_to("../x/a.mp4")
    assert find_videos(["a"], tmp_path) == [tmp_path / "x/a.mp4"]
    (tmp_path / "y/other.mp4").unlink()
    (tmp_path / "y/a.mp4").unlink()
    (tmp_path / "w").mkdir()
    (tmp_path / "w/a.mp4").symlink_to("../nowhere.mp4")
    assert find_videos(["a"], tmp_path) == [tmp_path / "x/a.mp4"]


def test_two_ids_that_lead_to_one_file_are_refused(tmp_path):
    touch_videos(tmp_path, "a.mp4", "b.avi", "b.mov", "sub/c.mp4")
    assert find_videos(["b.avi", "b.mov", "a", "a"], tmp_path)[:2] == [tmp_path / "b.avi", tmp_path / "b.mov"]
    for find in (find_videos, find_listed_files):
        read = lambda find=find: find(["a.avi", "a.mov"], tmp_path, LIST)  # noqa: E731
        assert_one_sentence(read, ValueError, "a.avi and a.mov", str(tmp_path / "a.mp4"), str(LIST))
    assert find_videos(["none.avi", "none.mov"], tmp_path) == [tmp_path / "none.avi", tmp_path / "none.mov"]


@pytest.mark.parametrize("find", [find_videos, find_listed_files])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../../x", "leads out of --features_path"),
        ("sub/../../secret.mp4", "leads out of --features_path"),
        ("/etc/passwd", "is an absolute path"),
        ("C:\\videos\\a.mp4", "has a backslash"),
        ("a\0.mp4", "cannot be the name of a file"),
        (".", "cannot be the name of a file"),
        ("a" * 300, "cannot be the name of a file"),
        ("a\ud800", "cannot be the name of a file"),
    ],
)
def test_names_never_leave_the_folder(tmp_path, find, name, reason):
    touch_videos(tmp_path, "secret.mp4", "x.mp4", "videos/a.mp4")
    read = lambda: find(["a", name], tmp_path / "videos", LIST)  # noqa: E731
    assert_one_sentence(read, ValueError, f"{LIST} names a video ", reason)
    with pytest.raises(ValueError, match=r"^.{,250}$"):
        read()


parts = st.sampled_from(["..", ".", "a", "sub", "", "\\", "secret.mp4", "a.mp4", "link"])


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(parts, min_size=1, max_size=6).map("/".join))
def test_whatever_a_list_says_the_path_lies_within_the_folder(tmp_path_factory, name):
    root = tmp_path_factory.getbasetemp() / "within"
    touch_videos(root, "secret.mp4", "videos/a.mp4", "videos/sub/a.mp4", "videos/sub/secret.mp4")
    videos = root / "videos"
    for find in (find_videos, find_listed_files):
        try:
            (path,) = find([name], videos)
        except ValueError:
            continue
        assert ".." not in path.parts
        assert path.resolve().is_relative_to(videos.resolve())


def test_a_place_in_a_list_means_only_that_place(tmp_path):
    touch_videos(tmp_path, "sub/a.mp4", "b.mpg", "b.mp4", "sub/c.mp4", "sub/c.mkv", "sub/d.avi.mp4")
    names = ["a.mp4", "b.mpg", "sub/c.mpg", "sub/d.avi", "sub/none.avi"]
    expected = [tmp_path / name for name in ("a.mp4", "b.mpg", "sub/c.mp4", "sub/d.avi.mp4", "sub/none.avi")]
    assert find_listed_files(names, tmp_path) == expected


def test_a_prefix_that_files_may_lack(tmp_path):
    touch_videos(tmp_path, "v_a.mkv", "b.mp4", "c.mp4", "v_c.avi")
    found = find_videos(["v_a", "v_b", "v_c", "v_d"], tmp_path, may_lack="v_")
    assert found == [tmp_path / name for name in ("v_a.mkv", "b.mp4", "v_c.avi", "v_d.mp4")]


def test_the_folder_is_looked_through_once(tmp_path, monkeypatch):
    ids = [f"video{n}" for n in range(50)]
    touch_videos(tmp_path, *(f"{name}.mp4" for name in ids))
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    assert len(find_videos(ids, tmp_path)) == 50
    assert len(listed) == 1


def test_linked_folders_are_followed_once(tmp_path):
    root = touch_videos(tmp_path / "videos", "b/one.mp4", "two.mp4", "b/deep/three.mp4", ".hidden/four.mp4")
    outside = touch_videos(tmp_path / "outside", "five.mp4", "more/six.mp4")
    (root / "a").symlink_to("b")  # a folder that is also there by itself
    (root / "z1").symlink_to(outside)
    (root / "z2").symlink_to(outside)
    (outside / "back").symlink_to(root)  # a cycle
    (root / "b" / "deep" / "up").symlink_to("..")
    (root / "z0").symlink_to(outside / "more")
    (root / "broken").symlink_to("nowhere")
    found = [str(path.relative_to(root)) for path in walk_files(root)]
    assert found == ["broken", "two.mp4", "b/one.mp4", "b/deep/three.mp4", "z0/six.mp4", "z1/five.mp4"]
    assert find_videos(["five", "three"], root) == [root / "z1/five.mp4", root / "b/deep/three.mp4"]


def test_the_order_of_files_does_not_depend_on_the_disk(tmp_path, monkeypatch):
    touch_videos(tmp_path, "b/1.mp4", "a/2.mp4", "c.mp4", "a/1.mp4", "d.mp4")
    expected = list(walk_files(tmp_path))
    scandir = os.scandir

    class Backwards:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self.entries = iter(sorted(entries, key=lambda entry: entry.name, reverse=True))

        def __next__(self) -> os.DirEntry:
            return next(self.entries)

        def __iter__(self):
            return self

        def __enter__(self):
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def close(self) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    assert list(walk_files(tmp_path)) == expected


def test_a_folder_that_cannot_be_read_is_reported(tmp_path, monkeypatch):
    touch_videos(tmp_path, "a/1.mp4", "b/2.mp4")
    scandir = os.scandir

    def locked(path):
        if os.path.basename(path) == "a":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    told: list[OSError] = []
    assert list(walk_files(tmp_path, told.append)) == [tmp_path / "b/2.mp4"]
    assert [error.filename for error in told] == [str(tmp_path / "a")]


def test_extensions_are_written_in_small_letters_and_once():
    assert len(set(VIDEO_EXTENSIONS)) == len(VIDEO_EXTENSIONS)
    assert all(extension == extension.lower() and extension.startswith(".") for extension in VIDEO_EXTENSIONS)


# ---- find_clips ----


def test_clips_where_the_list_says_or_elsewhere(tmp_path):
    touch_videos(
        tmp_path,
        "kick/a.mp4",
        "kick/b.avi",
        "deep/er/c.mp4",
        "val/d.mp4",
        "train/d.mp4",
        "[x];#(1)/-e.f.mp4",
        "g.mp4.mkv",
    )
    names = [
        "kick/a.mp4",
        "kick/b.mp4",
        "c.avi",
        "val/d.mp4",
        "[x];#(1)/-e.f.mp4",
        "h",
        "x/i.avi",
        "g.mp4",
        "train/d.avi",
    ]
    expected = ["kick/a.mp4", "kick/b.avi", "deep/er/c.mp4", "val/d.mp4", "[x];#(1)/-e.f.mp4", "h.mp4", "x/i.avi",
                "g.mp4.mkv", "train/d.mp4"]  # fmt: skip
    assert find_clips(names, tmp_path) == [tmp_path / name for name in expected]


def test_a_name_that_the_list_has_twice_is_not_looked_for_elsewhere(tmp_path):
    touch_videos(tmp_path, "other/a.mp4")
    assert find_clips(["x/a.mp4", "y/a.mp4"], tmp_path) == [tmp_path / "x/a.mp4", tmp_path / "y/a.mp4"]
    assert find_clips(["x/a.mp4"], tmp_path) == [tmp_path / "other/a.mp4"]


def test_clips_that_cannot_be_told_apart(tmp_path):
    touch_videos(tmp_path, "one/a.mp4", "other/a.mp4", "b.mp4", "c/img_00001.jpg")
    for names, said in [
        (["x/a.mp4"], "could both be"),
        (["b.mp4", "b.avi"], "is the one file for both"),
        (["../b.mp4"], "leads out"),
        (["/b.mp4"], "absolute path"),
        (["c"], "a folder of frames"),
        (["d\\b.mp4"], "backslash"),
    ]:
        assert_one_sentence(lambda: find_clips(names, tmp_path, Path("list.txt")), ValueError, "list.txt", said)  # noqa: B023
    assert_one_sentence(lambda: find_clips([], tmp_path / "b.mp4"), FileNotFoundError, "--features_path")


@given(st.lists(st.sampled_from(["a", "b", "-c", "d e", "f.g"]), max_size=5, unique=True), st.data())
def test_clips_in_their_place_are_those_of_find_listed_files(names, data):
    """Where every file lies in its folder, the fast way finds what the thorough one does."""
    with TemporaryDirectory() as folder:
        root, listed = Path(folder), []
        for name in names:
            place, own, other = (
                data.draw(st.sampled_from(choices)) for choices in (("", "x/", "x/y/"), EXTENSIONS, EXTENSIONS)
            )
            listed.append(f"{place}{name}{own}")
            if data.draw(st.booleans()):
                touch_videos(root, f"{place}{name}{other}")
        assert find_clips(listed, root) == find_listed_files(listed, root)
