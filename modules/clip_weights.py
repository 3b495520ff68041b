"""Loading trained CLIP weights from a file, a folder or a name, as a `modules.clip.CLIP` with its `Backbone`.

There are five kinds of source, recognised by their content: OpenAI's published archives (TorchScript; only the tensors
are used), torch state dicts, .safetensors, and the folders of Hugging Face's models and of open_clip. All keys are
first renamed to OpenAI's, from which sizes are inferred and every name is checked, and then to those of
`modules/clip.py`. Half precision becomes float32. The source or the user must state what weights do not show, above all
the activation. The loader never guesses it, because a wrong guess would run as another network.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from modules.backbones import (
    ARCHITECTURES,
    WIDEST_WITH_KNOWN_HEADS,
    Backbone,
    CLIPArchitecture,
    Preprocessing,
    StatedFacts,
)
from modules.clip import CLIP
from modules.open_clip_names import is_open_clip_name, registered_facts, registered_file
from modules.openai_archive import calls_gelu, is_archive
from modules.quoting import some
from modules.seal import hash_tensors
from modules.siglip_names import from_siglip_keys, has_siglip_keys
from modules.timm_names import from_timm_keys, has_timm_keys
from modules.undrawn import undrawn
from modules.weight_facts import stated_facts
from modules.weight_files import metadata_of, places_of_tokenizer, read_state_dict
from modules.weight_names import (
    State,
    from_hugging_face_keys,
    from_openai_keys,
    has_hugging_face_keys,
    to_openai_key,
    to_openai_keys,
)
from modules.weight_sizes import complain, infer_architecture

__all__ = [
    "RELEASES", "architecture_of", "backbone_of", "backbone_sha256", "find_weights", "from_hugging_face_keys",
    "from_openai_keys", "infer_architecture", "load_clip", "read_state_dict", "to_openai_key", "to_openai_keys",
]  # fmt: skip

# What holds for all files that OpenAI published; their sizes are in the weights.
OF_OPENAI = StatedFacts("quick_gelu", **asdict(Preprocessing()))
OPENAI_URL = "https://openaipublic.azureedge.net/clip/models"


class Release(NamedTuple):
    """The place where one size of CLIP was published: OpenAI's file, the sha256 in its URL, the Hugging Face folder."""

    file: str
    sha256: str
    folder: str

    @property
    def url(self) -> str:
        return f"{OPENAI_URL}/{self.sha256}/{self.file}"


RELEASES = {
    "ViT-B/32": Release(
        "ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", "clip-vit-base-patch32"
    ),
    "ViT-B/16": Release(
        "ViT-B-16.pt", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", "clip-vit-base-patch16"
    ),
    "ViT-L/14": Release(
        "ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", "clip-vit-large-patch14"
    ),
    "ViT-L/14@336px": Release(
        "ViT-L-14-336px.pt",
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        "clip-vit-large-patch14-336",
    ),
}


def load_clip(
    path_or_name: str | Path,
    pretrained_dir: str | Path | None = None,
    activation: str | None = None,
    check_sha256: bool = True,
    asked: StatedFacts | None = None,
) -> CLIP:
    """Load trained weights: float32, on the CPU, in evaluation mode, every parameter trainable.

    The CLIP's `backbone` has the facts that belong to the weights.

    Args:
        path_or_name: a file, a Hugging Face or open_clip folder, a name in `RELEASES`, a file's name in pretrained_dir,
            or `open_clip:NAME/TAG`, a name and a tag of open_clip's registry.
        pretrained_dir: where names are looked up, under OpenAI's file names, the Hugging Face folder names and those
            of open_clip's repositories.
        activation: "quick_gelu" or "gelu", for a source that states none: any state dict except those in OpenAI's
            archives. A config.json or open_clip_config.json, and the metadata {"activation": ...} of a .safetensors
            file, do state it.
        check_sha256: compare an archive that has the name of a published OpenAI file with the published hash.
        asked: other facts of the network that a user gives, for a source that does not state them.

    Raises:
        FileNotFoundError: if there is no such source; the message says where to get it.
        ValueError: if the source is of another kind or damaged, if keys are missing, surplus or have a wrong shape (the
            first 10 of each are listed), if it states other facts than asked for, if `modules.clip` cannot run the
            network, or if nothing gives its activation or its number of heads.
    """
    asked = asked or StatedFacts()
    if activation:
        asked = replace(asked, activation=activation)
    path = find_weights(path_or_name, pretrained_dir)
    published = check_sha256 and _check_sha256(path)
    state = read_state_dict(path)
    _refuse_trained_models(path, state)
    try:
        facts = OF_OPENAI if published else _facts_of(str(path_or_name), path, state, asked)
        clip = _build(state, facts.joined_with(asked))
    except ValueError as error:
        raise ValueError(f"{path} cannot be loaded as CLIP weights: {error}") from error
    places = places_of_tokenizer(clip.backbone.tokens, path, pretrained_dir)
    clip.backbone = replace(clip.backbone, tokens=replace(clip.backbone.tokens, places=places))
    return clip


