"""What the commands that write a made world share: h264 files, csv files, and a folder that is there whole or not at
all.

Shapes: T frames, H x W pixels.
"""

import csv
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FRAMES_PER_SECOND = 3


def write_video(path: Path, frames: np.ndarray, fps: int = FRAMES_PER_SECOND, every_frame_alone: bool = False) -> None:
    """Write frames uint8 RGB [T,H,W,3] as an h264 mp4 file with a single key frame; H and W must be even.

    With `every_frame_alone`, all are key frames of one quantiser: what a frame looks like after decoding then depends
    on that frame alone, so a clip and the same clip backwards decode to the same frames.
    """
    with av.open(str(path), "w", format="mp4") as container:
        # No B-frames (bf): where x264 puts them varies from run to run, and clips without them decode faster.
        quality = {"qp": "20"} if every_frame_alone else {"crf": "18"}
        options = {**quality, "preset": "veryfast", "bf": "0", "sc_threshold": "0"}
        stream = container.add_stream("libx264", rate=Fraction(fps), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = 1 if every_frame_alone else len(frames)
        # The bytes of an h264 file depend on the number of encoder threads.
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a csv file with "\\n" as line end on every system."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def fingerprint(settings: Mapping[str, object], command: Path) -> dict[str, object]:
    """Return the settings with `sha256`, a digest of them and of the code that draws: this folder and `command`."""
    code = [*sorted(Path(__file__).parent.glob("*.py")), command]
    drawn = json.dumps(settings, sort_keys=True).encode() + b"".join(path.read_bytes() for path in code)
    # The code decides the pixels too: a world of changed code is made again.
    return {**settings, "sha256": hashlib.sha256(drawn).hexdigest()}


def is_made(output: Path, settings: Mapping[str, object]) -> bool:
    """Return whether `output` holds exactly the world of these settings, which are from `fingerprint`.

    One that older code drew with the same settings does not count, and may be replaced.

    ValueError if it is a file, or holds a world of other settings, or files that these commands did not make.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output_dir {output} is a file: name a folder.")
    if not output.is_dir() or not any(output.iterdir()):
        return False
    try:
        found = json.loads((output / "settings.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or set(found) != set(settings):  # the other command's world has other settings
        raise ValueError(
            f"--output_dir {output} holds files that this command has not made: name a new or an empty folder."
        )
    changed = [name for name, value in settings.items() if name != "sha256" and found[name] != value]
    if changed:
        differs = " and ".join(f"{name} {found[name]}, not {settings[name]}" for name in changed)
        raise ValueError(
            f"--output_dir {output} holds a world made with {differs}: name another folder, or remove this one."
        )
    return found == settings


def make_whole(output: Path, settings: Mapping[str, object], write: Callable[[Path], None]) -> None:
    """Let `write` fill an empty folder, add settings.json, and put the folder at `output` in place of what is there."""
    output.parent.mkdir(parents=True, exist_ok=True)
    # Built beside its final place and moved there in one step: a failed run leaves nothing that looks complete.
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        write(made)
        (made / "settings.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        if output.exists():
            output.rename(Path(scratch) / "replaced")
        made.rename(output)
