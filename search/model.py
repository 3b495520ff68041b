"""Makes of a checkpoint, or of a bare CLIP, what an index needs: one vector a window, and one a query.

Two models are the same if everything that their vectors depend on is: `Encoder.content` has it, and `Encoder.key` is
its hash. Names and paths do not count.

Shapes: n windows, Q queries, T frames, S image side, E joint embedding.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataloaders.decode import decoder_version
from dataloaders.file_kind import FileKind
from dataloaders.frames import FrameReader
from dataloaders.quoting import quoted, shorten
from engine.checkpoint import differences, read_header
from engine.cli import check_kinds
from engine.config import Config, DataConfig, ModelConfig, sections_with
from engine.data import frame_reader, normalise_for
from engine.evaluate import evaluating
from engine.precision import auto_precision, autocast_for
from engine.preflight import ZeroShotProbe, check_context, check_finite
from engine.tasks.registry import TASKS
from engine.weights import load_weights
from modules.clip_weights import backbone_sha256, load_clip
from modules.methods import METHODS, Method, build_method, method_options
from modules.options import Option, one_of
from modules.seal import content_sha256
from modules.similarity import cosine_similarity, unit
from modules.tokenizer import Tokenizer, find_tokenizer, tokenizer_of
from search.reading import read_picture
from search.store import Model

USUAL_WINDOW = 10.0  # seconds, for models that do not say how long their training clips were
BARE = "clip"  # name of a CLIP without a trained method
SHORTEST = 0.01  # seconds of a window or stride
TEXTS = 50  # encoded at once
SAME = 1e-3  # difference of two cosines, far above rounding errors in fp32 and below any effect of other clips

FRAMES = (  # settings of a `FrameReader` that change which pixels a model sees
    "max_frames", "image_size", "frame_sampling", "frame_stride", "slice_framepos", "feature_framerate",
    "frame_transform", "resize_mode", "interpolation", "short_side",
)  # fmt: skip

Clip = tuple[Tensor, Tensor]  # of a `FrameReader`: video uint8 [T, 3, S, S] and frame_mask bool [T]


class ModelMismatch(ValueError):
    """A model is not the one that an index was made with; the message names the differences."""


@dataclass(frozen=True)
class Source:
    """Where a model comes from: a checkpoint, or only a CLIP by name or path. An index notes it, to find it again.

    `window` and `stride` are in seconds; 0 means the length of the training clips, and half a window. `options` replace
    settings of the checkpoint's method. With `shots`, windows begin and end at cuts that are near.
    """

    checkpoint: str = ""
    pretrained_clip_name: str = ""
    pretrained_dir: str = ""
    window: float = 0.0
    stride: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)
    shots: bool = False


@dataclass(frozen=True)
class Encoder:
    """A model in evaluation mode on its device, with the reader of its frames.

    `content` is what vectors depend on, and `source` where it came from; `noted` are facts that may change the last
    digits of a vector. `untrained` says that it is a bare CLIP. `guessed` says that neither the user nor the checkpoint
    said how long windows are.
    """

    method: Method
    reader: FrameReader
    tokenizer: Tokenizer
    autocast: Callable[[], torch.autocast]
    window: float
    stride: float
    untrained: bool
    content: Mapping[str, Any]
    source: Source
    noted: Mapping[str, str]
    guessed: bool = False
    shots: bool = False

    @cached_property
    def key(self) -> str:
        """Return the hex digest of `content`."""
        return hashlib.sha256(json.dumps(dict(self.content), sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """Return the name that an index gives to this model if the user gives none."""
        return BARE if self.untrained else str(self.content["method"])

    @property
    def facts(self) -> dict[str, Any]:
        """Return what an index keeps of it, for JSON."""
        facts = {"content": dict(self.content), "source": asdict(self.source), "noted": dict(self.noted)}
        return {"dimension": self.method.clip.architecture.embed_dim, **facts}

    def encode_windows(self, clips: Sequence[Clip]) -> np.ndarray:
        """Return one vector of length 1 for each clip, fp32 [n, E]."""
        videos, masks = zip(*clips, strict=True)
        device = self.method.clip.logit_scale.device
        with evaluating(self.method), self.autocast():
            video = normalise_for(self.method.clip, torch.stack(videos).to(device))
            rows = self.method.encode_video(video, torch.stack(masks).to(device))
        return unit(rows).cpu().numpy()

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Return one vector of length 1 for each text, fp32 [Q, E]. Raises ValueError for a text without a word."""
        for text in texts:
            if not self.tokenizer.words(text):
                raise ValueError(f"the query {quoted(text)} has no words: say what happens in the video")
        device = self.method.clip.logit_scale.device
        with evaluating(self.method), self.autocast():
            rows = self.method.encode_text(self.tokenizer(list(texts)).to(device))
        return unit(rows).cpu().numpy()

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return what `encode_text` does of any number of texts, batch by batch."""
        parts = [self.encode_text(texts[first : first + TEXTS]) for first in range(0, len(texts), TEXTS)]
        return np.concatenate(parts)

    def encode_image(self, path: Path) -> np.ndarray:
        """Return the vector of a picture as a clip in which nothing moves, fp32 [1, E]. Raises OSError if there is no
        such file or it cannot be read, and ValueError if it is no picture."""
        _check_is_file("--image", path)
        return self.encode_windows([self.reader.still(read_picture(path), path)])

    def encode_clip(self, path: Path, start: float | None = None, end: float | None = None) -> np.ndarray:
        """Return the vector of a video, or of [start, end) seconds of it, fp32 [1, E]. Raises OSError if there is no
        such file, and VideoError if it is no video that can be read."""
        _check_is_file("--clip", path)
        return self.encode_windows([self.reader(path, start=start, end=end)])

    def check_same(self, model: Model) -> None:
        """Raise ModelMismatch if the vectors of a model in an index are not of this model."""
        if self.key != model.key:
            usual = {"cut": "windows"}  # not noted
            there, here = (_flat(usual | dict(content)) for content in (model.facts["content"], self.content))
            raise ModelMismatch(
                f"the model {shorten(model.name)} of the index is another one: {differences(there, here)}; use the "
                "same settings, or pass --model with another name to keep both side by side"
            )

    def differs_in(self, model: Model) -> str:
        """Return what was noted otherwise when the model came into the index; it may change the last digits."""
        return differences(model.facts["noted"], self.noted)


def _check_is_file(flag: str, path: Path) -> None:
    """Raise OSError for what is no regular file: reading a pipe or a device may never end."""
    name = shorten(str(path), 200)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{flag} {name} does not exist: name a file")
    if not os.path.isfile(path):
        raise OSError(f"{flag} {name} is no regular file: name one")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{flag} {name} cannot be read: check its permissions")


def load_encoder(source: Source, device: torch.device | None = None, probe: bool = True) -> Encoder:
    """Load a model. With `probe`, also check that an index can search its vectors (`check_method`).

    Raises:
        FileNotFoundError: a file of it does not exist.
        ValueError: a file is damaged or another one, or an index cannot search this model.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if bool(source.window < 0 or source.stride < 0):
        raise ValueError("--window and --stride are lengths in seconds: pass numbers above 0")
    torch.manual_seed(0)  # parts that the checkpoint lacks must not differ from run to run
    loaded = _from_checkpoint(source) if source.checkpoint else _bare(source)
    method = loaded.method.to(device)
    window = source.window or loaded.trained_window or USUAL_WINDOW
    stride = source.stride or window / 2
    if min(window, stride) < SHORTEST:
        raise ValueError(
            f"--window {window:g} and --stride {stride:g} are shorter than frames are shown: pass {SHORTEST:g} or more"
        )
    if stride > window:
        raise ValueError(f"--stride {stride:g} is longer than --window {window:g}, which leaves gaps: pass less")
    check_context(loaded.data.max_words, method.clip)
    tokenizer = tokenizer_of(method.clip.backbone, loaded.data.max_words)
    if probe:
        check_method(method, loaded.data.max_frames, loaded.data.max_words)
    precision = auto_precision(device) if loaded.precision == "auto" else loaded.precision
    content = {
        **loaded.content,
        "weights": content_sha256({**method.state_dict(), **method.unsaved_tensors()}, {}),
        "backbone": {name: fact for name, fact in method.clip.backbone.facts().items() if name != "similarity"},
        "frames": {name: getattr(loaded.reader, name) for name in FRAMES},
        "window": window,
        "stride": stride,
    }
    if source.shots:  # only then, so that indexes without it keep their key
        content["cut"] = "shots"
    noted = {"decoder": decoder_version(), "precision": precision}
    return Encoder(
        method, loaded.reader, tokenizer, autocast_for(precision, device), window, stride,
        not source.checkpoint, content, replace(loaded.source, window=window, stride=stride), noted,
        not (source.window or loaded.trained_window),
        source.shots,
    )  # fmt: skip