def _facts_of(name: str, path: Path, state: State, asked: StatedFacts) -> StatedFacts:
    """Return the facts that the source states about its network, or that follow from its kind."""
    if is_open_clip_name(name):
        return registered_facts(name)
    facts = stated_facts(path, state)
    if facts.activation is None and is_archive(path):
        # OpenAI's archives never call torch's GELU: they spell out QuickGELU.
        facts = replace(facts, activation="gelu" if calls_gelu(path) else asked.activation or "quick_gelu")
    return facts


def backbone_of(
    path_or_name: str | Path, pretrained_dir: str | Path | None = None, asked: StatedFacts | None = None
) -> Backbone:
    """Return the backbone of a source; a known name needs no file, anything else is read as `load_clip` reads it."""
    name, asked = str(path_or_name), asked or StatedFacts()
    if name in ARCHITECTURES:
        architecture = replace(ARCHITECTURES[name], activation=asked.activation or "quick_gelu")
        return asked.backbone(architecture)
    if is_open_clip_name(name):
        facts = registered_facts(name).joined_with(asked)
        assert facts.architecture is not None  # the registry says all of it
        return facts.backbone(facts.architecture)
    return load_clip(path_or_name, pretrained_dir, asked=asked).backbone


def architecture_of(path_or_name: str | Path, pretrained_dir: str | Path | None = None) -> CLIPArchitecture:
    """Return the sizes of a CLIP as `backbone_of` does. A missing activation is taken as OpenAI's, so never run weights
    with the result."""
    if str(path_or_name) in ARCHITECTURES or is_open_clip_name(path_or_name):
        return backbone_of(path_or_name, pretrained_dir).architecture
    path = find_weights(path_or_name, pretrained_dir)
    state = read_state_dict(path)
    facts = _facts_of(str(path_or_name), path, state, StatedFacts())
    if facts.architecture is not None and not _shows_its_sizes(state, facts):
        return facts.architecture
    return _inferred(_in_openai_keys(state), facts)


def _inferred(state: State, facts: StatedFacts) -> CLIPArchitecture:
    """Return the sizes in weights with OpenAI's names, and the parts that only their source can state."""
    sizes = infer_architecture(state, facts.activation or "quick_gelu", facts.vision_heads, facts.text_heads)
    return replace(sizes, text=facts.text or sizes.text)


def _shows_its_sizes(state: State, facts: StatedFacts) -> bool:
    """Return whether the shapes of the weights show the sizes of the towers, which are then made as CLIP's."""
    stated = facts.architecture is not None and not facts.architecture.is_plain
    return not (has_timm_keys(state) or has_siglip_keys(state) or stated)


def _in_openai_keys(state: State) -> State:
    if has_hugging_face_keys(state):
        return from_hugging_face_keys(state)
    return to_openai_keys(state) if any(key.startswith("visual.blocks.") for key in state) else state


def _build(state: State, facts: StatedFacts) -> CLIP:
    if not _shows_its_sizes(state, facts):
        return _build_as_stated(state, facts)
    in_hugging_face_keys, state = has_hugging_face_keys(state), _in_openai_keys(state)
    architecture = _inferred(state, facts)
    with undrawn():
        clip = CLIP(architecture, facts.backbone(architecture))
    shapes = {key: tensor.shape for key, tensor in to_openai_keys(clip.state_dict()).items()}
    wrong = [
        f"{key} {list(tensor.shape)} instead of {list(shapes[key])}"
        for key, tensor in state.items()
        if tensor.shape != shapes[key]
    ]
    if wrong:
        raise ValueError(f"wrong shapes ({len(wrong)}): {some(wrong)}.")
    _check_facts(architecture, facts, in_hugging_face_keys)
    floats = {key: tensor.detach().to("cpu", torch.float32).contiguous() for key, tensor in state.items()}
    clip.load_state_dict(from_openai_keys(floats), assign=True)
    return clip.eval()


def _build_as_stated(state: State, facts: StatedFacts) -> CLIP:
    """Build a model with other towers than CLIP's; its sizes are stated, because the weights do not show them all."""
    architecture = facts.architecture
    if architecture is None:
        raise ValueError(
            "its vision tower is one of timm (SigLIP, PE, ...), whose heads and pooling the weights do not show: pass "
            "open_clip:NAME/TAG, or the folder with its open_clip_config.json or config.json."
        )
    with undrawn():
        clip = CLIP(architecture, facts.backbone(architecture))
    own = clip.state_dict()
    if has_siglip_keys(state):
        state = from_siglip_keys(state)
    else:
        state = from_timm_keys(state) if has_timm_keys(state) else from_openai_keys(_in_openai_keys(state))
    complain([key for key in own if key not in state], [key for key in state if key not in own], "our names")
    wrong = [
        f"{key} {list(tensor.shape)} instead of {list(own[key].shape)}"
        for key, tensor in state.items()
        if tensor.shape != own[key].shape
    ]
    if wrong:
        raise ValueError(f"wrong shapes ({len(wrong)}): {some(wrong)}.")
    floats = {key: tensor.detach().to("cpu", torch.float32).contiguous() for key, tensor in state.items()}
    clip.load_state_dict(floats, assign=True)
    return clip.eval()


