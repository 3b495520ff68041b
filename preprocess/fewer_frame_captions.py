"""Take captions of fewer frames from a file with a caption of every frame that a clip has.

    python preprocess/fewer_frame_captions.py --frame_captions all.json --max_frames 8 --output eight.json

The output has the captions of the frames that training reads with --frame_sampling uniform, --feature_framerate 0 and
this --max_frames, so the input must describe all frames of a clip, as that of preprocess/make_moving_shapes.py does.
Exit code: 0, or 2 for a wrong command or file; nothing is written then.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataloaders.annotations import is_texts, read_json_object
from dataloaders.frame_captions import FLAG
from dataloaders.frame_sampling import uniform
from dataloaders.quoting import shorten
from engine.flags import check_file
from engine.writing import write_atomically
from preprocess.shards import exit_code


def run(options: argparse.Namespace) -> int:
    """Write the file; return 0. Raises ValueError or OSError before anything is written."""
    check_file("--output", options.output, (".json",))
    if options.max_frames < 1:
        raise ValueError(f"--max_frames must be at least 1, not {options.max_frames}")
    fewer = {}
    for key, captions in read_json_object(options.frame_captions, FLAG).items():
        if not is_texts(captions) or len(captions) < options.max_frames:
            raise ValueError(
                f"{FLAG} {options.frame_captions}: the entry {shorten(key)} is no list of {options.max_frames} or more "
                "captions: pass a file with one for every frame of a clip, or a smaller --max_frames"
            )
        fewer[key] = [captions[place] for place in uniform(len(captions), options.max_frames)]
    text = json.dumps(fewer, indent=1) + "\n"
    write_atomically(options.output, lambda path: path.write_text(text, encoding="utf-8"))
    print(f"{options.output}: {options.max_frames} captions of each of {len(fewer)} entries")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frame_captions", type=Path, required=True, help="captions of every frame of a clip")
    parser.add_argument("--max_frames", type=int, required=True, help="T, frames of a clip in training")
    parser.add_argument("--output", type=Path, required=True, help="json file to write")
    return exit_code(lambda: run(parser.parse_args(argv)), "nothing is written.")


if __name__ == "__main__":
    raise SystemExit(main())
