"""Re-encode a folder of videos to a few frames a second and a small size, as the released code of STOP reads them.

    python preprocess/compress_video.py --input_root data/msrvtt/videos --output_root data/msrvtt/videos_3fps_224

writes, for every video under the input folder, an h264 file of the same relative name, ending in .mp4, without sound:
3 frames a second, short side 224 pixels. Pictures are as players show them: turned and mirrored as the file asks, in
square pixels. Seconds stay the same: if the picture begins later than the sound, its first frame fills the gap. Lists
that name a video x.avi find x.mp4. Hidden files and folders are skipped, links to folders are followed, and files
without a video's extension are passed over and named. The output folder also gets

    settings.json   the settings of the files; a run with other settings is refused
    failed.txt      path and reason of every video that failed, if any (failed_0_of_4.txt for --shard 0/4)

A file gets its name when it is complete and on disk, so the command can be interrupted or killed at any moment. When
run again, it skips what is there, unless the video is newer. ffmpeg reports success on a file that is cut off, so we
compare lengths: a video fails if more than --max_shortfall of its length is lost (but at least half a second and one
frame).

Several machines share the job with --shard 0/4 ... 3/4, or under torchrun, by its RANK and WORLD_SIZE.
Exit code: 0 if all videos are there, 1 if some failed, 2 for a wrong command, 130 if interrupted.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataloaders.decode import read_frames
from dataloaders.picture_shape import MAX_PIXEL_ASPECT
from dataloaders.quoting import shorten
from dataloaders.stated_size import is_cut, stated_size
from dataloaders.video_file import DamagedVideoError, VideoError, open_video, picture_offset
from preprocess.compress_plan import SHOWN_FILES, name_passed_over, plan
from preprocess.shards import default_jobs, exit_code, parse_shard, wait_for_other_ranks

PARTIAL = ".partial"
MIN_ALLOWANCE = 0.5  # seconds: containers state lengths that are off by a few frames
MAX_DELAY = 60.0  # seconds from the sound to the picture: more is a broken clock, which we do not fill with frames
MIN_LIBAVFILTER = 8  # that of ffmpeg 5.0, the first to mirror pictures as the file asks
COVERS = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image


@dataclass(frozen=True)
class Encoding:
    """The settings of every output file; its fields are the flags of the same names."""

    fps: float
    short_side: int
    rate_control: str
    fast_decode: bool

    def __post_init__(self) -> None:
        if not 0 < self.fps <= 240:
            raise ValueError(f"--fps must be above 0 and at most 240, not {self.fps:g}.")
        if not 16 <= self.short_side <= 4096 or self.short_side % 2:
            raise ValueError(f"--short_side must be even and in 16..4096, not {self.short_side}.")

    def flags(self, late: float = 0.0) -> list[str]:
        """Return ffmpeg's output flags for a picture that begins `late` seconds after the file does."""
        # The long side is the even number that best keeps the shape in which the picture is shown. sar is the width of
        # a pixel over its height, 1 if the file does not say; like the reader we treat absurd values as 1.
        sar = f"if(between(sar,1/{MAX_PIXEL_ASPECT},{MAX_PIXEL_ASPECT}),sar,1)"
        long_side = f"2*round({self.short_side}/2*max(iw*{sar}/ih,ih/(iw*{sar})))"
        is_wide = f"gt(iw*{sar},ih)"
        width, height = f"if({is_wide},{long_side},{self.short_side})", f"if({is_wide},{self.short_side},{long_side})"
        filters = [f"scale='{width}':'{height}'", "setsar=1", "format=yuv420p"]
        rate = ["-r", f"{self.fps:g}"]
        if self.rate_control == "filter":
            filters.insert(0, f"fps={self.fps:g}" + (":start_time=0" if late else ""))
            rate = []
        if late:
            filters.insert(0, f"setpts=PTS-STARTPTS+{late:.6f}/TB")
        fast = ["-tune", "fastdecode", "-bf", "0", "-g", "12"] if self.fast_decode else []
        # One thread: videos already run in parallel, and the bytes of an h264 file depend on the number of threads.
        return ["-vf", ",".join(filters), *rate, "-c:v", "libx264", *fast, "-threads", "1"]


