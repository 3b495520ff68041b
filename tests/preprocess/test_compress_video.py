"""Re-encoding: sizes, rates and lengths; failures are named; a killed run, run again, gives the same files."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from dataloaders.decode import VideoError, read_frames
from preprocess import compress_video
from preprocess.compress_video import Compressor, Encoding, find_ffmpeg, main, plan
from preprocess.shards import parse_shard
from tests.processes import heed_interrupts
from tests.videos import flag_rotation, grey_ramp, write_video

try:
    find_ffmpeg()
except FileNotFoundError as error:
    pytest.skip(str(error), allow_module_level=True)

ROOT = Path(__file__).parents[2]


def compress(source: Path, output: Path, *flags: str) -> int:
    flags = ("--input_root", str(source), "--output_root", str(output), "--jobs", "1", "--short_side", "32", *flags)
    return main(flags)


def noise(n_frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n_frames, height, width, 3), dtype=np.uint8)


def probe(path: Path) -> SimpleNamespace:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return SimpleNamespace(
            size=(stream.width, stream.height),
            frames=sum(1 for _ in container.decode(video=0)),
            rate=float(stream.average_rate),
            format=stream.pix_fmt,
            streams=[stream.type for stream in container.streams],
        )


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_landscape_portrait_square_odd_and_rotated(source, output):
    for name, (width, height) in {"landscape": (128, 96), "portrait": (96, 128), "square": (48, 48)}.items():
        write_video(source / f"{name}.mp4", grey_ramp(3, height, width))
    write_video(source / "odd.mp4", grey_ramp(3, 33, 47), pixel_format="yuv444p")
    flag_rotation(write_video(source / "rotated.mp4", grey_ramp(3, 96, 128)))
    assert compress(source, output) == 0
    sizes = {path.stem: probe(path).size for path in output.glob("*.mp4")}
    assert sizes == {
        "landscape": (42, 32), "portrait": (32, 42), "square": (32, 32), "odd": (46, 32), "rotated": (32, 42),
    }  # fmt: skip
    assert probe(output / "odd.mp4").format == "yuv420p"
    frames = read_frames(output / "rotated.mp4", lambda n, fps: range(n)).frames
    assert frames.shape[1:] == (42, 32, 3)


def test_rotation_is_applied_as_the_decoder_applies_it(source, output):
    frames = np.zeros((9, 64, 64, 3), np.uint8)
    frames[:, :32, :32] = 230
    original = flag_rotation(write_video(source / "a.mp4", frames))
    assert compress(source, output, "--short_side", "64") == 0
    shown, made = (read_frames(path, lambda n, fps: [4]).frames.astype(int) for path in (original, output / "a.mp4"))
    assert np.abs(shown - made).mean() < 5
    assert np.abs(frames[4] - made).mean() > 50


@pytest.mark.parametrize(("flags", "frames"), [((), 32), (("--rate_control", "filter"), 30), (("--fps", "1"), 12)])
def test_rates_and_frame_counts(source, output, flags, frames):
    write_video(source / "a.mp4", grey_ramp(224, step=1).repeat(2, axis=0)[:300], fps=30)
    assert compress(source, output, *flags) == 0
    made = probe(output / "a.mp4")
    assert made.frames == frames
    assert made.rate == (1 if "--fps" in flags else 3)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_sound_is_dropped_and_its_length_does_not_count(source, output, suffix):
    path = write_video(source / f"a{suffix}", grey_ramp(6), sound_seconds=5)
    assert probe(path).streams == ["video", "audio"]
    assert compress(source, output) == 0
    assert probe(output / "a.mp4").streams == ["video"]


def test_a_title_that_is_not_utf_8(source, output):
    title = b"title=caf\xe9"
    original = write_video(source.parent / "a.mkv", grey_ramp(6))
    command = (find_ffmpeg(), "-v", "error", "-i", original, "-c", "copy", "-metadata", title, "-metadata:s:v", title)
    subprocess.run([*command, source / "a.mkv"], check=True)
    assert (source / "a.mkv").read_bytes().count(b"caf\xe9") == 2
    assert compress(source, output) == 0


def test_fast_decode(source, output):
    write_video(source / "a.mp4", noise(1).repeat(40, axis=0))  # no change of scene, which would add key frames
    assert compress(source, output, "--fast_decode") == 0
    with av.open(str(output / "a.mp4")) as container:
        frames = list(container.decode(video=0))
    assert [number for number, frame in enumerate(frames) if frame.key_frame][:2] == [0, 12]
    assert not any(frame.pict_type == av.video.frame.PictureType.B for frame in frames)


def test_folders_and_names_of_any_kind(source, output):
    names = ["two words.mp4", "видео 视频 é.mp4", "-50%d of [a].mp4", "a:b'c\".mp4", "deep/down/x.mp4"]
    names += ["draw_sword/[K]_13;_#1_(2)&$x.mp4", "up.v2.MP4"]
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(source / "plain.mp4", grey_ramp(3)).rename(source / name)
    write_video(source / "other.mkv", grey_ramp(3))
    (source / "notes.txt").write_text("no video")
    (source / "._two words.mp4").write_text("what a file manager leaves")
    assert compress(source, output) == 0
    expected = {*names[:-1], "up.v2.mp4", "other.mp4", "settings.json"}
    assert set(content(output)) == expected


def test_relative_paths(source, output, monkeypatch):
    write_video(source / "-v.mp4", grey_ramp(3))
    monkeypatch.chdir(source.parent)
    assert compress(Path("in"), Path("out")) == 0
    assert (output / "-v.mp4").exists()


def test_failures_are_named_and_the_rest_is_done(source, output, capsys):
    write_video(source / "good.mp4", grey_ramp(30))
    whole = write_video(source / "cut.mp4", noise(300), fps=30).read_bytes()
    (source / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (source / "empty.mp4").touch()
    (source / "text.mp4").write_text("<html>404 Not Found</html>\n" * 50)
    (source / "gone.mp4").symlink_to(source / "nowhere.mp4")
    assert compress(source, output) == 1
    assert set(content(output)) == {"good.mp4", "settings.json", "failed.txt"}
    lines = dict(line.split("\t") for line in (output / "failed.txt").read_text().splitlines())
    assert list(lines) == [str(source / name) for name in ("cut.mp4", "empty.mp4", "gone.mp4", "text.mp4")]
    for path, reason in lines.items():
        assert reason.startswith(path)
        assert "download it again" in reason
    assert "of its 10.0 seconds came out" in lines[str(source / "cut.mp4")]
    printed = capsys.readouterr()
    assert "1 videos made, 0 already there, 4 failed." in printed.out
    assert all(reason in printed.err for reason in lines.values())

    # Once the sources are fixed, the list of failures disappears; one source stays cut, within what is allowed.
    for name in ("empty.mp4", "text.mp4", "gone.mp4"):
        (source / name).unlink()
    assert compress(source, output, "--max_shortfall", "0.7") == 0
    assert set(content(output)) == {"good.mp4", "cut.mp4", "settings.json"}
    assert "1 videos made, 1 already there, 0 failed." in capsys.readouterr().out


def program(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_ffmpegs_message_is_passed_on_and_no_file_stays(source, output, tmp_path):
    script = 'for last; do :; done; echo half >"$last"; echo "No space left on device" >&2; exit 1'
    encoding = Encoding(fps=3, short_side=32, rate_control="r", fast_decode=False)
    compressor = Compressor(program(tmp_path / "fake", script), encoding, 0.05, threading.Event())
    with pytest.raises(VideoError, match=r"a\.mp4 cannot be re-encoded \(ffmpeg: No space left on device\)"):
        compressor(write_video(source / "a.mp4", grey_ramp(3)), output / "a.mp4")
    assert content(output) == {}


def test_an_ffmpeg_without_x264_is_passed_over(tmp_path, monkeypatch):
    pytest.importorskip("imageio_ffmpeg")
    useless = program(tmp_path / "ffmpeg", "echo V..... mpeg4")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert shutil.which("ffmpeg") == useless
    assert find_ffmpeg() != useless


def test_a_clip_too_short_for_a_frame_of_the_filter_is_named(source, output):
    write_video(source / "a.mp4", grey_ramp(1), fps=30)
    assert compress(source, output, "--rate_control", "filter") == 1
    assert "gave no frame" in (output / "failed.txt").read_text()
    assert compress(source, output.with_name("r")) == 0


def test_complete_outputs_stay_and_others_are_made_again(source, output, capsys):
    for name in ("a.mp4", "b.mp4"):
        write_video(source / name, noise(20))
    assert compress(source, output) == 0
    made = content(output)
    stamp = (output / "a.mp4").stat().st_mtime_ns
    (output / "b.mp4").write_bytes(made["b.mp4"][:2000])
    (output / ".b.mp4.0123abcd.partial").write_bytes(b"left by a killed run")
    assert compress(source, output) == 0
    assert content(output) == made
    assert (output / "a.mp4").stat().st_mtime_ns == stamp
    assert "1 videos made, 1 already there" in capsys.readouterr().out


def start(source: Path, output: Path) -> subprocess.Popen:
    """Start the command in another process and wait until one video is done and the next is being made."""
    command = [sys.executable, "preprocess/compress_video.py", "--input_root", source, "--output_root", output]
    process = subprocess.Popen(
        [*command, "--jobs", "1", "--short_side", "120"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    deadline = time.monotonic() + 60
    while not (list(output.glob("video*.mp4")) and list(output.glob(".*.partial"))):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return process


def test_a_killed_run_continues_to_the_same_files(source, output, tmp_path):
    for number in range(5):
        write_video(source / f"video{number}.mp4", noise(40 + number, 120, 160))
    killed = start(source, output)
    killed.kill()
    killed.communicate()
    assert len(list(output.glob("video*.mp4"))) < 5

    undisturbed = tmp_path / "undisturbed"
    for folder in (output, undisturbed):
        assert compress(source, folder, "--jobs", "2", "--short_side", "120") == 0
    assert content(output) == content(undisturbed)
    assert len(content(output)) == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_unfinished(source, output, number):
    for i in range(3):
        write_video(source / f"video{i}.mp4", noise(60, 120, 160))
    process = start(source, output)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "run the same command again" in errors
    assert "Traceback" not in errors
    assert not list(output.glob(".*"))


def test_shards_are_disjoint_and_complete(source, output, monkeypatch):
    for number in range(5):
        write_video(source / f"video{number}.mp4", grey_ramp(3))
    (source / "video5.mp4").touch()
    seen = []
    for shard in ("0/3", "1/3"):
        before = set(content(output)) if output.exists() else {"settings.json"}
        assert compress(source, output, "--shard", shard) == 0
        seen.append(set(content(output)) - before)
    assert seen == [{"video0.mp4", "video3.mp4"}, {"video1.mp4", "video4.mp4"}]
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    stranger = output / ".video0.mp4.0123abcd.partial"
    stranger.touch()  # being made on another machine
    assert compress(source, output) == 1
    stranger.unlink()
    expected = {*(f"video{n}.mp4" for n in range(5)), "settings.json", "failed_2_of_3.txt"}
    assert set(content(output)) == expected


@pytest.mark.slow
def test_under_torchrun_a_failure_of_one_process_does_not_stop_the_others(source, output):
    (source / "video0.mp4").touch()
    write_video(source / "video1.mp4", noise(40, 120, 160))
    (source / "video2.mp4").touch()
    write_video(source / "video3.mp4", noise(40, 120, 160))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["preprocess/compress_video.py", "--input_root", source, "--output_root", output]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=120)
    assert done.returncode == 1
    assert set(content(output)) == {"video1.mp4", "video3.mp4", "settings.json", "failed_0_of_2.txt"}


@pytest.mark.parametrize("text", ["3/3", "-1/3", "1", "a/b", "1/", "0/0"])
def test_shards_of_another_form_are_refused(text):
    with pytest.raises(ValueError, match="form i/n"):
        parse_shard(text)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--short_side", "33"), "--short_side must be even"),
        (("--fps", "0"), "--fps must be above 0"),
        (("--fps", "nan"), "--fps must be above 0"),
        (("--jobs", "0"), "--jobs must be 1 or more"),
        (("--max_shortfall", "1"), "--max_shortfall must be in"),
        (("--shard", "4/4"), "--shard 4/4 is not"),
    ],
)
def test_settings_out_of_range(source, output, capsys, flags, message):
    write_video(source / "a.mp4", grey_ramp(3))
    assert compress(source, output, *flags) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_folders_that_do_not_fit_are_refused(source, output, capsys):
    def refused(message: str, *arguments: str | Path) -> bool:
        return compress(*arguments) == 2 and message in capsys.readouterr().err

    assert refused("is not a folder", source / "nowhere", output)
    assert refused("holds no video", source, output)
    write_video(source / "a.mp4", grey_ramp(3))
    assert refused("overlap: name two separate folders", source, source / "small")
    assert refused("is a file", source, source / "a.mp4")
    output.mkdir()
    write_video(output / "mine.mp4", grey_ramp(3))
    assert refused("has not made", source, output)
    (output / "mine.mp4").unlink()
    assert compress(source, output) == 0
    assert refused("were made with", source, output, "--fast_decode")
    write_video(source / "a.mkv", grey_ramp(3))
    with pytest.raises(ValueError, match=r"a\.mkv and .*a\.mp4 would both become .*a\.mp4: keep one"):
        plan(source, output)


def test_without_any_ffmpeg_the_error_says_how_to_get_one(source, output, capsys, monkeypatch):
    write_video(source / "a.mp4", grey_ramp(3))
    monkeypatch.setattr(compress_video.shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert compress(source, output) == 2
    assert "pip install imageio-ffmpeg" in capsys.readouterr().err
