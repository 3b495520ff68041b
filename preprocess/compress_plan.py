"""The plan of preprocess/compress_video.py for a folder, made before anything is written."""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dataloaders.listed_videos import VIDEO_EXTENSIONS, split_extension, walk_files

SHOWN_FILES = 20  # of each kind that are named one by one


@dataclass(frozen=True)
class Plan:
    """The plan for a folder: video -> output file, sorted; the files without a video's extension; and the folders that
    cannot be read, each with the reason."""

    outputs: dict[Path, Path]
    passed_over: list[Path]
    unreadable: dict[Path, str]


def plan(input_root: Path, output_root: Path) -> Plan:
    """Plan all files under `input_root`; ValueError if two would become one file, or if none is a video."""
    if not input_root.is_dir():
        raise ValueError(f"--input_root {input_root} is not a folder: pass the one with the videos.")
    if output_root.exists() and not output_root.is_dir():
        raise ValueError(f"--output_root {output_root} is a file: name a folder.")
    here, there = input_root.resolve(), output_root.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise ValueError(
            f"--output_root {output_root} and --input_root {input_root} overlap: name two separate folders."
        )
    sources: dict[Path, Path] = {}  # by output
    passed_over: list[Path] = []
    errors: list[OSError] = []
    # Broken links are among the files, so that they are named as failed.
    for source in sorted(walk_files(input_root, errors.append)):
        if source.name.startswith("."):  # left behind by file managers
            continue
        stem, extension = split_extension(source.name)
        if not extension:
            passed_over.append(source)
            continue
        if there in Path(os.path.realpath(source)).parents:
            raise ValueError(f"{source} lies in --output_root {output_root}, by a link: remove the link.")
        output = output_root / source.relative_to(input_root).with_name(f"{stem}.mp4")
        if output in sources:
            raise ValueError(f"{sources[output]} and {source} would both become {output}: keep one of them.")
        sources[output] = source
    if not sources:
        others = f", of {len(passed_over)} files (the first is {passed_over[0].name})" if passed_over else ""
        raise ValueError(f"--input_root {input_root} holds no video ({' '.join(VIDEO_EXTENSIONS)}){others}.")
    unreadable = {
        Path(error.filename): f"{error.filename} cannot be read ({error.strerror}): correct its permissions."
        for error in errors
    }
    return Plan({source: output for output, source in sources.items()}, passed_over, unreadable)


def name_passed_over(files: Sequence[Path]) -> None:
    """Print the files that were not taken for videos; if there are many, the first ones and a count per extension."""
    if not files:
        return
    print(f"{len(files)} files were passed over, since they have no video's extension:", file=sys.stderr)
    for path in files[:SHOWN_FILES]:
        print(f"passed over: {path}", file=sys.stderr)
    if rest := Counter(path.suffix or "none" for path in files[SHOWN_FILES:]):
        counts = ", ".join(f"{count} {extension}" for extension, count in sorted(rest.items()))
        print(f"... and {rest.total()} more, by extension: {counts}", file=sys.stderr)