@dataclass(frozen=True)
class _Loaded:
    """A method with its weights, on the CPU, and the settings it was trained with."""

    method: Method
    data: DataConfig
    reader: FrameReader
    precision: str
    content: dict[str, Any]
    source: Source
    trained_window: float = 0.0


def _from_checkpoint(source: Source) -> _Loaded:
    path = Path(source.checkpoint)
    if path.suffix != ".safetensors" and path.exists():
        raise ValueError(f"--checkpoint {path}: pass a .safetensors file that training with this project wrote")
    header = read_header(path)
    if header.task not in TASKS:
        raise ValueError(
            f"--checkpoint {path}: was trained for the task {quoted(header.task)}; pass one of: {', '.join(TASKS)}"
        )
    task = TASKS[header.task]
    check_kinds(str(path), header.settings, sections_with(task.settings))
    own = header.settings.get("method", ModelConfig.method)
    known = {option.name: option for option in method_options(METHODS[own])} if own in METHODS else {}
    for name in source.options:
        if name not in known:
            raise ValueError(
                f"--{name} is neither a flag of this command nor a setting of the checkpoint's method {own} "
                f"({', '.join(known) or 'which has none'}); --help lists the flags"
            )
    source = replace(source, options={name: _typed(known[name], value) for name, value in source.options.items()})
    places = {name: value for name in ("pretrained_clip_name", "pretrained_dir") if (value := getattr(source, name))}
    config = Config.from_flat(header.settings | dict(source.options) | places, task.settings)
    if (classifier := getattr(config.task, "classifier", "text")) != "text":
        raise ValueError(
            f"--checkpoint {path}: was trained with --classifier {classifier}, whose classes are no texts, so that no "
            "text can be compared with a video: pass a checkpoint of retrieval, or of --classifier text"
        )
    model, data = config.model, config.data
    clip = load_clip(model.pretrained_clip_name, model.pretrained_dir, asked=model.asked_of_clip())
    find_tokenizer(clip, model.pretrained_clip_name)
    method = build_method(model.method, clip, **model.options)
    task.make_loss(config, method)  # freezes the tensors that the checkpoint therefore lacks
    loaded = load_weights(path, method, backbone_sha256(clip), training=False)
    check_finite(method, str(path))
    kind = FileKind.from_facts(header.trained_on)
    precision = config.optim.precision if config.optim.precision_val == "same" else config.optim.precision_val
    source = replace(
        source, checkpoint=str(path.absolute()), pretrained_clip_name=_absolute(model.pretrained_clip_name),
        pretrained_dir=_absolute(model.pretrained_dir),
    )  # fmt: skip
    return _Loaded(
        method.eval(), data, config.task.reader(frame_reader(data, clip.backbone, training=False), "val"), precision,
        {"method": model.method, **dict(model.options), "clip": loaded.backbone_sha256}, source,
        kind.seconds.median if kind else 0.0,
    )  # fmt: skip


