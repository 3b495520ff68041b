"""Packs a few small clips into shards."""

from pathlib import Path

from preprocess.make_shards import main
from tests.videos import grey_ramp, write_video

VIDEOS = 7
SMALL = ("--samples_per_shard", "3", "--jobs", "1", "--short_side", "16", "--preset", "ultrafast")


def write_clips(folder: Path) -> Path:
    """Write seven clips of 16 x 24 pixels and a list of them with eight captions; return the folder."""
    (folder / "v").mkdir()
    lines = ["path,caption"]
    for number in range(VIDEOS):
        write_video(folder / "v" / f"{number}.mp4", grey_ramp(2 + number, 16, 24))
        lines.append(f"{number}.mp4,clip {number} é")
    (folder / "list.csv").write_text("\n".join([*lines, "0.mp4,again"]), encoding="utf-8")
    return folder


def pack(world: Path, output: Path, *flags: str) -> int:
    given = ("--train_csv", str(world / "list.csv"), "--features_path", str(world / "v"), "--output_dir", str(output))
    return main([*given, *SMALL, *flags])


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def packed(world: Path, folder: Path) -> dict[str, bytes]:
    """Return what a run that nothing disturbs writes."""
    assert pack(world, folder) == 0
    return content(folder)


def error_of(capsys, *parts: str) -> None:
    """Check that the command printed one sentence of error with these parts."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    for part in parts:
        assert part in lines[0]
