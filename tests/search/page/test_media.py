# ruff: noqa: E402  (imports come after the skip)
"""Files are given away only if they are what was indexed; pictures of them are made, kept and removed."""

import os
import shutil
import time

import av
import cv2
import numpy as np
import pytest

from tests.search.page.browser import skip_without_page

skip_without_page()

from dataloaders.listed_videos import VIDEO_EXTENSIONS
from search.__main__ import main
from search.page.decoding import FASTEST, frames_from, write_preview, write_thumb
from search.page.kept import Kept
from search.page.media import MIME, UNKNOWN
from tests.search.page.conftest import browsing, make_site, picture
from tests.videos import write_video

WITHOUT_A_TYPE = {".dv", ".nut", ".rm", ".rmvb", ".wtv"}  # no browser knows one


def test_every_extension_has_a_type():
    assert set(VIDEO_EXTENSIONS) == MIME.keys() | WITHOUT_A_TYPE
    assert UNKNOWN not in MIME.values()


def assert_refused(browser, id_: str, status: int, *words: str) -> None:
    for kind in ("video", "thumb", "clip"):
        answer = browser.get(f"/{kind}/{id_}")
        assert answer.status_code == status, answer.text
        for word in words:
            assert word in answer.json()["error"]
        assert str(browser.page._folder.parent) not in answer.text


def test_files_that_are_no_longer_what_they_were(own_site):
    changed, gone, pipe = (own_site.videos / f"{number}.mp4" for number in range(3))
    with browsing(own_site) as browser:
        status = changed.stat()
        os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
        assert browser.get(f"/video/{own_site.ids['0.mp4']}").status_code == 200  # touched
        content = changed.read_bytes()
        changed.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # same size
        assert_refused(browser, own_site.ids["0.mp4"], 410, "0.mp4", "has changed", "refresh")
        gone.unlink()
        assert_refused(browser, own_site.ids["1.mp4"], 410, "1.mp4", "is gone", "refresh")
        pipe.unlink()
        os.mkfifo(pipe)
        assert_refused(browser, own_site.ids["2.mp4"], 410, "2.mp4", "has changed")
        shutil.rmtree(own_site.videos)
        assert_refused(browser, own_site.ids["1.mp4"], 410, "is gone")
        assert browser.post("/api/query", json={"text": "red"}).status_code == 200


def test_a_link_out_of_the_folder(own_site, tmp_path):
    secret = tmp_path / "secret.mp4"
    shutil.move(own_site.videos / "0.mp4", secret)  # the very file that was indexed, elsewhere
    (own_site.videos / "0.mp4").symlink_to(secret)
    with browsing(own_site) as browser:
        assert_refused(browser, own_site.ids["0.mp4"], 404, "0.mp4", "leads out")
        below = own_site.videos / "below"
        below.mkdir()
        shutil.move(own_site.videos / "1.mp4", below)
        (own_site.videos / "1.mp4").symlink_to(below / "1.mp4")  # inside: no harm
        assert browser.get(f"/video/{own_site.ids['1.mp4']}").status_code == 200


def test_links_of_a_folder_indexed_with_follow(small_data, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    frames = np.stack([picture(place) for place in range(6)])
    write_video(tmp_path / "elsewhere" / "a.mp4", frames, fps=3)
    (tmp_path / "videos").symlink_to(tmp_path / "elsewhere")  # the folder itself may be a link in any case
    site = make_site(tmp_path, small_data.clip)
    with browsing(site) as browser:
        assert browser.get(f"/video/{site.ids['a.mp4']}").status_code == 200
    os.unlink(tmp_path / "videos")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "b.mp4").symlink_to(tmp_path / "elsewhere" / "a.mp4")
    site = make_site(tmp_path, small_data.clip, "--follow", "--yes")
    with browsing(site) as browser:
        assert browser.get(f"/video/{site.ids['b.mp4']}").status_code == 200


def read_jpeg(content: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)


def test_thumbnails_show_the_middle_or_what_is_not_flat(browser, site):
    shown = {name: read_jpeg(browser.get(f"/thumb/{site.ids[name]}").content) for name in ("long.mp4", "dark.mp4")}
    for image in shown.values():
        assert image.shape == (240, 320, 3)
    # Windows of 2 s at 3 frames a second: the middle of the first is frame 3; the dark file's first is flat until 4.
    for name, number in (("long.mp4", 3), ("dark.mp4", 4)):
        expected = picture(number)[0, 0, ::-1].astype(int)
        assert np.abs(shown[name][120, 80].astype(int) - expected).max() < 12, name
    second = read_jpeg(browser.get(f"/thumb/{site.ids['long.mp4'][:-1]}4").content)  # from 4 to 6 s
    assert np.abs(second[120, 80].astype(int) - picture(15)[0, 0, ::-1]).max() < 12
    black = read_jpeg(browser.get(f"/thumb/{site.ids['black.mp4']}").content)
    assert black.max() < 20


