"""Writes and reads a run's files: trained weights as safetensors, and resume points to continue training from.

A weights file holds only the trainable tensors (megabytes for a prompt method). Its header has the settings and the
hash of the CLIP they belong to; loading refuses another CLIP. The file is sealed (`modules.seal`), so loading also
refuses a damaged one. A resume point is one file with everything that the next step depends on.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from dataloaders.quoting import quoted, shorten, where_they_differ
from engine.file_formats import FORMAT, RESUME_FORMAT, RESUME_FORMATS, takes_it
from engine.logger import log
from engine.writing import write_atomically
from modules.methods import Method
from modules.seal import damaged_entry, read_sealed, seal

LOSS = "loss."  # prefix of the loss's tensor names
TEMPERATURE = "clip.logit_scale"  # a loss that has a scale of its own freezes it


@dataclass(frozen=True)
class CheckpointHeader:
    """The header of a checkpoint.

    `settings` are those of its run, by flag name. `backbone_sha256` is the hash of its CLIP. A `full` checkpoint also
    holds that CLIP and can be loaded over any CLIP of the same sizes. `backbone` has the CLIP's facts that its weights
    do not show (`modules.backbones.Backbone.facts`; None in old files). `trained_on` is the kind of video files it was
    trained on (`FileKind.facts`; empty if unknown). `task` is its task; old files lack it because there was only one.
    `identity` is what its run and its resume points have in common (`ResumePoints`; empty in old files). `made_of` says
    what `engine.average` made it of; empty for a checkpoint that training wrote.
    """

    settings: dict[str, Any]
    epoch: int
    backbone_sha256: str
    full: bool = False
    backbone: dict[str, Any] | None = None
    trained_on: dict[str, Any] = field(default_factory=dict)
    task: str = "retrieval"
    identity: dict[str, Any] = field(default_factory=dict)
    made_of: str = ""


def save_checkpoint(path: Path, method: Method, header: CheckpointHeader, loss: nn.Module | None = None) -> None:
    """Write the trainable tensors of `method`, or all its tensors if `full`, and those of its `loss` as `loss.*`.

    A reader sees the old file or the complete new one. Raises OSError if the file cannot be written.
    """
    own = _tensors_of(method, header) | _tensors_of_loss(loss)
    write_checkpoint(path, {name: tensor.detach().cpu().contiguous() for name, tensor in own.items()}, header)


def write_checkpoint(path: Path, tensors: dict[str, torch.Tensor], header: CheckpointHeader) -> None:
    """Write a checkpoint of tensors on the CPU, see `save_checkpoint`."""
    facts = {name: fact if isinstance(fact, str) else json.dumps(fact) for name, fact in vars(header).items()}
    sealed = seal(tensors, facts | {"format": FORMAT, "full": str(header.full)})
    write_atomically(path, lambda partial: save_file(tensors, partial, sealed))


def read_header(path: Path) -> CheckpointHeader:
    """Read a checkpoint's header; raises what `load_checkpoint` raises for a file that is not a checkpoint."""
    return read_checkpoint(path)[0]


def known_header(path: Path) -> CheckpointHeader:
    """Do what `read_header` does, which takes long because it checks all tensors, once while the file is unchanged."""
    return _header_of(path, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=1)
def _header_of(path: Path, changed: int) -> CheckpointHeader:
    return read_header(path)


def load_checkpoint(
    path: Path, method: Method, backbone_sha256: str, loss: nn.Module | None = None
) -> CheckpointHeader:
    """Copy a checkpoint's tensors into `method` and return its header.

    Tensors of the loss go into `loss` if names and shapes match; another loss starts fresh, and the log says so. CLIP's
    temperature stays as it is if only one of the two losses trains it; so do the tensors that `loss.unused` may name.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a checkpoint of ours, is damaged, belongs to another CLIP that it does not contain,
            belongs to a CLIP that runs differently (activation, heads, pixels), or its tensors do not fit the method.
    """
    header, tensors, sealed = read_checkpoint(path)
    if not sealed:
        log.info("%s has no checksum because an earlier version wrote it: damage would go unnoticed", path)
    if not header.full and header.backbone_sha256 != backbone_sha256:
        raise ValueError(
            f"{path}: was trained on another CLIP ({shorten(str(header.settings.get('pretrained_clip_name')))}, sha256 "
            f"{header.backbone_sha256[:12]}) than the one given (sha256 {backbone_sha256[:12]}); pass its "
            "--pretrained_clip_name"
        )
    if different := method.clip.backbone.differences(header.backbone or {}):
        raise ValueError(
            f"{path}: was trained on a CLIP that runs differently from the one given: {'; '.join(different)}; pass "
            "the same --pretrained_clip_name and clip_ flags"
        )
    of_loss = {name: tensors.pop(name) for name in list(tensors) if name.startswith(LOSS)}
    of_another_loss = bool(_tensors_of_loss(loss) if TEMPERATURE in tensors else of_loss)
    unused = getattr(loss, "unused", frozenset()) | ({TEMPERATURE} if of_another_loss else frozenset())
    _load_exactly(path, method, tensors, header, unused)
    if loss is not None:
        _load_loss(path, loss, of_loss)
    return header


