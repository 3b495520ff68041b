"""What a run leaves on disk: trained weights as safetensors, and points from which training goes on.

A weights file holds the trainable tensors only (megabytes for a prompt method) and, in its header, the settings and the
hash of the CLIP they belong to; loading refuses another CLIP. A resume point holds everything that the next step
depends on, in one file: either all of it is there or the file counts as damaged.
"""

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dataloaders.quoting import quoted, shorten
from engine.logger import log
from modules.methods import Method

FORMAT = "stop-video checkpoint 1"
RESUME_FORMAT = "stop-video resume point 1"


@dataclass(frozen=True)
class CheckpointHeader:
    """What a checkpoint says about itself: its settings by flag name, its epoch, the hash of its CLIP, whether it is
    full: holds that CLIP too, and can be loaded over any other of its sizes, and what belongs to that CLIP beside its
    weights (`modules.backbones.Backbone.facts`; None in old files)."""

    settings: dict[str, Any]
    epoch: int
    backbone_sha256: str
    full: bool = False
    backbone: dict[str, Any] | None = None


def save_checkpoint(path: Path, method: Method, header: CheckpointHeader) -> None:
    """Write the trainable tensors of `method`, or all of a `full` one; a reader sees the old file or the whole new one,
    never a part."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors_of(method, header).items()}
    metadata = {
        "format": FORMAT,
        "settings": json.dumps(header.settings),
        "epoch": str(header.epoch),
        "backbone_sha256": header.backbone_sha256,
        "full": str(header.full),
        "backbone": json.dumps(header.backbone),
    }
    _write_atomically(path, lambda partial: save_file(tensors, partial, metadata))


def _write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Whoever reads `path` sees the old file or the whole new one, also after a crash or on a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        _flush(partial)
        os.replace(partial, path)
        _flush(path.parent)  # the renaming itself
    except Exception as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{path}: could not be saved ({error}); what was saved before is unharmed") from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_header(path: Path) -> CheckpointHeader:
    """What a checkpoint says about itself; raises as `load_checkpoint` does for a file that is none."""
    return _read(path)[0]


def load_checkpoint(path: Path, method: Method, backbone_sha256: str) -> CheckpointHeader:
    """Put a checkpoint's tensors into `method` and give its header.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of ours, made on another CLIP that is not inside or on one that is run in another
            way (activation, heads, pixels), or with other tensors than the method has.
    """
    header, tensors = _read(path)
    if not header.full and header.backbone_sha256 != backbone_sha256:
        raise ValueError(
            f"{path}: was trained on another CLIP ({shorten(str(header.settings.get('pretrained_clip_name')))}, sha256 "
            f"{header.backbone_sha256[:12]}) than the one given (sha256 {backbone_sha256[:12]}); pass its "
            "--pretrained_clip_name"
        )
    if differences := method.clip.backbone.differences(header.backbone or {}):
        raise ValueError(
            f"{path}: was trained on a CLIP that is run in another way than the one given: {'; '.join(differences)}; "
            "pass the same --pretrained_clip_name and clip_ flags"
        )
    _load_exactly(path, method, tensors, header)
    return header


def _read(path: Path) -> tuple[CheckpointHeader, dict[str, torch.Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; give a .safetensors file that training wrote")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(
            f"{path}: not a readable safetensors file ({shorten(str(error), 160)}); was it cut short?"
        ) from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: not a checkpoint of this project (its header says {quoted(metadata.get('format'))})")
    settings, epoch = json.loads(metadata["settings"]), int(metadata["epoch"])
    header = CheckpointHeader(
        settings,
        epoch,
        metadata["backbone_sha256"],
        metadata.get("full") == "True",
        json.loads(metadata.get("backbone", "null")),
    )
    return header, tensors


def _tensors_of(method: Method, header: CheckpointHeader) -> dict[str, torch.Tensor]:
    return method.state_dict() if header.full else dict(method.trainable_parameters())


@torch.no_grad()
def _load_exactly(path: Path, method: Method, tensors: dict[str, torch.Tensor], header: CheckpointHeader) -> None:
    own = _tensors_of(method, header)
    wrong = [f"{name} is missing" for name in own if name not in tensors]
    wrong += [
        f"{name} is not a {'' if header.full else 'trained '}tensor of this method"
        for name in tensors
        if name not in own
    ]
    wrong += [
        f"{name} has shape {tuple(tensors[name].shape)} and not {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        first = "; ".join(shorten(fault, 160) for fault in wrong[:5])
        raise ValueError(
            f"{path}: does not fit the method {type(method).__name__}: {first}{more}; it was "
            f"trained with --method {shorten(str(header.settings.get('method')))}"
        )
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


@dataclass(frozen=True)
class ResumePoints:
    """The resume points of a run, `step_00000250.pt` and so on in one folder; the newest `keep` of them stay.

    `identity` is what a run must have in common with a point to go on from it, by name: its method, its CLIP, and every
    setting that changes what is learned.
    """

    folder: Path
    identity: Mapping[str, Any]
    keep: int

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write the point after `step` steps; `state` is of tensors, numbers, strings and plain containers.

        Raises OSError if it cannot be written; the points before it are then still there.
        """
        content = {"format": RESUME_FORMAT, "identity": json.dumps(dict(self.identity)), "step": step, **state}
        _write_atomically(self.folder / f"step_{step:08d}.pt", lambda partial: torch.save(content, partial))
        for old in self._newest_first()[self.keep :]:
            old.unlink()

    def find(self, resume: str) -> dict[str, Any] | None:
        """The state to go on from, or None to begin: with "auto" the newest point that is whole, else the file named.

        Raises:
            FileNotFoundError: if the named file is not there.
            ValueError: if it is damaged, or the point belongs to another run; the differences are named.
        """
        if resume == "auto":
            for path in self._newest_first():
                try:
                    state = read_resume_point(path)
                except ValueError as error:
                    log.warning("%s; going back to the one before", error)
                    continue
                self._check(path, state)
                return state
            return None
        state = read_resume_point(Path(resume))
        self._check(Path(resume), state)
        return state

    def set_aside(self) -> None:
        """Before a run that begins anew: move what an earlier run left out of the way, into a folder of its own."""
        if self._newest_first():
            number = 1
            while (other := self.folder.with_name(f"{self.folder.name}_before_{number}")).exists():
                number += 1
            os.replace(self.folder, other)
            log.info("the resume points of an earlier run are now in %s", other)

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step_*.pt"), reverse=True)

    def _check(self, path: Path, state: Mapping[str, Any]) -> None:
        there, here = json.loads(state["identity"]), json.loads(json.dumps(dict(self.identity)))
        names = sorted(there.keys() | here.keys())
        differences = [
            f"{shorten(name)} is {quoted(there.get(name))} there and {quoted(here.get(name))} here"
            for name in names
            if there.get(name) != here.get(name)
        ]
        if differences:
            raise ValueError(
                f"{path}: is of another run: {'; '.join(differences)}; use its settings, or another --output_dir"
            )


def read_resume_point(path: Path) -> dict[str, Any]:
    """All that is in a resume point; raises FileNotFoundError, or ValueError if it is damaged or something else."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such resume point; --resume takes auto or a step_*.pt that training wrote")
    try:
        with zipfile.ZipFile(path) as archive:  # torch's format; its reader does not look at the checksums
            damaged = archive.testzip()
        if damaged is None:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can fail in any way
        raise ValueError(f"{path}: is damaged ({shorten(str(error), 160)})") from error
    if damaged is not None:
        raise ValueError(f"{path}: is damaged (the checksum of {shorten(damaged)} is wrong)")
    if not isinstance(state, dict) or state.get("format") != RESUME_FORMAT:
        raise ValueError(f"{path}: is no resume point of this project")
    return state
