"""Averages the weights that a run kept of its epochs, into a checkpoint like any other.

    python main_task_recognition.py --do_train --save_every_epoch --output_dir runs/x ...
    python -m engine.average runs/x --how swa --epochs 2-22
    python main_task_recognition.py --do_eval --init_model runs/x/swa_2_22.safetensors

`modules.averaging` defines the averages. With --with_clip, CLIP itself takes part as epoch 0. With --patch R, R times
CLIP is added to 1 - R times the average. Both concern only the tensors that CLIP has: others, such as prompts or a
head, are averaged over the epochs alone.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from typing import get_args

from torch import Tensor

from engine.checkpoint import (
    CheckpointHeader,
    differences,
    epoch_file,
    epoch_files,
    read_checkpoint,
    write_checkpoint,
)
from engine.config import ModelConfig
from engine.flags import check_file, finite_float
from engine.logger import AVERAGE
from engine.messages import print_error
from modules.averaging import Average, average_weights, check_alike, patched, weighted_mean
from modules.clip_weights import backbone_sha256, load_clip
from modules.quoting import some


def epochs_of(text: str) -> range:
    """Return the epochs that --epochs names, as in 2-22 or 5; raises ValueError."""
    found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text)
    epochs = range(int(found[1]), int(found[2] or found[1]) + 1) if found else range(0)
    if not epochs or epochs[0] < 1:
        raise ValueError(
            f"--epochs {text}: name one epoch or a range such as 2-22; epochs count from 1, and "
            "--with_clip adds CLIP as epoch 0"
        )
    return epochs


def find_files(run: Path, epochs: range) -> list[Path]:
    """Return the files of a run's epochs; raises ValueError if one is missing, and FileNotFoundError if all are."""
    files, folder = epoch_files(run), epoch_file(run, 0).parent
    if not files:
        raise FileNotFoundError(f"{folder}: has no checkpoints of epochs; train with --save_every_epoch to keep them")
    if missing := [str(epoch) for epoch in epochs if epoch not in files]:
        there = [str(epoch) for epoch in sorted(files)]
        raise ValueError(f"{folder}: has no epoch {some(missing)}, only {some(there, 30)}; pass others as --epochs")
    return [files[epoch] for epoch in epochs]