def test_a_thumbnail_is_made_once(browser, site, monkeypatch):
    from search.page.children import Children

    answer = browser.get(f"/thumb/{site.ids['long.mp4']}")
    monkeypatch.setattr(Children, "run", lambda *_: pytest.fail("made again"))
    again = browser.get(f"/thumb/{site.ids['long.mp4']}")
    assert again.content == answer.content
    known = browser.get(f"/thumb/{site.ids['long.mp4']}", headers={"If-None-Match": answer.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")
    (path,) = (path for path in (site.index / "thumbs").rglob("*.jpg") if path.read_bytes() == answer.content)
    assert (path.name, path.parent.parent.name) == ("0-2000.jpg", path.parent.name[:2])


@pytest.mark.parametrize(("height", "width", "expected"), [(64, 36, (569, 320)), (160, 16, (640, 64))])
def test_upright_videos_have_upright_thumbnails(tmp_path, height, width, expected):
    frames = np.stack([picture(number, height, width) for number in range(4)])
    write_thumb(write_video(tmp_path / "a.mp4", frames, fps=3), 0, 1, tmp_path / "a.jpg")
    assert read_jpeg((tmp_path / "a.jpg").read_bytes()).shape[:2] == expected


def test_a_preview_is_h264_and_has_the_moment(browser, site, tmp_path):
    for name in ("o\udcffld.avi", "long.mp4"):
        content = browser.get(f"/clip/{site.ids[name]}").content
        (tmp_path / "clip.mp4").write_bytes(content)
        with av.open(str(tmp_path / "clip.mp4")) as container:
            (stream,) = container.streams
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
        assert [round(time, 2) for time, _ in frames] == [0, 0.33, 0.67, 1, 1.33, 1.67]
        for number, (_, pixels) in enumerate(frames):
            assert np.abs(pixels[24, 16].astype(int) - picture(number)[0, 0]).max() < 16
    part = browser.get(f"/clip/{site.ids['long.mp4']}", headers={"Range": "bytes=0-9"})
    assert (part.status_code, part.content) == (206, content[:10])


def test_a_preview_begins_within_a_file(tmp_path):
    frames = np.stack([picture(number) for number in range(30)])
    path = write_video(tmp_path / "a.mp4", frames, fps=3)
    write_preview(path, 5.0, 7.0, tmp_path / "clip.mp4")
    assert [time for time, _ in frames_from(tmp_path / "clip.mp4", 0)] == pytest.approx(np.arange(6) / 3, abs=0.01)
    first = next(frames_from(tmp_path / "clip.mp4", 0))[1]
    assert np.abs(first[24, 16, ::-1].astype(int) - picture(15)[0, 0]).max() < 16


def test_a_preview_of_a_fast_file_is_small(tmp_path):
    frames = np.stack([picture(number, 100, 1300) for number in range(60)])
    write_preview(write_video(tmp_path / "a.mp4", frames, fps=60), 0, 1, tmp_path / "clip.mp4")
    shown = list(frames_from(tmp_path / "clip.mp4", 0))
    assert FASTEST - 2 <= len(shown) <= FASTEST + 2
    assert shown[0][1].shape == (50, 640, 3)


def test_kept_files_go_by_when_they_were_asked_for(tmp_path):
    kept = Kept(tmp_path, most=250)
    made = []

    def get(name):
        def make(path):
            made.append(name)
            path.write_bytes(bytes(100))

        path = kept.get(f"{name}.mp4", make)
        time.sleep(0.02)
        return path

    get("a"), get("b"), get("a")
    modified = get("a").stat().st_mtime_ns
    get("c")
    assert made == ["a", "b", "c"]
    assert {path.name for path in tmp_path.glob("*.mp4")} == {"a.mp4", "c.mp4"}
    assert get("a").stat().st_mtime_ns == modified
    assert not list((tmp_path / "begun").iterdir())


def test_what_fails_leaves_nothing(tmp_path):
    def fail(path):
        path.write_bytes(b"half")
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            Kept(tmp_path).get("a.jpg", fail)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be_written(own_site, monkeypatch):
    from search.page import kept

    def refuse(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(kept.tempfile, "TemporaryFile", refuse)
    with browsing(own_site) as browser:
        assert browser.get(f"/thumb/{own_site.ids['0.mp4']}").status_code == 200
        assert browser.get(f"/clip/{own_site.ids['0.mp4']}").status_code == 200
    assert not (own_site.index / "thumbs").exists()
    assert not (own_site.index / "clips").exists()


def test_pictures_of_forgotten_files_go(own_site):
    def kept():
        return len(list(own_site.index.rglob("*.jpg"))), len(list((own_site.index / "clips").glob("*/*.mp4")))

    with browsing(own_site) as browser:
        for number in range(3):
            browser.get(f"/thumb/{own_site.ids[f'{number}.mp4']}")
            browser.get(f"/clip/{own_site.ids[f'{number}.mp4']}")
        assert kept() == (3, 3)
        assert main(["forget", str(own_site.videos / "0.mp4"), "--index", str(own_site.index)]) == 0
        assert kept() == (2, 2)
        assert browser.get(f"/thumb/{own_site.ids['0.mp4']}").status_code == 404
    (own_site.videos / "1.mp4").unlink()
    assert main(["refresh", "--index", str(own_site.index), "--jobs", "1"]) == 0
    assert kept() == (1, 1)
