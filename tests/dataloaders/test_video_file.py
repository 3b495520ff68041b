"""Which files may be opened: those that hold a video themselves, but no playlist, script or cover picture."""

from base64 import b64encode
from pathlib import Path

import pytest

from dataloaders.decode import VideoError, read_frames
from dataloaders.frames import FrameReader
from preprocess.check_videos import check
from tests.ffmpeg_files import X264, ffmpeg, moving, write

KEY, KEY_ID = "00112233445566778899aabbccddeeff", "112233445566778899aabbccddeeff00"
TONE = ("-f", "lavfi", "-i", "sine=duration=1")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("base") / "base.mp4", moving(), *X264)


def refused(path: Path, reason: str) -> None:
    """Check that everything that reads a video refuses this one in one sentence."""
    for read in (lambda: read_frames(path, lambda n, fps: [0]), lambda: FrameReader(4, 32)(path)):
        with pytest.raises(VideoError, match=reason) as raised:
            read()
        message = str(raised.value)
        assert message.startswith(str(path))
        assert "download" in message
        assert message.endswith(".")
        assert "\n" not in message
    finding = check(path, max_frames=4)
    assert finding.status == "broken"
    assert finding.reason == message


PLAYLISTS = {
    "ffconcat": "ffconcat version 1.0\nfile '{}'\n",
    "hls": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{}\n#EXT-X-ENDLIST\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period/></MPD><!--{}-->',
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n#{}\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_called_mp4_is_not_followed(base, tmp_path, name):
    path = base.with_name(f"{name}.mp4")
    path.write_text(PLAYLISTS[name].format(base.name))
    refused(path, "is not a video")


def test_a_still_picture_is_no_video(base, tmp_path):
    ffmpeg("-i", base, "-frames:v", "1", tmp_path / "a.png")
    path = (tmp_path / "a.png").rename(tmp_path / "a.mp4")
    refused(path, "is not a video file .it is a playlist, a script or a still picture.")


@pytest.mark.parametrize("name", ["a.mp4", "a.m4a", "a.mp3", "a.flac", "a.ogg"])
def test_a_cover_picture_is_no_video(base, tmp_path, name):
    path = tmp_path / name
    if name == "a.ogg":
        add_cover_to_ogg(base, path)
    else:
        codec = {"a.mp3": ("-c:a", "libmp3lame"), "a.flac": ("-c:a", "flac")}.get(name, ("-c:a", "aac"))
        ffmpeg("-i", base, "-frames:v", "1", tmp_path / "cover.png")
        cover = ("-map", "0", "-map", "1", *codec, "-c:v", "copy", "-disposition:v:0", "attached_pic")
        ffmpeg(*TONE, "-i", tmp_path / "cover.png", *cover, path)
    refused(path, "holds sound and a cover picture, no video")


def add_cover_to_ogg(base: Path, path: Path) -> None:
    """Put a picture into a comment, in the layout of RFC 9639 (8.8)."""
    picture = ffmpeg("-i", base, "-frames:v", "1", "-c:v", "png", "-f", "image2pipe", "pipe:1")
    numbers = [64, 48, 24, 0, len(picture)]
    block = b"".join(n.to_bytes(4, "big") for n in (3, 9)) + b"image/png" + bytes(4)
    block += b"".join(n.to_bytes(4, "big") for n in numbers) + picture
    comment = "METADATA_BLOCK_PICTURE=" + b64encode(block).decode()
    ffmpeg(*TONE, "-c:a", "libvorbis", "-metadata:s:a:0", comment, path)


def test_a_video_with_a_cover_is_a_video(base, tmp_path):
    ffmpeg("-i", base, "-frames:v", "1", tmp_path / "cover.png")
    streams = ("-map", "1", "-map", "0", "-c", "copy", "-disposition:v:0", "attached_pic")
    ffmpeg("-i", base, "-i", tmp_path / "cover.png", *streams, tmp_path / "a.mp4")
    assert read_frames(tmp_path / "a.mp4", lambda n, fps: range(n)).n_frames == 20


@pytest.mark.parametrize("fragments", [(), ("-movflags", "frag_keyframe+empty_moov")], ids=["plain", "fragmented"])
def test_an_encrypted_file_says_so(base, tmp_path, fragments):
    scheme = ("-encryption_scheme", "cenc-aes-ctr", "-encryption_key", KEY, "-encryption_kid", KEY_ID)
    ffmpeg("-i", base, "-c", "copy", *fragments, *scheme, tmp_path / "a.mp4")
    refused(tmp_path / "a.mp4", "is encrypted: download a copy without")
