"""Trained CLIP weights from a file, a folder or a name, as a `modules.clip.CLIP`.

Four kinds of source are told apart by what is in them: OpenAI's published archives (TorchScript, of which only the
tensors are used), torch state dicts, .safetensors, and Hugging Face `CLIPModel` files and folders. All are first
brought to OpenAI's key names, where sizes are inferred and every name is checked, and then to the names of
`modules/clip.py`. Half precision becomes float32.

Shapes: P patches, L text positions, D width of a tower, E joint embedding, V vocabulary.
"""

import hashlib
import json
import math
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from modules.clip import ACTIVATIONS, ARCHITECTURES, CLIP, CLIPArchitecture
from modules.seal import check_archive, check_sealed_file

State = dict[str, Tensor]

OPENAI_URL = "https://openaipublic.azureedge.net/clip/models"


class Release(NamedTuple):
    """Where one size of CLIP was published: OpenAI's file, the sha256 in its URL, the Hugging Face folder."""

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

# What OpenAI's archives hold besides weights, and the index buffers of older Hugging Face files.
NOT_WEIGHTS = {
    "input_resolution",
    "context_length",
    "vocab_size",
    "text_model.embeddings.position_ids",
    "vision_model.embeddings.position_ids",
}
HUGGING_FACE_FILES = ("model.safetensors", "pytorch_model.bin")

# Beginnings of keys: OpenAI's, ours. All other keys are the same on both sides.
OPENAI_TO_OURS = {
    "visual.transformer.resblocks.": "visual.blocks.",
    "transformer.resblocks.": "text.blocks.",
    "token_embedding.": "text.token_embedding.",
    "positional_embedding": "text.positional_embedding",
    "ln_final.": "text.ln_final.",
    "text_projection": "text.text_projection",
}
HUGGING_FACE_TO_OPENAI = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.": "visual.conv1.",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",  # spelled so in every release
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    "visual_projection.weight": "visual.proj",
    "text_model.embeddings.token_embedding.": "token_embedding.",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "text_model.final_layer_norm.": "ln_final.",
    "text_projection.weight": "text_projection",
}
HUGGING_FACE_BLOCK_PARTS = {
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}


@dataclass(frozen=True)
class StatedFacts:
    """What a source says about its network that cannot be seen in the weights; None where it says nothing."""

    activation: str | None = None
    vision_heads: int | None = None
    text_heads: int | None = None


def load_clip(
    path_or_name: str | Path,
    pretrained_dir: str | Path | None = None,
    activation: str | None = None,
    check_sha256: bool = True,
) -> CLIP:
    """Load trained weights: float32, on the CPU, in evaluation mode, every parameter trainable.

    Args:
        path_or_name: a file, a Hugging Face folder, a name in `RELEASES`, or a file's name in pretrained_dir.
        pretrained_dir: where names are looked up, under OpenAI's file names and the Hugging Face folder names.
        activation: "quick_gelu" or "gelu", for a source that states none; left out, quick_gelu is taken. A Hugging Face
            config.json and the metadata {"activation": ...} of a .safetensors file do state it.
        check_sha256: compare an archive that bears the name of a published OpenAI file with the published hash.

    Raises:
        FileNotFoundError: no such source; says what was looked for and where to get it.
        ValueError: the source is of another kind or damaged, keys are missing, surplus or wrongly shaped (the
            first 10 of each are named, more are counted), or it states another activation.
    """
    path = find_weights(path_or_name, pretrained_dir)
    if check_sha256:
        _check_sha256(path)
    state = read_state_dict(path)
    facts = _stated_facts(path, state)
    try:
        if activation and facts.activation and activation != facts.activation:
            raise ValueError(f"it states that its activation is {facts.activation}, and {activation} was asked for.")
        return _build(state, facts, activation or facts.activation or "quick_gelu")
    except ValueError as error:
        raise ValueError(f"{path} cannot be loaded as CLIP weights: {error}") from error


def architecture_of(path_or_name: str | Path, pretrained_dir: str | Path | None = None) -> CLIPArchitecture:
    """The sizes of a CLIP: of a known name without any file, of anything else from its weights, as in `load_clip`."""
    if str(path_or_name) in ARCHITECTURES:
        return ARCHITECTURES[str(path_or_name)]
    return load_clip(path_or_name, pretrained_dir).architecture