class Interrupted(Exception):
    """The command is ending; the current video is not made."""


@dataclass(frozen=True)
class Compressor:
    """Makes one output file from one video; called from many threads."""

    ffmpeg: str
    encoding: Encoding
    max_shortfall: float
    stop: threading.Event  # set when the command ends early

    def __call__(self, source: Path, output: Path) -> bool:
        """Make `output` unless it is there and complete; returns whether it was made. VideoError if that fails."""
        if self.stop.is_set():
            raise Interrupted
        seconds = video_seconds(source)
        if self._is_there(output, source, seconds):
            return False
        output.parent.mkdir(parents=True, exist_ok=True)
        # A new name each time: an ffmpeg that outlived a killed run may still be writing to the old one.
        partial = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
        try:
            self._encode(source, partial)
            if shortfall := self._shortfall(seconds, partial, source):
                raise VideoError(f"{source} {shortfall}")
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(output)
        finally:
            partial.unlink(missing_ok=True)
        return True

    def _is_there(self, output: Path, source: Path, seconds: float | None) -> bool:
        """Return whether `output` was made from this version of `source`, is complete, and has square pixels, which
        files of early versions lack."""
        if not output.exists() or output.stat().st_mtime_ns < source.stat().st_mtime_ns:
            return False
        return self._shortfall(seconds, output, source) is None and has_square_pixels(output)

    def _encode(self, source: Path, partial: Path) -> None:
        with open_video(source) as (container, stream):
            demuxer = container.format.name.partition(",")[0]
            videos = [video for video in container.streams.video if not video.disposition & COVERS]
            number = [video.index for video in videos].index(stream.index)
            late = picture_begins(container, stream)
        # Absolute paths, because ffmpeg reads a name that starts with "-" as a flag and "a:b" as a protocol. Only the
        # stream that training would read goes in; ffmpeg turns and mirrors it by itself.
        command = [self.ffmpeg, "-nostdin", "-v", "error", "-threads", "1", "-protocol_whitelist", "file"]
        command += ["-f", demuxer, "-i", str(source.absolute()), "-map", f"0:V:{number}"]
        command += ["-map_metadata", "-1", "-map_chapters", "-1", *self.encoding.flags(late)]
        command += ["-f", "mp4", "-y", str(partial.absolute())]
        # In a separate session, because Ctrl-C would make ffmpeg finish a short file; we kill it instead.
        with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE) as process:
            while True:
                try:
                    _, errors = process.communicate(timeout=0.5)
                    break
                except subprocess.TimeoutExpired:
                    if self.stop.is_set():
                        process.kill()
                        raise Interrupted from None
        if process.returncode:
            lines = errors.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
            raise VideoError(
                f"{source} cannot be re-encoded (ffmpeg: {lines[0]}): if the file is damaged, download it again."
            )
        if errors.strip():
            check_damage(source)

    def _shortfall(self, seconds: float | None, made: Path, source: Path) -> str | None:
        """Return what `made` lacks of its source, `seconds` long, as the end of a sentence; None if nothing."""
        try:
            length = video_seconds(made) or 0.0
        except VideoError:
            length = 0.0
        if length == 0:
            return "gave no frame: it is damaged or shorter than half a frame; download it again, or leave it out."
        allowance = max(MIN_ALLOWANCE, 1 / self.encoding.fps, self.max_shortfall * (seconds or 0))
        if seconds is not None and length < seconds - allowance:
            last = last_frame_starts(source)
            if last is not None and length >= last - allowance:
                return None
            return self._cut_off(f"{length:.1f} of its {seconds:.1f} seconds came out")
        if seconds is None:  # FFmpeg leaves out the length of a cut ASF
            with open_video(source) as (_, stream):
                there, stated = source.stat().st_size, stated_size(source, stream)
            if there < stated * (1 - self.max_shortfall):
                return self._cut_off(f"{there:,} of its {stated:,} bytes are there")
        return None

    def _cut_off(self, what_is_there: str) -> str:
        allow = f"allow more than --max_shortfall {self.max_shortfall:g} to be missing"
        return f"is cut off: {what_is_there}; download it again, or {allow}."