def read_checkpoint(path: Path) -> tuple[CheckpointHeader, dict[str, torch.Tensor], bool]:
    """Return a checkpoint's header, its tensors, and whether it has a seal; a broken seal raises ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; give a .safetensors file that training wrote")
    tensors, metadata, sealed = read_sealed(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path}: not a checkpoint of this project (its header says {quoted(metadata.get('format'))})"
            f"{takes_it(path, '--init_model')}"
        )
    return _header(path, metadata), tensors, sealed


def _header(path: Path, metadata: Mapping[str, str]) -> CheckpointHeader:
    fault = None
    try:
        settings, trained_on = json.loads(metadata["settings"]), json.loads(metadata.get("trained_on", "{}"))
        backbone, same = json.loads(metadata.get("backbone", "null")), json.loads(metadata.get("identity", "{}"))
        epoch, backbone_sha256 = int(metadata["epoch"]), metadata["backbone_sha256"]
        if not all(isinstance(facts, dict) for facts in (settings, trained_on, backbone or {}, same)):
            fault = "its settings are not a JSON object"
    except KeyError as error:
        fault = f"its header has no {error.args[0]}"
    except ValueError as error:
        fault = f"its header cannot be read: {shorten(str(error), 160)}"
    if fault:
        raise ValueError(f"{path}: is not a complete checkpoint of this project ({fault}); pass an unchanged one")
    full, task = metadata.get("full") == "True", metadata.get("task", CheckpointHeader.task)
    made_of = metadata.get("made_of", "")
    return CheckpointHeader(settings, epoch, backbone_sha256, full, backbone, trained_on, task, same, made_of)


def _tensors_of(method: Method, header: CheckpointHeader) -> dict[str, torch.Tensor]:
    return method.state_dict() if header.full else dict(method.trainable_parameters())


def _tensors_of_loss(loss: nn.Module | None) -> dict[str, torch.Tensor]:
    return {f"{LOSS}{name}": tensor for name, tensor in loss.state_dict().items()} if loss is not None else {}


@torch.no_grad()
def _load_loss(path: Path, loss: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    own = _tensors_of_loss(loss)
    if {name: tensor.shape for name, tensor in own.items()} == {name: t.shape for name, t in tensors.items()}:
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    elif own or tensors:
        log.info("%s was trained with another loss: the parameters of this loss start fresh", path)


@torch.no_grad()
def _load_exactly(
    path: Path, method: Method, tensors: dict[str, torch.Tensor], header: CheckpointHeader, on_one_side: frozenset[str]
) -> None:
    """Copy `tensors` into the method, which must have the same ones; names of `on_one_side` may be there alone."""
    own = _tensors_of(method, header)
    apart = {name for name in on_one_side if (name in own) != (name in tensors)}
    own, tensors = ({name: t for name, t in side.items() if name not in apart} for side in (own, tensors))
    wrong = [f"{name} is missing" for name in own if name not in tensors]
    kind = "tensor" if header.full else "trained tensor"
    wrong += [f"{name} is not a {kind} of this method" for name in tensors if name not in own]
    wrong += [
        f"{name} has shape {tuple(tensors[name].shape)} and not {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        first = "; ".join(shorten(fault, 160) for fault in wrong[:5])
        stated = {name: header.settings[name] for name in ("method", "classifier") if name in header.settings}
        flags = " ".join(f"--{name} {shorten(str(value))}" for name, value in stated.items())
        trained = f"was trained with {flags}, and " if flags else ""
        raise ValueError(f"{path}: {trained}does not fit the method {type(method).__name__}: {first}{more}")
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def epoch_file(output_dir: Path, epoch: int) -> Path:
    """Return where --save_every_epoch writes the weights after an epoch."""
    return output_dir / "epochs" / f"epoch_{epoch:04d}.safetensors"


def epoch_files(output_dir: Path) -> dict[int, Path]:
    """Return the files that --save_every_epoch wrote in a run's folder, by epoch."""
    folder = epoch_file(output_dir, 0).parent
    files = {path.stem.removeprefix("epoch_"): path for path in folder.glob("epoch_*.safetensors")}
    return {int(n): path for n, path in files.items() if n.isdecimal() and path == epoch_file(output_dir, int(n))}


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Return the values that differ between two runs as a text; empty if there are none."""
    different = []
    for name in sorted(there.keys() | here.keys()):
        one, other = there.get(name), here.get(name)
        if one != other:
            if isinstance(one, str) and isinstance(other, str):
                one, other = where_they_differ(one, other)
            different.append(f"{shorten(name)} is {quoted(one)} there and {quoted(other)} here")
    return "; ".join(different)


class OtherVersionError(ValueError):
    """A resume point is undamaged, but this version cannot continue from it."""


@dataclass(frozen=True)
class ResumePoints:
    """The resume points of a run, `step_00000250.pt` and so on in one folder; only the newest `keep` are kept.

    `identity` is what a run and a point must have in common, by name: the method, the CLIP, and every setting that
    changes what is learned.
    """

    folder: Path
    identity: Mapping[str, Any]
    keep: int

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write the point after `step` steps; `state` holds tensors, numbers, strings and plain containers.

        Raises OSError if it cannot be written; the earlier points then remain.
        """
        content = {"format": RESUME_FORMAT, "identity": json.dumps(dict(self.identity)), "step": step, **state}
        write_atomically(self.folder / f"step_{step:08d}.pt", lambda partial: torch.save(content, partial))
        for old in self._newest_first()[self.keep :]:
            old.unlink()

    def find(self, resume: str) -> dict[str, Any] | None:
        """Return the state to continue from, or None to start from scratch.

        `resume` is "auto" for the newest undamaged point, or the path of a point.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is damaged, or belongs to another run; the message names the differences.
        """
        if resume == "auto":
            for path in self._newest_first():
                try:
                    state = read_resume_point(path)
                except OtherVersionError:
                    raise
                except ValueError as error:
                    log.warning("%s; trying the previous resume point", error)
                    continue
                return self._checked(path, state)
            return None
        return self._checked(Path(resume), read_resume_point(Path(resume)))

    def holds(self, resume: str) -> bool:
        """Return whether the point that `resume` names is in this folder."""
        return resume == "auto" or Path(resume).resolve().parent == self.folder.resolve()

    def set_aside(self) -> None:
        """Move an earlier run's points and its files of --save_every_epoch to other folders, before a run that does not
        continue from them."""
        epochs = epoch_files(self.folder.parent)
        for paths, what in ((self._newest_first(), "resume points"), ([*epochs.values()], "epochs' checkpoints")):
            if paths:
                folder, number = paths[0].parent, 1
                while (other := folder.with_name(f"{folder.name}_before_{number}")).exists():
                    number += 1
                os.replace(folder, other)
                log.info("the %s of an earlier run are now in %s", what, other)

    def rewind(self, epoch: int) -> None:
        """Delete the files of --save_every_epoch that a run resumed after `epoch` whole epochs will write again."""
        for number, path in epoch_files(self.folder.parent).items():
            if number > epoch:
                path.unlink()

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step_*.pt"), reverse=True)

    def _checked(self, path: Path, state: dict[str, Any]) -> dict[str, Any]:
        there, here = json.loads(state["identity"]), json.loads(json.dumps(dict(self.identity)))
        if different := differences(there, here):
            raise ValueError(f"{path}: belongs to another run: {different}; use its settings, or another --output_dir")
        return state


def read_resume_point(path: Path) -> dict[str, Any]:
    """Read a resume point; raises FileNotFoundError, or ValueError if it is damaged or not a resume point."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such resume point; --resume takes auto or a step_*.pt that training wrote")
    try:
        damaged = damaged_entry(path)
        if damaged is None:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can fail in any way
        if flag := takes_it(path, "--resume"):
            raise ValueError(f"{path}: is not a resume point of this project{flag}") from error
        raise ValueError(f"{path}: is damaged ({shorten(str(error), 160)})") from error
    if damaged is not None:
        raise ValueError(f"{path}: is damaged (the checksum of {shorten(damaged)} is wrong)")
    written_as = state.get("format") if isinstance(state, dict) else None
    if written_as in RESUME_FORMATS and written_as != RESUME_FORMAT:
        raise OtherVersionError(
            f"{path}: was written by an earlier version of this project, which did not note what it was trained on; "
            "finish the run with that version, or start again without --resume"
        )
    if written_as != RESUME_FORMAT:
        raise ValueError(f"{path}: is not a resume point of this project{takes_it(path, '--resume')}")
    return state
