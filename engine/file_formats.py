"""Which of the files that a run is given is which, and the flag that takes it.

Three flags take weights: `--pretrained_clip_name` a CLIP, `--init_model` what was trained from one, `--resume` a resume
point. A file given to the wrong one is told by what is in it, and the error names the right flag.
"""

import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

FORMAT = "stop-video checkpoint 1"
RESUME_FORMAT = "stop-video resume point 2"
RESUME_FORMATS = ("stop-video resume point 1", RESUME_FORMAT)  # with those of earlier versions

FLAG_OF = {
    "a checkpoint of this project": "--init_model",
    "a checkpoint of CLIP4Clip's, DGL's or STOP's released code": "--init_model",
    "a resume point of this project": "--resume",
    "CLIP's own weights": "--pretrained_clip_name",
}
# Parts of keys that only CLIP itself has, in OpenAI's and open_clip's names, Hugging Face's and this project's.
OF_CLIP = ("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight")
NESTED = ("state_dict", "model_state_dict", "model")  # where training scripts put the weights


def takes_it(path: Path, given_to: str) -> str:
    """How the error about a file given to the flag `given_to` goes on: "; it is ..., which --flag takes", or nothing
    where the file is not told or is given to its own flag."""
    kind = kind_of_weights(path)
    flag = FLAG_OF.get(kind or "", given_to)
    return "" if flag == given_to else f"; it is {kind}, which {flag} takes"


def refuse_other_kind(path: Path, flag: str) -> None:
    """Raises ValueError for a file that `flag` does not take and another flag does; a folder or an unknown file
    passes."""
    if path.is_file() and (other := takes_it(path, flag)):
        raise ValueError(f"{path}: {flag} does not take this file{other}")


def kind_of_weights(path: Path) -> str | None:
    """One of FLAG_OF's kinds, told by the file's header and the names in it; None for anything else."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                metadata, names = file.metadata() or {}, list(file.keys())
        except (SafetensorError, OSError):
            return None
        return "a checkpoint of this project" if metadata.get("format") == FORMAT else _kind_of_names(names)
    if _is_torchscript(path):
        return "CLIP's own weights"
    try:
        content: Any = torch.load(path, map_location="meta", weights_only=True)
    except Exception:  # bytes that are no such file can fail in any way
        return None
    if not isinstance(content, Mapping):
        return None
    if content.get("format") in RESUME_FORMATS:
        return "a resume point of this project"
    nested = next((content[name] for name in NESTED if isinstance(content.get(name), Mapping)), content)
    return _kind_of_names([name for name in nested if isinstance(name, str)])


def _kind_of_names(names: Collection[str]) -> str | None:
    plain = [name.removeprefix("module.") for name in names]
    if any(name.startswith("clip.") for name in plain):
        return "a checkpoint of CLIP4Clip's, DGL's or STOP's released code"
    return "CLIP's own weights" if any(name in OF_CLIP for name in plain) else None


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