def _build(state: State, facts: StatedFacts, activation: str) -> CLIP:
    if _has_hugging_face_keys(state):
        state = from_hugging_face_keys(state)
    elif any(key.startswith("visual.blocks.") for key in state):
        state = to_openai_keys(state)
    architecture = infer_architecture(state, activation, facts.vision_heads, facts.text_heads)
    with torch.device("meta"):
        clip = CLIP(architecture)
    shapes = {key: tensor.shape for key, tensor in to_openai_keys(clip.state_dict()).items()}
    wrong = [
        f"{key} {list(tensor.shape)} instead of {list(shapes[key])}"
        for key, tensor in state.items()
        if tensor.shape != shapes[key]
    ]
    if wrong:
        raise ValueError(f"wrong shapes ({len(wrong)}): {_some(wrong)}.")
    floats = {key: tensor.detach().to("cpu", torch.float32).contiguous() for key, tensor in state.items()}
    clip.load_state_dict(from_openai_keys(floats), assign=True)
    return clip.eval()


def find_weights(path_or_name: str | Path, pretrained_dir: str | Path | None = None) -> Path:
    """The file or folder meant by `load_clip`'s arguments; FileNotFoundError if there is none."""
    if Path(path_or_name).exists():
        return Path(path_or_name)
    name = str(path_or_name)
    folder = Path(pretrained_dir) if pretrained_dir is not None else None
    if name not in RELEASES:
        if folder is not None and (folder / name).exists():
            return folder / name
        raise FileNotFoundError(
            f"There are no CLIP weights at {name}{f' nor at {folder / name}' if folder else ''}; "
            f"give a file, a Hugging Face folder or one of {', '.join(RELEASES)}."
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


def _check_sha256(path: Path) -> None:
    published = {release.file: release.sha256 for release in RELEASES.values()}.get(path.name)
    # A user's own fine-tuned state dict may well be called ViT-B-32.pt; only OpenAI's is a TorchScript archive.
    if published is None or not _is_torchscript(path):
        return
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    if digest.hexdigest() != published:
        raise ValueError(
            f"{path} is not the file OpenAI published under this name (sha256 {digest.hexdigest()[:12]}..., published "
            f"{published[:12]}...): download it again, or rename it if it is meant to differ."
        )


def _is_torchscript(path: Path) -> bool:
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_state_dict(path: str | Path) -> State:
    """The tensors of a weights file or Hugging Face folder under the names they have there.

    Reads TorchScript archives, torch files (tensors only; also {"state_dict": ...}) and .safetensors. What is no weight
    (sizes in OpenAI's archives, index buffers of Hugging Face) is left out. Raises FileNotFoundError if nothing is
    there and ValueError if it is none of these or damaged, as far as it has a checksum (`modules.seal`).
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no weights file {path}.")
    if path.is_dir():
        return {key: tensor for file in _files_of_folder(path) for key, tensor in read_state_dict(file).items()}
    loaded: Any
    check_archive(path)
    try:
        if path.suffix == ".safetensors":
            loaded = load_file(path)
        elif _is_torchscript(path):
            with warnings.catch_warnings():  # torch discourages the format, but it is the one OpenAI published
                warnings.simplefilter("ignore", FutureWarning)
                loaded = torch.jit.load(str(path), map_location="cpu").state_dict()
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # bytes that are no pickle can fail in any way
        raise ValueError(
            f"{path} is no weights file (a TorchScript archive, a torch file of nothing but tensors, or .safetensors); "
            f"if it was downloaded, download it again."
        ) from error
    if path.suffix == ".safetensors":
        check_sealed_file(path, loaded)
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} holds a {type(loaded).__name__} and not a state dict.")
    state = {key: value for key, value in loaded.items() if key not in NOT_WEIGHTS}
    others = [str(key) for key, value in state.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if others:
        raise ValueError(
            f"{path} is no state dict, for some entries are no named tensors ({len(others)}): {_some(others)}."
        )
    return state


def _files_of_folder(folder: Path) -> list[Path]:
    """The weight files of a Hugging Face folder: one, or the shards its index lists."""
    for name in HUGGING_FACE_FILES:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = sorted(set(_read_json(index).get("weight_map", {}).values()))
            absent = [shard for shard in shards if not (folder / shard).is_file()]
            if absent or not shards:
                raise FileNotFoundError(
                    f"{folder} lacks files its {index.name} lists: {_some(absent) or 'none listed'}."
                )
            return [folder / shard for shard in shards]
    raise FileNotFoundError(
        f"{folder} holds no weights: looked for {' and '.join(HUGGING_FACE_FILES)}, whole or in shards."
    )


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no JSON object.")
    return content


def _has_hugging_face_keys(state: Mapping[str, Any]) -> bool:
    return any(key.startswith(("text_model.", "vision_model.")) for key in state)


def _stated_facts(path: Path, state: State) -> StatedFacts:
    if _has_hugging_face_keys(state):
        config = (path if path.is_dir() else path.parent) / "config.json"
        if config.is_file():
            return _facts_of_config(config)
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return StatedFacts(activation=(file.metadata() or {}).get("activation"))
    return StatedFacts()


def _facts_of_config(path: Path) -> StatedFacts:
    """Read a Hugging Face `CLIPConfig`, which may leave out what equals its defaults (those of ViT-B/32)."""
    config = _read_json(path)
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    activations = [tower.get("hidden_act", "quick_gelu") for tower in (vision, text)]
    if activations[0] != activations[1] or activations[0] not in ACTIVATIONS:
        raise ValueError(
            f"{path} states the activations {activations[0]} (vision) and {activations[1]} (text); "
            f"both towers need the same one, of {' and '.join(ACTIVATIONS)}."
        )
    for tower in (vision, text):
        if not math.isclose(tower.get("layer_norm_eps", 1e-5), 1e-5):
            raise ValueError(f"{path} states layer_norm_eps {tower['layer_norm_eps']}; CLIP's is 1e-05.")
    return StatedFacts(activations[0], vision.get("num_attention_heads", 12), text.get("num_attention_heads", 8))


def from_openai_keys(state: Mapping[str, Tensor]) -> State:
    """OpenAI's key names -> those of `modules.clip.CLIP`; the tensors, and keys that neither has, stay as they are."""
    return {_rename_start(key, OPENAI_TO_OURS): tensor for key, tensor in state.items()}


def to_openai_keys(state: Mapping[str, Tensor]) -> State:
    """The key names of `modules.clip.CLIP` -> OpenAI's: the inverse of `from_openai_keys`."""
    return {to_openai_key(key): tensor for key, tensor in state.items()}


def to_openai_key(key: str) -> str:
    """One key name of `modules.clip.CLIP` -> OpenAI's."""
    return _rename_start(key, {ours: openai for openai, ours in OPENAI_TO_OURS.items()})


def from_hugging_face_keys(state: Mapping[str, Tensor]) -> State:
    """Keys and layout of a Hugging Face `CLIPModel` -> OpenAI's.

    The projections are transposed, [E, D] -> [D, E], and a block's q, k and v joined, three [D, D] -> [3 D, D].
    Unknown keys stay as they are. Raises ValueError naming q, k or v where one is absent or shaped unlike the others.
    """
    converted: State = {}
    faults = []
    for key, tensor in state.items():
        if key in NOT_WEIGHTS:
            continue
        renamed = _rename_start(key, HUGGING_FACE_TO_OPENAI)
        for theirs, openai in HUGGING_FACE_BLOCK_PARTS.items():
            renamed = renamed.replace(theirs, openai)
        if match := re.fullmatch(r"(.+)\.self_attn\.[qkv]_proj\.(weight|bias)", renamed):
            joined = f"{match[1]}.attn.in_proj_{match[2]}"
            if joined in converted:
                continue
            parts = [re.sub(r"[qkv](?=_proj\.(weight|bias)$)", letter, key) for letter in "qkv"]
            present = [state[part] for part in parts if part in state]
            faults += [f"{part} is missing" for part in parts if part not in state]
            if len({part.shape for part in present}) > 1:
                faults.append(f"{', '.join(parts)} have unlike shapes")
            else:
                converted[joined] = torch.cat(present)
        else:
            transposed = renamed in ("visual.proj", "text_projection") and tensor.dim() == 2
            converted[renamed] = tensor.T if transposed else tensor
    if faults:
        raise ValueError(f"{_some(list(dict.fromkeys(faults)))}.")
    return converted


def _rename_start(key: str, starts: Mapping[str, str]) -> str:
    for old, new in starts.items():
        if key.startswith(old):
            return new + key[len(old) :]
    return key


def _some(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def infer_architecture(
    state: Mapping[str, Tensor],
    activation: str = "quick_gelu",
    vision_heads: int | None = None,
    text_heads: int | None = None,
) -> CLIPArchitecture:
    """Read all sizes from weights under OpenAI's names; heads leave no trace there and default to one per 64 of width.

    Raises ValueError if keys are missing or surplus (the first 10 of each are named, more are counted), if it is no
    CLIP or one with a ResNet, and if the tensors that give the sizes do not have the right number of dimensions.
    """
    vision_layers = _count_blocks(state, "visual.transformer.resblocks.")
    text_layers = _count_blocks(state, "transformer.resblocks.")
    _check_names(state, vision_layers, text_layers)
    sizing = {
        "visual.conv1.weight": "[D, 3, patch, patch]",
        "visual.positional_embedding": "[1 + P, D]",
        "token_embedding.weight": "[V, D]",
        "positional_embedding": "[L, D]",
        "text_projection": "[D, E]",
    }
    for key, layout in sizing.items():
        if state[key].dim() != len(layout.split(",")):
            raise ValueError(f"its {key} has shape {list(state[key].shape)} instead of {layout}.")
    vision_width, _, patch_size, _ = state["visual.conv1.weight"].shape
    patches = len(state["visual.positional_embedding"]) - 1
    grid = math.isqrt(max(patches, 0))
    if grid < 1 or grid**2 != patches:
        raise ValueError(f"its visual.positional_embedding is for {patches} patches, which make no square.")
    vocab_size, text_width = state["token_embedding.weight"].shape
    return CLIPArchitecture(
        embed_dim=state["text_projection"].shape[1],
        image_size=grid * patch_size,
        patch_size=patch_size,
        vision_width=vision_width,
        vision_layers=vision_layers,
        vision_heads=vision_heads or max(1, vision_width // 64),
        context_length=len(state["positional_embedding"]),
        vocab_size=vocab_size,
        text_width=text_width,
        text_layers=text_layers,
        text_heads=text_heads or max(1, text_width // 64),
        activation=activation,
    )


def _count_blocks(state: Mapping[str, Tensor], start: str) -> int:
    """One more than the highest block number, so that a gap below it is found missing."""
    numbers = [re.match(r"\d+", key[len(start) :]) for key in state if key.startswith(start)]
    return 1 + max((int(number[0]) for number in numbers if number), default=-1)


def _check_names(state: Mapping[str, Tensor], vision_layers: int, text_layers: int) -> None:
    if any(key.startswith("visual.layer1.") for key in state):
        raise ValueError("its vision tower is a ResNet, and only CLIPs with a vision transformer are supported.")
    with torch.device("meta"):
        smallest = CLIP(CLIPArchitecture(1, 1, 1, 1, vision_layers, 1, 1, 1, 1, text_layers, 1))
    expected = to_openai_keys(smallest.state_dict())
    missing = [key for key in expected if key not in state]
    surplus = [key for key in state if key not in expected]
    if not expected.keys() & state.keys():
        raise ValueError(f"none of its keys is one of CLIP's (it has {_some(surplus, 3) or 'none'}).")
    complaints = []
    if missing:
        complaints.append(f"missing keys ({len(missing)}): {_some(missing)}")
    if surplus:
        complaints.append(f"surplus keys ({len(surplus)}): {_some(surplus)}")
    if complaints:
        raise ValueError(f"in OpenAI's names, {'; '.join(complaints)}.")


def backbone_sha256(clip: CLIP) -> str:
    """Hex digest over the names, dtypes, shapes and bytes of all tensors, whatever device they are on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(clip.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