def check_damage(source: Path) -> None:
    """Raise VideoError for a file with a frame that ffmpeg guessed, which would look undamaged in the copy.

    ffmpeg reports such frames, but also harmless things; the reader decides.
    """
    try:
        read_frames(source, lambda n_frames, fps: [n_frames - 1], thorough=True)
    except DamagedVideoError:
        raise
    except VideoError:  # --max_shortfall decides about a missing end
        pass


def picture_begins(container: InputContainer, stream: av.VideoStream) -> float:
    """Return the seconds from the start of an open file, where its sound may begin, to its picture; 0 for less than a
    frame and for a broken clock."""
    late = picture_offset(container, stream, float(stream.average_rate or stream.guessed_rate or 0))
    return late if late <= MAX_DELAY else 0.0


def has_square_pixels(path: Path) -> bool:
    """Return whether players show a file with square pixels, to within two pixels."""
    with open_video(path) as (_, stream):
        ratio = float(stream.sample_aspect_ratio or 1)
        return abs(ratio - 1) * max(stream.width, stream.height) < 2


def video_seconds(path: Path) -> float | None:
    """Return the length of a file's picture as its header states it, None if it states none.

    If a container states one length for all streams (flv), this is the length of the sound if that is longer.
    VideoError if `path` cannot be opened as a video.
    """
    with open_video(path) as (container, stream):
        if stream.frames > path.stat().st_size:  # an AVI without a known end, whose length derives from that number
            return None
        lengths = [float(stream.duration * stream.time_base)] if stream.duration and stream.time_base else []
        lengths += [container.duration / av.time_base] if container.duration else []
        if clock := re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", "")):  # of Matroska
            lengths.append(3600 * int(clock[1]) + 60 * int(clock[2]) + float(clock[3]))
    # The container's length may be that of a longer sound; the stream's may include frames that an edit list hides.
    return max(0.0, min(lengths)) if lengths else None


def last_frame_starts(path: Path) -> float | None:
    """Return the seconds from the first frame of a file to its last, which some headers far exceed.

    None if the file does not state its size or if its end is missing. Reads the file, but does not decode it.
    """
    with open_video(path) as (container, stream):
        if not stated_size(path, stream) or is_cut(path, stream):
            return None
        try:
            times = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
        except av.FFmpegError:
            return None
        return float((max(times) - min(times)) * (stream.time_base or 0)) if times else None


def find_ffmpeg() -> str:
    """Return the system's ffmpeg or that of the package imageio-ffmpeg; FileNotFoundError if neither is recent enough
    and writes h264."""
    candidates = [shutil.which("ffmpeg")]
    try:
        import imageio_ffmpeg

        candidates.append(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):  # not installed; installed without a program for this machine
        pass
    for program in candidates:
        if program:
            said = subprocess.run([program, "-encoders"], capture_output=True, check=False)
            version = re.search(rb"libavfilter +(\d+)\.", said.stderr)  # development builds have no other number
            if b"libx264" in said.stdout and version and int(version[1]) >= MIN_LIBAVFILTER:
                return program
    raise FileNotFoundError(
        "no ffmpeg of version 5 or newer with libx264 was found: install one, or pip install imageio-ffmpeg --upgrade."
    )


def _claim(output_root: Path, encoding: Encoding) -> None:
    """Write the settings into the output folder; ValueError if it holds files made with other settings."""
    path = output_root / "settings.json"
    settings = asdict(encoding)
    # Before we look for the settings: a shard that has already made a video wrote them first.
    video = next(output_root.rglob("*.mp4"), None)
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if found != settings:
            found = shorten(str(found), 300)
            raise ValueError(
                f"{path} says that the videos there were made with {found}: pass that, or name another --output_root."
            )
        return
    if video:
        raise ValueError(f"--output_root {output_root} holds videos that this command has not made: name a new folder.")
    output_root.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")  # other shards may be doing the same
    partial.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def _remove_partials(output_root: Path, outputs: set[Path]) -> None:
    """Remove what a killed run left of these files, but not of other shards, which may be writing them."""
    for path in output_root.rglob(f".*{PARTIAL}"):
        name = path.name.removeprefix(".").removesuffix(PARTIAL).rpartition(".")[0]
        if path.with_name(name) in outputs:
            path.unlink(missing_ok=True)