def _check_facts(architecture: CLIPArchitecture, facts: StatedFacts, in_hugging_face_keys: bool) -> None:
    """Raise ValueError if a fact is missing that the weights need, or if their sizes differ from those stated."""
    if facts.activation is None:
        config = "put its config.json beside it, or " if in_hugging_face_keys else ""
        raise ValueError(
            "it does not say with which activation it was trained, and with the other one it would load and give wrong "
            f"numbers: {config}pass --clip_activation quick_gelu (OpenAI's, MetaCLIP's and most DFN weights) or gelu "
            "(LAION's, DataComp's and most others of open_clip)."
        )
    for tower, width, heads in (
        ("vision", architecture.vision_width, facts.vision_heads),
        ("text", architecture.text_width, facts.text_heads),
    ):
        if heads is None and width > WIDEST_WITH_KNOWN_HEADS:
            raise ValueError(
                f"it does not say how many heads its {tower} tower has, and at width {width} published ones differ: "
                f"pass --clip_{tower}_heads (16 for open_clip's ViT-H-14), or give the folder with its config."
            )
    if facts.image_size not in (None, architecture.image_size):
        raise ValueError(
            f"its configuration states images of {facts.image_size} pixels, and its weights are for "
            f"{architecture.image_size}."
        )
    if facts.architecture is not None:
        unlike = [
            f"{item.name} {getattr(architecture, item.name)} and not {getattr(facts.architecture, item.name)}"
            for item in fields(architecture)
            if getattr(architecture, item.name) != getattr(facts.architecture, item.name)
        ]
        if unlike:
            raise ValueError(f"its weights have other sizes than its configuration says: {', '.join(unlike)}.")


def _refuse_trained_models(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError for a checkpoint of a whole method, which another flag takes."""
    own = metadata_of(path).get("format", "").startswith("stop-video checkpoint")
    if own or any(key.startswith("clip.") for key in state):
        kind = "a checkpoint of this project" if own else "a trained model around a CLIP, as CLIP4Clip's code writes it"
        raise ValueError(
            f"{path} is {kind}, not a CLIP alone: pass it with --init_model, and with --pretrained_clip_name the CLIP "
            f"it was trained on."
        )


def find_weights(path_or_name: str | Path, pretrained_dir: str | Path | None = None) -> Path:
    """Return the file or folder that `load_clip`'s arguments name; FileNotFoundError if there is none."""
    name = str(path_or_name)
    folder = Path(pretrained_dir) if pretrained_dir is not None else None
    if is_open_clip_name(name):
        return registered_file(name, folder)
    if Path(path_or_name).exists():
        return Path(path_or_name)
    if name not in RELEASES:
        if folder is not None and (folder / name).exists():
            return folder / name
        beside = f" nor at {folder / name}" if folder and not Path(name).is_absolute() else ""
        raise FileNotFoundError(
            f"There are no CLIP weights at {name}{beside}; "
            f"give a file, a folder of Hugging Face or open_clip, one of {', '.join(RELEASES)}, or open_clip:NAME/TAG."
        )
    release = RELEASES[name]
    if folder is None:
        raise FileNotFoundError(
            f"{name} names weights but no folder to find them in; get {release.url} and give its path."
        )
    stem = Path(release.file).stem
    candidates = [release.file, f"{stem}.safetensors", f"{stem}.pth", f"{stem}.bin", stem, release.folder]
    for candidate in candidates:
        if (folder / candidate).exists():
            return folder / candidate
    raise FileNotFoundError(
        f"{folder} holds no weights of {name} (looked for {', '.join(candidates)}); download {release.url} into it."
    )


def _check_sha256(path: Path) -> bool:
    """Return whether this is a file that OpenAI published; ValueError if it only has the name of one."""
    published = {release.file: release.sha256 for release in RELEASES.values()}.get(path.name)
    # A user may call a fine-tuned state dict ViT-B-32.pt; only OpenAI's is a TorchScript archive.
    if published is None or not is_archive(path):
        return False
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    if digest.hexdigest() != published:
        raise ValueError(
            f"{path} is not the file OpenAI published under this name (sha256 {digest.hexdigest()[:12]}..., published "
            f"{published[:12]}...): download it again, or rename it if it is meant to differ."
        )
    return True


def backbone_sha256(clip: CLIP) -> str:
    """Return the hex digest of the names, dtypes, shapes and bytes of all tensors, on any device."""
    digest = hashlib.sha256()
    hash_tensors(digest, clip.state_dict())
    return digest.hexdigest()