def _bare(source: Source) -> _Loaded:
    if source.options:
        raise ValueError(f"--{next(iter(source.options))} is unknown without --checkpoint; --help lists the flags")
    model, data = ModelConfig(), DataConfig()
    name = source.pretrained_clip_name or model.pretrained_clip_name
    folder = source.pretrained_dir or model.pretrained_dir
    clip = load_clip(name, folder)
    find_tokenizer(clip, name)
    check_finite(clip, name)
    data = replace(data, max_words=min(data.max_words, clip.text.context_length))
    sha256, method = backbone_sha256(clip), build_method(model.method, clip)
    source = replace(source, pretrained_clip_name=_absolute(name), pretrained_dir=_absolute(folder))
    reader = frame_reader(data, clip.backbone, training=False)
    return _Loaded(method.eval(), data, reader, "auto", {"method": model.method, "clip": sha256}, source)


def _typed(option: Option, value: Any) -> Any:
    """Return the value of a method's setting; a text from the command line as what the setting takes."""
    if not isinstance(value, str) or option.type not in (bool, int, float):
        return value
    if option.type is bool:
        one_of(option.name, value, ("true", "false"))
        return value == "true"
    try:
        return option.type(value)
    except ValueError as error:
        raise ValueError(f"--{option.name} {shorten(value)} is no number") from error


