"""Reading a state dict from a file or folder, with the names it has there, without ever running code from it.

`modules.openai_archive` reads TorchScript archives. From torch files only tensors and plain containers are read; what
training frameworks save beside a state dict, such as mmengine's curves of the loss, has a stand-in without content.
"""

import errno
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from modules.backbones import CLIPS_BYTE_PAIRS, OWN_FILES, Tokens
from modules.openai_archive import is_archive, read_archive
from modules.quoting import shorten, some
from modules.seal import check_archive, check_sealed_file
from modules.weight_names import NOT_WEIGHTS, State

OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
HUGGING_FACE_FILES = ("model.safetensors", "pytorch_model.bin")
KINDS_OF_JSON = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", dict: "an object"}
STATE_DICTS = ("state_dict", "model_state_dict", "model_state")  # keys under which training code saves the weights


class _StandIn(list[Any]):
    """Takes the place of an object in a torch file, so that its code does not run; nothing in it is kept."""

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


def read_state_dict(path: str | Path) -> State:
    """Read the tensors of a weights file, Hugging Face folder or open_clip folder, with the names they have there.

    Reads TorchScript archives, torch files (tensors only, also below "state_dict", "model_state_dict" or "model_state")
    and .safetensors. DistributedDataParallel's prefix "module." is removed. Entries that are not weights (sizes in
    OpenAI's archives, index buffers of Hugging Face) are left out.

    Raises FileNotFoundError if nothing is there, and ValueError if it is none of these or if a checksum shows that it
    is damaged (`modules.seal`).
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no weights file {path}.")
    if path.is_dir():
        return {key: tensor for file in _files_of_folder(path) for key, tensor in read_state_dict(file).items()}
    loaded = _load(path)
    for name in STATE_DICTS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} holds a {type(loaded).__name__} and not a state dict.")
    state = {key: value for key, value in loaded.items() if key not in NOT_WEIGHTS}
    others = [str(key) for key, value in state.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if others:
        raise ValueError(
            f"{path} is not a state dict: some entries are not named tensors ({len(others)}): {some(others)}."
        )
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    return {key: tensor for key, tensor in state.items() if key not in NOT_WEIGHTS}


def _load(path: Path) -> Any:
    """Return the tensors and plain containers in a file."""
    if path.suffix == ".safetensors":
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(_unreadable(path)) from error
        check_sealed_file(path, tensors)
        return tensors
    check_archive(path)
    try:
        if is_archive(path):
            return read_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except OSError as error:
        if error.errno != errno.EINVAL:  # which means a seek to a place that only a damaged file names
            raise
        raise ValueError(_unreadable(path)) from error
    except ValueError as error:
        raise ValueError(f"{path} is not a weights file: {error}") from error
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            content = _load_beside_objects(path)
            if content is not None:
                return content
            raise ValueError(
                f"{path} is not a weights file: it holds Python objects beside tensors, which are not read because "
                f"that would run code. Save the state_dict() of the model alone with torch.save and pass that file."
            ) from error
        raise ValueError(_unreadable(path)) from error
    except Exception as error:  # bytes that are not a pickle can fail in any way
        raise ValueError(_unreadable(path)) from error


def _load_beside_objects(path: Path) -> Mapping[str, Any] | None:
    """Return the content of a torch file in which objects lie beside a state dict, with stand-ins for them.

    None if there is no state dict below one of its usual keys, if it is empty, or if the file is of another kind.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
        with torch.serialization.safe_globals([(_StandIn, name) for name in names]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # arbitrary bytes can fail in any way
        return None
    below = [content.get(name) for name in STATE_DICTS] if isinstance(content, Mapping) else []
    return content if any(isinstance(state, Mapping) and state for state in below) else None


def _unreadable(path: Path) -> str:
    return (
        f"{path} is not a weights file (a TorchScript archive, a torch file of nothing but tensors, or .safetensors), "
        f"or is damaged; if it was downloaded, download it again."
    )


def metadata_of(path: Path) -> dict[str, str]:
    """Return the header's metadata of a .safetensors file; nothing for other files and those that cannot be read."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError:
        return {}


def is_open_clip_folder(path: Path) -> bool:
    """Return whether a folder has open_clip's layout on the Hugging Face Hub: its config and its weights."""
    return (path / OPEN_CLIP_CONFIG).is_file() and any((path / name).is_file() for name in OPEN_CLIP_FILES)


def _files_of_folder(folder: Path) -> list[Path]:
    """Return the weight files of a folder: open_clip's, or Hugging Face's, one file or the shards its index lists."""
    if is_open_clip_folder(folder):
        return [next(folder / name for name in OPEN_CLIP_FILES if (folder / name).is_file())]
    for name in HUGGING_FACE_FILES:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            listed = read_json(index).get("weight_map")
            shards = sorted({str(shard) for shard in listed.values()}) if isinstance(listed, Mapping) else []
            absent = [shard for shard in shards if not (folder / shard).is_file()]
            if absent or not shards:
                raise FileNotFoundError(
                    f"{folder} lacks files its {index.name} lists: {some(absent) or 'none listed'}."
                )
            return [folder / shard for shard in shards]
    raise FileNotFoundError(
        f"{folder} holds no weights: looked for {' and '.join(HUGGING_FACE_FILES)}, whole or in shards, and for "
        f"{' and '.join(OPEN_CLIP_FILES)} with {OPEN_CLIP_CONFIG}."
    )


def places_of_tokenizer(tokens: Tokens, path: Path, pretrained_dir: str | Path | None) -> tuple[str, ...]:
    """Return the folders where the files of a tokenizer may be: that of the weights, and one of pretrained_dir."""
    if tokens.encoding == CLIPS_BYTE_PAIRS:
        return ()
    # Of a single file, the folder may have a tokenizer of other weights, unless files have the names of a repository.
    beside = path.name in (*OPEN_CLIP_FILES, *HUGGING_FACE_FILES) or tokens.encoding == OWN_FILES
    places = [path] if path.is_dir() else [path.parent] if beside else []
    if pretrained_dir is not None and tokens.encoding != OWN_FILES:
        places.append(Path(pretrained_dir) / tokens.encoding.rpartition("/")[2])
    return tuple(dict.fromkeys(str(place.absolute()) for place in places))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; ValueError if the file holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({shorten(str(error))}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object.")
    return content


def check_kinds(fields: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]], source: Path | str) -> None:
    """Raise ValueError if a field of a configuration is of none of its kinds; null is of every kind, true no number.

    A whole number is a number too.
    """
    for name, allowed in kinds.items():
        value = fields.get(name)
        if value is not None and type(value) not in allowed and not (type(value) is int and float in allowed):
            raise ValueError(
                f"{source} states {name} {shorten(json.dumps(value))}; it must be "
                f"{' or '.join(KINDS_OF_JSON[kind] for kind in allowed)}."
            )
