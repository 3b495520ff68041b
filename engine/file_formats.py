"""Recognises weights files by their content, to name the right flag if a file was given to the wrong one.

Three flags take weights: `--pretrained_clip_name` a CLIP, `--init_model` a trained model, `--resume` a resume point.
"""

import pickletools
import zipfile
from collections.abc import Collection
from pathlib import Path

from safetensors import SafetensorError, safe_open

FORMAT = "stop-video checkpoint 1"
RESUME_FORMAT = "stop-video resume point 2"
RESUME_FORMATS = ("stop-video resume point 1", RESUME_FORMAT)  # earlier versions included

FLAG_OF = {
    "a checkpoint of this project": "--init_model",
    "a checkpoint of CLIP4Clip's, DGL's, TC-CLIP's or another released code": "--init_model",
    "a resume point of this project": "--resume",
    "CLIP's own weights": "--pretrained_clip_name",
}
# Names of tensors that only CLIP has: OpenAI's, open_clip's for other towers, Hugging Face's.
OF_CLIP = (
    "visual.conv1.weight",
    "visual.trunk.patch_embed.proj.weight",
    "vision_model.embeddings.patch_embedding.weight",
)
OF_SCRIPTED_CLIP = {"visual", "conv1", "token_embedding"}  # a TorchScript archive has the parts of names separately
OLD_PICKLES = 4  # in a torch file that is not a zip: a magic number, a version, the machine, and the saved object
MOST_BYTES = 1 << 26  # for names and structure; larger entries are not read


def takes_it(path: Path, given_to: str) -> str:
    """Return the end of an error about a file given to the flag `given_to`: "; it is ..., which --flag takes".

    Empty if the kind of the file is unknown or the flag is right.
    """
    kind = kind_of_weights(path)
    flag = FLAG_OF.get(kind or "", given_to)
    return "" if flag == given_to else f"; it is {kind}, which {flag} takes"


def refuse_other_kind(path: Path, flag: str) -> None:
    """Raise ValueError if another flag takes this file; a folder or an unknown file passes."""
    if path.is_file() and (other := takes_it(path, flag)):
        raise ValueError(f"{path}: {flag} does not take this file{other}")


def kind_of_weights(path: Path) -> str | None:
    """Return the kind of the file, a key of FLAG_OF, from its header and tensor names; None if it is unknown."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                metadata, names = file.metadata() or {}, list(file.keys())
        except (SafetensorError, OSError):
            return None
        return "a checkpoint of this project" if metadata.get("format") == FORMAT else _kind_of_names(names)
    try:
        texts = _texts_of_torch_file(path)
    except Exception:  # arbitrary bytes can fail in any way
        return None
    if not texts.isdisjoint(RESUME_FORMATS):
        return "a resume point of this project"
    return _kind_of_names(texts)


def _texts_of_torch_file(path: Path) -> set[str]:
    """Return all strings in a file that torch saved, including tensor names; executes nothing in the file."""
    texts: set[str] = set()
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            for _ in range(OLD_PICKLES):
                texts |= {text for _, text, _ in pickletools.genops(file) if isinstance(text, str)}
            return texts
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if name.endswith("/data.pkl") and archive.getinfo(name).file_size <= MOST_BYTES:
                    texts |= {text for _, text, _ in pickletools.genops(archive.read(name)) if isinstance(text, str)}
    return texts


def _kind_of_names(names: Collection[str]) -> str | None:
    plain = [name.removeprefix("module.") for name in names]
    if any(name.startswith(("clip.", "image_encoder.")) or name.endswith("_time_embed.weight") for name in plain):
        return "a checkpoint of CLIP4Clip's, DGL's, TC-CLIP's or another released code"
    is_clip = any(name in OF_CLIP for name in plain) or set(plain) >= OF_SCRIPTED_CLIP
    return "CLIP's own weights" if is_clip else None
