"""Weights by open_clip's names, `open_clip:NAME/TAG`: its registry has the facts of the network and the file's place.

The file is looked up in a folder of ours, then in the cache of the Hugging Face Hub. Last, open_clip downloads it.
"""

import difflib
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from modules.backbones import StatedFacts
from modules.weight_facts import facts_of_open_clip
from modules.weight_files import OPEN_CLIP_FILES

PREFIX = "open_clip:"
ENDINGS = (".safetensors", ".pt", ".pth", ".bin")
OPEN_CLIP_CACHE = Path("~/.cache/clip")  # where open_clip puts what it downloads from a URL

log = logging.getLogger("stop")


def is_open_clip_name(path_or_name: str | Path) -> bool:
    return str(path_or_name).startswith(PREFIX)


def registered_names() -> list[tuple[str, str]]:
    """Return name and tag of all published weights in open_clip's registry, in its order."""
    import open_clip  # takes seconds

    return list(open_clip.list_pretrained())


def registered_facts(name: str) -> StatedFacts:
    """Return what open_clip's registry states of `open_clip:NAME/TAG`; needs no file.

    Raises ValueError for a name or tag that is not registered, and for a model that `modules.clip` cannot run.
    """
    model, tag = _registered(name)
    # Most models say GELU whatever their weights were trained with; the tag has the activation of its weights.
    model = model | {"quick_gelu": bool(model.get("quick_gelu") or tag.get("quick_gelu"))}
    try:
        return facts_of_open_clip(model, tag, name)
    except ValueError as error:
        if name in str(error):
            raise
        raise ValueError(f"{name}: {error}") from error


def registered_file(name: str, folder: Path | None) -> Path:
    """Return the weights of `open_clip:NAME/TAG`: in `folder`, else from the Hub, else from the tag's URL.

    Raises:
        ValueError: as `registered_facts`.
        FileNotFoundError: if it is not here and cannot be downloaded; names the file to fetch and its place.
    """
    registered_facts(name)  # refuses what cannot be run, before gigabytes are downloaded
    if (found := local_file(name, folder)) is not None:
        return found
    _, tag = _registered(name)
    repository, file = _hub_place(tag)
    try:
        return _downloaded(tag, repository, file)
    except Exception as error:  # the network and two libraries can fail in many ways
        what = f"{file} of the Hugging Face repository {repository}" if repository else tag.get("url", "its file")
        place = f"{folder or 'the folder of --pretrained_dir'}/{_candidates(name, tag)[0]}"
        raise FileNotFoundError(
            f"{name} is not here and cannot be downloaded ({' '.join(str(error).split())[:200]}): fetch {what} and put "
            f"it at {place}."
        ) from error


def local_file(name: str, folder: Path | None) -> Path | None:
    """Return the weights of `open_clip:NAME/TAG` if they are on this machine, else None; downloads nothing.

    They may be in `folder`, in the cache of the Hub, or in that of open_clip. Raises ValueError for a name or tag that
    is not registered.
    """
    import huggingface_hub

    _, tag = _registered(name)
    if folder is not None:
        for candidate in _candidates(name, tag):
            if (folder / candidate).exists():
                return folder / candidate
    repository, file = _hub_place(tag)
    for wanted in dict.fromkeys((file, *OPEN_CLIP_FILES)) if repository else ():
        cached = huggingface_hub.try_to_load_from_cache(repository, wanted)
        if isinstance(cached, str):
            return Path(cached)
    url = tag.get("url")
    downloaded = OPEN_CLIP_CACHE.expanduser() / str(url).rpartition("/")[2]
    return downloaded if url and downloaded.exists() else None


def _parts(name: str) -> tuple[str, str]:
    model, _, tag = name.removeprefix(PREFIX).rpartition("/")
    if not model or not tag:
        raise ValueError(f"{name} is not of the form {PREFIX}NAME/TAG, as in {PREFIX}ViT-B-32/laion2b_s34b_b79k.")
    return model.replace("/", "-"), tag


def _registered(name: str) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Return the two entries of open_clip's registry: the model's and the tag's."""
    import open_clip  # takes seconds, and only these names need it

    model, tag = _parts(name)
    config = open_clip.get_model_config(model)
    if config is None:
        close = difflib.get_close_matches(model, open_clip.list_models(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "open_clip.list_models() lists them."
        raise ValueError(f"{name}: open_clip {open_clip.__version__} knows no model {model}; {hint}")
    if not open_clip.pretrained.get_pretrained_cfg("ViT-B-32", "openai").get("quick_gelu"):
        raise ValueError(
            f"{name}: open_clip {open_clip.__version__} does not say which activation weights were trained with: "
            "pip install --upgrade open_clip_torch"
        )
    found = open_clip.pretrained.get_pretrained_cfg(model, tag)
    if not found:
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise ValueError(f"{name}: open_clip {open_clip.__version__} knows no tag {tag} of {model}; its tags are: "
                         f"{', '.join(tags) or 'none'}.")  # fmt: skip
    return config, found


def _hub_place(tag: Mapping[str, Any]) -> tuple[str, str]:
    """Return repository and file on the Hub; the registry joins them with a slash and may leave the file out."""
    repository, _, file = str(tag.get("hf_hub") or "").rpartition("/")
    return repository, file or OPEN_CLIP_FILES[0]


def _candidates(name: str, tag: Mapping[str, Any]) -> list[str]:
    """Return the places in a folder where the weights may be; messages recommend the first."""
    model, own = _parts(name)
    repository, file = _hub_place(tag)
    folder = repository.rpartition("/")[2]
    names = [f"{folder}/{place}" for place in dict.fromkeys((file, *OPEN_CLIP_FILES)) if folder]
    names += [f"{stem}{ending}" for stem in (f"{model}-{own}", own) for ending in ENDINGS]
    names += [f"{place}/{weights}" for place in (f"{model}-{own}", own) for weights in OPEN_CLIP_FILES]
    if url := tag.get("url"):
        names.append(str(url).rpartition("/")[2])
    return names


def _downloaded(tag: Mapping[str, Any], repository: str, file: str) -> Path:
    import huggingface_hub
    from open_clip.pretrained import download_pretrained

    if repository:
        # Without this, open_clip's download tries a network that is not there for most of a minute.
        with suppress(huggingface_hub.errors.EntryNotFoundError):  # it may have the other file
            huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repository, file), timeout=10)
    log.info("downloading %s", f"{repository}/{file}" if repository else tag.get("url"))
    return Path(download_pretrained(dict(tag)))