def read_members(
    files: Sequence[Path], epochs: range, keep: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the path of each checkpoint and its tensors, those whose names `keep` accepts.

    Raises ValueError if a checkpoint is not of the same run as the first one, not of the epoch in its name, or not
    finite.
    """
    first: tuple[CheckpointHeader, dict[str, Tensor]] | None = None
    for path, epoch in zip(files, epochs, strict=True):
        header, tensors, _ = read_checkpoint(path)
        if not header.identity or header.epoch != epoch:
            fault = f"is of epoch {header.epoch}" if header.identity else "does not say which run it belongs to"
            raise ValueError(f"{path}: {fault}; only files that --save_every_epoch wrote, with their names, are taken")
        first = first or (header, tensors)
        there, here = ({"task": each.task, **each.identity} for each in (first[0], header))
        if different := differences(there, here):
            raise ValueError(f"{path}: belongs to another run than {files[0]}: {different}; average one run at a time")
        check_alike(str(files[0]), first[1], str(path), tensors)
        if wrong := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
            raise ValueError(f"{path}: {some(wrong, 3)} is not finite; the run diverged, so pass other --epochs")
        yield str(path), {name: tensor for name, tensor in tensors.items() if keep(name)}


def read_clip(header: CheckpointHeader, name: str, folder: str) -> dict[str, Tensor]:
    """Return the tensors of the CLIP that a checkpoint belongs to, by their names in a method.

    `name` and `folder` replace the checkpoint's --pretrained_clip_name and --pretrained_dir, unless empty. Raises
    ValueError for another CLIP, and what `load_clip` raises.
    """
    moved = {"pretrained_clip_name": name, "pretrained_dir": folder}
    given = header.settings | {flag: value for flag, value in moved.items() if value}
    model = ModelConfig(**{item.name: given[item.name] for item in fields(ModelConfig) if item.name in given})
    clip = load_clip(model.pretrained_clip_name, model.pretrained_dir, asked=model.asked_of_clip())
    if (sha256 := backbone_sha256(clip)) != header.backbone_sha256:
        raise ValueError(
            f"{model.pretrained_clip_name}: is not the CLIP that the run was trained on (sha256 {sha256[:12]}, not "
            f"{header.backbone_sha256[:12]}); pass that one with --pretrained_clip_name"
        )
    return {f"clip.{key}": tensor for key, tensor in clip.state_dict().items()}


def average(files: Sequence[Path], epochs: range, how: Average, clip: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """Return the average of checkpoints; prints the weight of each.

    If `clip` is given, with those of CLIP's tensors that the checkpoints hold, by their names there, CLIP takes part as
    epoch 0. Other tensors are then averaged over the epochs alone. Raises ValueError like `read_members`.
    """
    if clip is None:
        return weighted_mean(read_members(files, epochs), printed_weights(how, epochs))
    joined = chain([("CLIP", clip)], read_members(files, epochs, lambda name: name in clip))
    result = weighted_mean(joined, printed_weights(how, [0, *epochs]))
    others = [name for name in read_checkpoint(files[0])[1] if name not in clip]
    if others:
        print(f"without CLIP, which does not have them: {some(others, 3)}")
        apart = read_members(files, epochs, lambda name: name not in clip)
        result |= weighted_mean(apart, printed_weights(how, epochs))
    return result


def printed_weights(how: Average, epochs: Sequence[int]) -> list[float]:
    """Print and return the weight of each epoch; 0 is CLIP."""
    weights = average_weights(how, epochs)
    for epoch, weight in zip(epochs, weights, strict=True):
        print(f"{weight:8.4f}  {f'epoch {epoch}' if epoch else 'CLIP'}")
    return weights


def check_replaced(output: Path) -> None:
    """Raise ValueError if the output is there and is no average, so that no run's own checkpoint is replaced."""
    try:
        is_average = not output.exists() or bool(read_checkpoint(output)[0].made_of)
    except ValueError:  # another kind of file, or a damaged one
        is_average = False
    if not is_average:
        raise ValueError(f"--output {output}: is there and is no average; name another file, or remove it")


def run(options: argparse.Namespace) -> Path:
    """Write the average that the flags describe, and return its path; raises ValueError or OSError."""
    folder, how, ratio = options.run, options.how, options.patch
    epochs = epochs_of(options.epochs)
    if not 0 <= ratio <= 1:
        raise ValueError(f"--patch {ratio:g}: must be the share of CLIP, 0 to 1")
    files = find_files(folder, epochs)
    ending = "_with_clip" * options.with_clip + f"_patch{ratio:g}" * (ratio > 0)
    output = options.output or folder / f"{how}_{epochs[0]}_{epochs[-1]}{ending}.safetensors"
    check_file("--output", output, (".safetensors",))
    if output.resolve().parent == files[0].resolve().parent:
        raise ValueError(f"--output {output}: is among the checkpoints of epochs; name another folder")
    check_replaced(output)
    header, tensors, _ = read_checkpoint(files[0])
    clip = {}
    if options.with_clip or ratio:
        of_clip = read_clip(header, options.pretrained_clip_name, options.pretrained_dir)
        clip = {name: of_clip[name] for name in tensors if name in of_clip}
        if not clip:
            raise ValueError(
                f"{files[0]}: has no tensor of CLIP's, because the run did not train CLIP; leave out --with_clip and "
                "--patch"
            )
    result = average(files, epochs, how, clip if options.with_clip else None)
    if ratio:
        result = patched(result, clip, ratio)
    span = f"epochs {epochs[0]}-{epochs[-1]}" if len(epochs) > 1 else f"epoch {epochs[0]}"
    made_of = f"{AVERAGE} ({how}) of {'CLIP and ' * options.with_clip}{span}"
    made_of += f", patched with {ratio:g} of CLIP" * (ratio > 0)
    write_checkpoint(output, result, replace(header, epoch=epochs[-1], made_of=made_of))
    print(f"{output}: {made_of}")
    return output


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run with --save_every_epoch")
    parser.add_argument("--how", choices=get_args(Average), default="swa", help="the kind of average (default: swa)")
    parser.add_argument("--epochs", required=True, help="the epochs to average, such as 2-22; all must be there")
    parser.add_argument("--with_clip", action="store_true", help="CLIP itself takes part, as epoch 0")
    parser.add_argument("--patch", type=finite_float, default=0.0, help="share of CLIP in the result (default: 0)")
    parser.add_argument("--output", type=Path, help="file to write (default: in the run's folder)")
    parser.add_argument("--pretrained_clip_name", default="", help="the run's CLIP, if it has moved")
    parser.add_argument("--pretrained_dir", default="", help="folder to look up that CLIP, if it has moved")
    try:
        run(parser.parse_args(argv))
    except (ValueError, OSError) as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
