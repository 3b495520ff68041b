"""Draws pictures of what a trained method does.

    python -m tools.visualize retrieval runs/mine/last.safetensors --output retrieval.png
    python -m tools.visualize maps runs/mine/last.safetensors --output maps.png

Both need only the checkpoint, whose settings name the data, the CLIP and the method.

`retrieval`: some captions of the test split, each with the three clips that score highest; a frame marks the right one.
`maps` (STOP): for each clip, from top to bottom, its frames, the attention map A, the dynamics map M and the chosen
regions r. The number between two frames counts the temporal prompts inserted there. `--layer` selects the block
(default: the last one with prompts).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dataloaders.quoting import quoted
from engine.checkpoint import load_checkpoint, read_header
from engine.cli import check_kinds
from engine.config import Config, sections_with
from engine.data import frame_reader
from engine.flags import check_file
from engine.messages import print_error
from engine.preflight import check_finite
from engine.tasks.registry import TASKS
from modules.clip_weights import backbone_sha256, load_clip
from modules.methods import build_method
from modules.tokenizer import find_tokenizer
from tools.pictures import Restored, draw_maps, draw_retrieval, save


def restore(checkpoint: Path, clip_activation: str = "") -> Restored:
    """Load the method and the test split that a checkpoint's settings name; raises OSError or ValueError.

    `clip_activation` is for an old checkpoint on a CLIP that does not state its activation.
    """
    header = read_header(checkpoint)
    if header.task not in TASKS:
        raise ValueError(
            f"{checkpoint}: was trained for the task {quoted(header.task)}; pass a checkpoint of one of the tasks: "
            f"{', '.join(TASKS)}"
        )
    task = TASKS[header.task]
    check_kinds(str(checkpoint), header.settings, sections_with(task.settings))
    asked = {"clip_activation": clip_activation} if clip_activation else {}
    config = Config.from_flat(header.settings | asked, task.settings)
    clip = load_clip(config.model.pretrained_clip_name, config.model.pretrained_dir, asked=config.model.asked_of_clip())
    find_tokenizer(clip, config.model.pretrained_clip_name)
    sha256 = backbone_sha256(clip)
    method = build_method(config.model.method, clip, **config.model.options)
    task.make_loss(config, method)  # freezes the tensors that the checkpoint therefore lacks
    load_checkpoint(checkpoint, method, sha256)
    check_finite(method, str(checkpoint))
    data = config.data
    samples = config.task.list_split(data, "test")
    reader = frame_reader(data, clip.backbone, training=False)
    return Restored(method.eval(), samples, reader, data.max_words)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("retrieval", "maps"))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--output", type=Path, default=Path("picture.png"))
    parser.add_argument("--videos", nargs="*", default=[], help="ids of test clips (default: the first few)")
    parser.add_argument(
        "--layer", type=int, help="maps: prompted block, from 0; negative: from the end (default: the last)"
    )
    parser.add_argument("--clip_activation", default="", help="for an old checkpoint whose CLIP does not state it")
    arguments = parser.parse_args(argv)
    try:
        check_file("--output", arguments.output, (".png",))
        if arguments.layer is not None and arguments.what != "maps":
            raise ValueError(
                f"--layer {arguments.layer} has no effect with {arguments.what}: leave it out, or draw maps"
            )
        restored = restore(arguments.checkpoint, arguments.clip_activation)
        if arguments.what == "maps":
            pictures = draw_maps(restored, arguments.videos, -1 if arguments.layer is None else arguments.layer)
        else:
            pictures = draw_retrieval(restored, arguments.videos)
        save(pictures, arguments.output)
    except (ValueError, OSError) as error:
        print_error(error)
        return 2
    print(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
