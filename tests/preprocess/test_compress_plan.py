"""Which files re-encoding takes for videos, which it names and passes over, and what it refuses before writing."""

import os
from pathlib import Path

import pytest

from dataloaders.listed_videos import VIDEO_EXTENSIONS, find_listed_files, find_videos
from preprocess.compress_plan import name_passed_over, plan
from tests.dataloaders.folders import assert_one_sentence, touch_videos


def relative(paths: dict[Path, Path], source: Path, output: Path) -> dict[str, str]:
    return {str(path.relative_to(source)): str(made.relative_to(output)) for path, made in paths.items()}


def test_every_extension_that_a_list_finds_is_re_encoded_and_found_again(source, output):
    names = [f"sub/{number}{extension}" for number, extension in enumerate((*VIDEO_EXTENSIONS, ".MPG", ".", ".null"))]
    touch_videos(source, *names)
    planned = plan(source, output)
    assert relative(planned.outputs, source, output) == {name: f"{os.path.splitext(name)[0]}.mp4" for name in names}
    assert planned.passed_over == []
    made = {path: planned.outputs[path] for path in find_listed_files(names, source)}
    touch_videos(output, *(str(path.relative_to(output)) for path in made.values()))
    assert find_listed_files(names, output) == list(made.values())
    assert find_videos([Path(name).name for name in names], output) == list(made.values())


def test_other_files_are_passed_over_and_named(source, output, capsys):
    touch_videos(source, "a.mp4", "notes.txt", "sub/a.mp4", "sub/b.mp3", "none", "._a.mp4", ".hidden/c.mp4")
    planned = plan(source, output)
    assert relative(planned.outputs, source, output) == {"a.mp4": "a.mp4", "sub/a.mp4": "sub/a.mp4"}
    assert planned.passed_over == [source / name for name in ("none", "notes.txt", "sub/b.mp3")]
    name_passed_over(planned.passed_over)
    assert capsys.readouterr().err.splitlines() == [
        "3 files were passed over, since they have no video's extension:",
        *(f"passed over: {path}" for path in planned.passed_over),
    ]
    name_passed_over([])
    assert capsys.readouterr().err == ""


def test_if_there_are_many_files_the_first_are_named_and_all_counted(capsys):
    files = [Path(f"{number:02}.{'jpg' if number < 23 else 'json'}") for number in range(25)]
    name_passed_over([*files, Path("README")])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("26 files were passed over")
    assert lines[1:-1] == [f"passed over: {path}" for path in files[:20]]
    assert lines[-1] == "... and 6 more, by extension: 3 .jpg, 2 .json, 1 none"


def test_linked_folders_are_re_encoded_once(source, output, tmp_path):
    touch_videos(source, "b/one.mp4")
    outside = touch_videos(tmp_path / "outside", "two.avi")
    (source / "a").symlink_to("b")
    (source / "b" / "up").symlink_to("..")
    (source / "link").symlink_to(outside)
    (source / "loop.mp4").symlink_to("loop.mp4")
    found = relative(plan(source, output).outputs, source, output)
    assert found == {"b/one.mp4": "b/one.mp4", "link/two.avi": "link/two.mp4", "loop.mp4": "loop.mp4"}


def test_what_lies_in_the_output_by_a_link_is_refused(source, output):
    touch_videos(source, "a.mp4")
    touch_videos(output, "sub/b.mp4")
    (source / "link").symlink_to(output / "sub")
    assert_one_sentence(lambda: plan(source, output), ValueError, str(source / "link" / "b.mp4"), "--output_root")


@pytest.mark.parametrize("names", [("a.avi", "a.mpg"), ("x/a.", "x/a.mov"), ("a.mp4", "a.MP4")])
def test_two_that_would_become_one_are_refused(source, output, names):
    touch_videos(source, *names)
    both = [str(source / name) for name in names]
    assert_one_sentence(lambda: plan(source, output), ValueError, *both, "would both become", "keep one of them")
    assert not output.exists()


def test_a_folder_without_a_video_says_what_it_holds(source, output):
    assert_one_sentence(lambda: plan(source, output), ValueError, "holds no video (.mp4 ")
    touch_videos(source, "b.xyz", "a.xyz")
    assert_one_sentence(lambda: plan(source, output), ValueError, "of 2 files (the first is a.xyz)")


def test_a_folder_that_cannot_be_read_is_named(source, output, monkeypatch):
    touch_videos(source, "a.mp4", "locked/b.mp4")
    scandir = os.scandir

    def locked(path):
        if os.path.basename(path) == "locked":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    reason = f"{source / 'locked'} cannot be read (Permission denied): correct its permissions."
    assert plan(source, output).unreadable == {source / "locked": reason}