def _absolute(name: str) -> str:
    """Return the absolute path of a name that is a path here, so that the index finds it from any folder."""
    return str(Path(name).absolute()) if name and Path(name).exists() else name


def check_method(method: Method, max_frames: int, max_words: int) -> None:
    """Raise ValueError if an index of vectors cannot search what a method makes: if its similarity is not the scaled
    cosine of one vector a side, or if the vector of a clip depends on the other clips of its batch."""
    name = next(name for name, kind in METHODS.items() if type(method) is kind)
    why = f"--checkpoint: the method {name} cannot be indexed, because"
    if not method.is_dot_product:
        raise ValueError(f"{why} it compares more than one vector of each side; pass a checkpoint of another method")
    probe = ZeroShotProbe(method.clip, max_frames, max_words)
    with evaluating(method):
        text, together = method.encode_text(probe.token_ids), method.encode_video(probe.video, probe.frame_mask)
        if not all(isinstance(rows, Tensor) and rows.dim() == 2 for rows in (text, together)):
            raise ValueError(f"{why} a video or a text is more than one vector; pass a checkpoint of another method")
        scores = method.similarity(text, together)
        cosines = cosine_similarity(text, together, torch.zeros_like(method.clip.logit_scale))
        scale = (scores * cosines).sum() / cosines.square().sum()
        if (scores / scale - cosines).abs().max() > SAME or scale <= 0:
            raise ValueError(f"{why} its similarity is no scaled cosine; pass a checkpoint of another method")
        clips = zip(probe.video.split(1), probe.frame_mask.split(1), strict=True)
        alone = torch.cat([method.encode_video(video, mask) for video, mask in clips])
    if (unit(alone) - unit(together)).abs().max() > SAME or _mixes_clips(method, probe):
        mend = "pass --inter_frame_norm clip" if "inter_frame_norm" in _names(method) else "use another method"
        raise ValueError(f"{why} its vector of a clip changes with the other clips of a batch: {mend}")


def _mixes_clips(method: Method, probe: ZeroShotProbe) -> bool:
    """Return whether a clip's vector changes by a bit when the other clip of its batch does.

    Shapes stay the same, and so does the order of all sums. A comparison with the clip alone may differ by rounding,
    and a gradient ends where a frozen tower has none.
    """
    with evaluating(method):
        rows = method.encode_video(probe.video, probe.frame_mask)
        for own, other in ((0, 1), (1, 0)):
            video = probe.video.clone()
            video[other] = -video[other].flip(0)
            if not torch.equal(method.encode_video(video, probe.frame_mask)[own], rows[own]):
                return True
    return False


def _names(method: Method) -> set[str]:
    return {option.name for option in method_options(type(method))}


def _flat(content: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    """Return nested facts with one level of names, for a message."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{start}{name} ")
        elif isinstance(value, str) and len(value) == 64:  # a hash
            flat[start + name] = value[:12]
        else:
            flat[start + name] = value
    return flat


def source_of(model: Model, checkpoint: str = "", pretrained_clip_name: str = "", pretrained_dir: str = "") -> Source:
    """Return where a model of an index came from; arguments that are not empty say where it is now."""
    noted = Source(**model.facts["source"])
    return replace(
        noted,
        checkpoint=checkpoint or noted.checkpoint,
        pretrained_clip_name=pretrained_clip_name or noted.pretrained_clip_name,
        pretrained_dir=pretrained_dir or noted.pretrained_dir,
    )