def compress_all(work: dict[Path, Path], compressor: Compressor, jobs: int) -> tuple[int, int, dict[Path, str]]:
    """Return (number made, number skipped, reason of each failed video). KeyboardInterrupt leaves no ffmpeg running."""
    made = skipped = 0
    failed: dict[Path, str] = {}
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(compressor, source, output): source for source, output in work.items()}
        try:
            for future in tqdm(as_completed(futures), total=len(futures), desc="re-encoding", unit="video"):
                try:
                    if future.result():
                        made += 1
                    else:
                        skipped += 1
                except (ValueError, OSError) as error:
                    failed[futures[future]] = str(error)
        finally:
            compressor.stop.set()
    return made, skipped, dict(sorted(failed.items()))


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code 0 or 1. ValueError or OSError if it cannot start."""
    encoding = Encoding(options.fps, options.short_side, options.rate_control, options.fast_decode)
    number, count = parse_shard(options.shard)
    jobs = default_jobs() if options.jobs is None else options.jobs
    if jobs < 1:
        raise ValueError(f"--jobs must be 1 or more, not {jobs}.")
    if not 0 <= options.max_shortfall < 1:
        raise ValueError(f"--max_shortfall must be in 0..1, 1 excluded, not {options.max_shortfall:g}.")
    ffmpeg = find_ffmpeg()
    output_root = options.output_root
    planned = plan(options.input_root, output_root)
    work = dict(list(planned.outputs.items())[number::count])
    _claim(output_root, encoding)
    _remove_partials(output_root, set(work.values()))
    failures = output_root / ("failed.txt" if count == 1 else f"failed_{number}_of_{count}.txt")
    failures.unlink(missing_ok=True)

    compressor = Compressor(ffmpeg, encoding, options.max_shortfall, threading.Event())
    made, skipped, failed = compress_all(work, compressor, jobs)
    if number == 0:
        failed |= planned.unreadable
        name_passed_over(planned.passed_over)
    shard = "" if count == 1 else f" (shard {number}/{count})"
    print(f"{output_root}{shard}: {made} videos made, {skipped} already there, {len(failed)} failed.")
    if failed:
        lines = [f"{source}\t{reason}\n" for source, reason in failed.items()]
        failures.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
        for reason in list(failed.values())[:SHOWN_FILES]:
            print(f"failed: {reason}", file=sys.stderr)
        print(f"All that failed is in {failures}.", file=sys.stderr)
    if options.shard is None:
        wait_for_other_ranks()
    return int(bool(failed))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Re-encode a folder of videos: few frames a second, small, no sound.")
    parser.add_argument(
        "--input_root", type=Path, required=True, help="folder with the videos, also in folders below it"
    )
    parser.add_argument("--output_root", type=Path, required=True, help="folder to create, outside the input folder")
    parser.add_argument("--fps", type=float, default=3.0, help="frames a second")
    parser.add_argument("--short_side", type=int, default=224, help="pixels of the shorter side; even")
    parser.add_argument(
        "--rate_control", choices=("r", "filter"), default="r",
        help="r: ffmpeg's -r, as published (the first frames lie close together); filter: its fps filter (evenly)",
    )  # fmt: skip
    parser.add_argument("--fast_decode", action="store_true", help="make files that decode in less than half the time")
    parser.add_argument("--max_shortfall", type=float, default=0.05, help="share of a video's length that may be lost")
    parser.add_argument("--jobs", type=int, help="videos at a time; default: one for each processor")
    parser.add_argument("--shard", help="i/n: the i-th of n shares, counted from 0; default: torchrun's rank")
    return exit_code(lambda: run(parser.parse_args(argv)), "run the same command again to go on.")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: schedulers end jobs with it
    raise SystemExit(main())
