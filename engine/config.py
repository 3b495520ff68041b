"""Every setting of a run, as frozen dataclasses. `engine.cli` makes one flag of each field, under the field's name.

A method's own settings are not here: they are the keyword arguments of its constructor (`modules.methods.base`), and
travel in `ModelConfig.options`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal

from dataloaders import DATASETS, NEEDED_FLAGS
from dataloaders.quoting import quoted
from modules.backbones import ACTIVATIONS, INTERPOLATIONS, RESIZE_MODES, STATISTICS, StatedFacts
from modules.methods import METHODS, method_options


def between(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raises ValueError unless the flag's value is finite and in this range."""
    if not (low <= value <= high and math.isfinite(value)):
        allowed = f"at least {low:g}" if high == float("inf") else f"from {low:g} to {high:g}"
        raise ValueError(f"--{name} {value:g} is out of range: it takes a number {allowed}")


def _one_of(name: str, value: str, choices: Any) -> None:
    if value not in choices:
        raise ValueError(f"--{name} {quoted(value)} is not one of: {', '.join(choices)}")


@dataclass(frozen=True)
class ModelConfig:
    """Which network. The clip_ flags are for weights that do not say these things themselves, as a bare state dict."""

    method: Annotated[str, "one of modules.methods.METHODS"] = "clip4clip"
    pretrained_clip_name: Annotated[
        str,
        "a CLIP by OpenAI's name (ViT-B/32 ...), by open_clip's (open_clip:ViT-B-16/datacomp_xl_s13b_b90k ...), or a "
        "path to its weights: a file, or a folder of Hugging Face or open_clip",
    ] = "ViT-B/32"
    pretrained_dir: Annotated[str, "where a CLIP given by name is looked up"] = "pretrained"
    clip_activation: Annotated[str, f"what the weights were trained with: {', '.join(ACTIVATIONS)}"] = ""
    clip_vision_heads: Annotated[int, "attention heads of the vision tower; 0: as the weights' source says"] = 0
    clip_text_heads: Annotated[int, "attention heads of the text tower; 0: as the weights' source says"] = 0
    clip_statistics: Annotated[str, f"mean and deviation that pixels are normalised with: {', '.join(STATISTICS)}"] = ""
    clip_resize: Annotated[
        str, f"frames become squares by their short side and a crop, or whole: {', '.join(RESIZE_MODES)}"
    ] = ""
    clip_interpolation: Annotated[str, f"how frames are resized: {', '.join(INTERPOLATIONS)}"] = ""
    init_model: Annotated[
        str,
        "a checkpoint to start from or to evaluate: of this project (.safetensors), or of STOP's, DGL's or CLIP4Clip's "
        "released code (any other ending)",
    ] = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("method", self.method, METHODS)
        for name, choices in (
            ("clip_activation", ACTIVATIONS), ("clip_statistics", STATISTICS), ("clip_resize", RESIZE_MODES),
            ("clip_interpolation", INTERPOLATIONS),
        ):  # fmt: skip
            if getattr(self, name):
                _one_of(name, getattr(self, name), choices)
        between("clip_vision_heads", self.clip_vision_heads, 0)
        between("clip_text_heads", self.clip_text_heads, 0)

    def asked_of_clip(self) -> StatedFacts:
        """What the clip_ flags say of the weights, for `modules.clip_weights.load_clip`."""
        mean, std = STATISTICS.get(self.clip_statistics, (None, None))
        return StatedFacts(
            self.clip_activation or None,
            self.clip_vision_heads or None,
            self.clip_text_heads or None,
            mean,
            std,
            self.clip_resize or None,
            self.clip_interpolation or None,
        )


@dataclass(frozen=True)
class DataConfig:
    """Which clips and captions, and which frames and words of them."""

    datatype: Annotated[str, "one of dataloaders.DATASETS"] = "msrvtt"
    data_path: Annotated[str, "the annotation file (MSRVTT_data.json), or the folder with a data set's files"] = ""
    features_path: Annotated[str, "the folder with the video files"] = ""
    train_csv: Annotated[str, "csv with the training videos' ids; custom: csv or jsonl"] = ""
    val_csv: Annotated[str, "csv with the test pairs (the lineage's name for it); custom: csv or jsonl"] = ""
    train_twins_csv: Annotated[str, "csv with pairs of training clips that shall meet in a batch, as twins_csv"] = ""
    twins_csv: Annotated[str, "csv with pairs of test clips that are each other backwards; adds the column twins"] = ""
    expand_msrvtt_sentences: Annotated[bool, "every caption is a training pair, not one at random a video"] = False
    max_words: Annotated[int, "tokens of a caption, START and END included"] = 32
    max_frames: Annotated[int, "T, frames of a clip"] = 12
    frame_sampling: Annotated[
        Literal["uniform", "segment", "released"],
        "uniform: CLIP4Clip's, short clips are padded; segment: one frame a segment, drawn at random in training; "
        "released: as STOP's released code, which in training never sees the last frames left over by n // T",
    ] = "uniform"
    frame_transform: Annotated[
        Literal["resize", "crop"],
        "resize: the short side to CLIP's size, then the middle square; crop: the middle square without resizing, for "
        "videos re-encoded to that short side, as STOP's released code",
    ] = "resize"
    feature_framerate: Annotated[float, "frames a second that are candidates; 0: every frame of the file"] = 1.0
    slice_framepos: Annotated[int, "uniform only; frames from the head (0), the tail (1), the whole clip (2)"] = 2
    num_thread_reader: Annotated[
        int,
        "worker processes that decode, in each training process; 0: none; -1: as many as this process's share of the "
        "cores less one for itself, at least 1 and at most 8; the result is the same with any number",
    ] = -1
    prefetch_factor: Annotated[int, "batches that each worker process prepares ahead"] = 2

    def __post_init__(self) -> None:
        _one_of("datatype", self.datatype, DATASETS)
        _one_of("frame_sampling", self.frame_sampling, ("uniform", "segment", "released"))
        _one_of("frame_transform", self.frame_transform, ("resize", "crop"))
        between("max_words", self.max_words, 3, 77)
        between("max_frames", self.max_frames, 1)
        between("feature_framerate", self.feature_framerate, 0)
        between("slice_framepos", self.slice_framepos, 0, 2)
        between("num_thread_reader", self.num_thread_reader, -1)
        between("prefetch_factor", self.prefetch_factor, 1)


@dataclass(frozen=True)
class OptimConfig:
    """How it learns."""

    epochs: Annotated[int, "passes over the training pairs"] = 5
    batch_size: Annotated[int, "global: over all processes together, and so the negatives of the loss"] = 128
    lr: Annotated[float, "learning rate of what the method adds to CLIP"] = 1e-4
    coef_lr: Annotated[float, "trained CLIP tensors learn at lr times this"] = 1e-3
    weight_decay: Annotated[float, "AdamW's; never on biases"] = 0.2
    gradient_accumulation_steps: Annotated[
        int,
        "parts in which a process embeds its share of the batch, to save memory at the cost of a second forward pass; "
        "the negatives stay those of the whole global batch",
    ] = 1
    activation_checkpointing: Annotated[
        bool, "compute the inside of CLIP's blocks again in backward, to save memory at the cost of time"
    ] = False
    compile: Annotated[
        bool,
        "run the encoders through torch.compile in training: the first step takes minutes, the others less time; needs "
        "a C++ compiler, and on a GPU triton",
    ] = False
    warmup_proportion: Annotated[float, "share of all steps in which the learning rate rises"] = 0.1
    max_grad_norm: Annotated[float, "gradients are scaled down to this norm over all parameters"] = 1.0
    schedule: Annotated[
        Literal["warmup_cosine", "released"],
        "of the learning rate, up and then down by half a cosine; warmup_cosine: down to 0; released: as STOP's "
        "released code, from 1e-8 in the first step and never below it",
    ] = "warmup_cosine"
    gather_gradient: Annotated[
        Literal["sum", "own"],
        "through the gather of features; sum: the gradient of one process on the global batch; own: as CLIP4Clip and "
        "STOP's released code, one part in as many as there are processes (matters to --max_grad_norm and Adam's eps)",
    ] = "sum"
    same_video: Annotated[
        Literal["negatives", "positives", "apart"],
        "pairs of one video that are in a batch together, which happens with --expand_msrvtt_sentences alone; "
        "negatives: count as such, as in CLIP, CLIP4Clip and STOP; positives: the loss takes the mean over all of them "
        "in the global batch, as SupCon's L_out and UniCL, which changes something only as far as a video's clips "
        "differ, by --frame_sampling segment or released or by dropout; apart: epochs are dealt so that it never "
        "happens (not with --train_twins_csv)",
    ] = "negatives"
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        "of the encoders in training and evaluation; auto: bf16 on a GPU that has it; fp16: with a scaled loss, steps "
        "whose gradient overflows are skipped and counted",
    ] = "auto"
    precision_val: Annotated[
        Literal["same", "fp32"], "of the encoders in evaluation; same: as --precision; fp32: as STOP's released code"
    ] = "same"

    def __post_init__(self) -> None:
        between("epochs", self.epochs, 1)
        between("batch_size", self.batch_size, 2)
        between("gradient_accumulation_steps", self.gradient_accumulation_steps, 1)
        for name in ("lr", "coef_lr", "weight_decay"):
            between(name, getattr(self, name), 0)
        between("warmup_proportion", self.warmup_proportion, 0, 1)
        if not 0 < self.max_grad_norm < math.inf:
            raise ValueError(f"--max_grad_norm {self.max_grad_norm:g} is out of range: it takes a number above 0")
        _one_of("schedule", self.schedule, ("warmup_cosine", "released"))
        _one_of("gather_gradient", self.gather_gradient, ("sum", "own"))
        _one_of("same_video", self.same_video, ("negatives", "positives", "apart"))
        _one_of("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        _one_of("precision_val", self.precision_val, ("same", "fp32"))


@dataclass(frozen=True)
class RunConfig:
    """What to do and where to put it."""

    do_train: Annotated[bool, "train, then evaluate on the test split"] = False
    do_eval: Annotated[
        bool, "evaluate on the test split: --init_model, or without it the method untrained (clip4clip: zero-shot CLIP)"
    ] = False
    describe: Annotated[bool, "print parameters and operations of the method as JSON; needs no files"] = False
    output_dir: Annotated[str, "folder for log, metrics, checkpoints and config.json"] = "runs/default"
    frame_cache: Annotated[
        str, "a folder where decoded frames are kept, so that a video is decoded once; empty: none"
    ] = ""
    frame_cache_format: Annotated[
        Literal["raw", "jpeg"],
        "raw: the same pixels as without a cache, 150 kB a frame at 224 pixels; jpeg: a tenth of that, slightly lossy",
    ] = "raw"
    allow_missing: Annotated[
        int,
        "videos of a split that may be left out because they are missing or cannot be read; above 0 every video is "
        "tried first, and the log and the result say how many were left out",
    ] = 0
    allow_overlap: Annotated[
        bool,
        "train, or take captions for --qb_norm, although videos of the test split are in the training split too; the "
        "log says how many",
    ] = False
    resume: Annotated[
        str,
        "go on from where a run stopped: auto, the newest whole point in --output_dir (and from the start if there is "
        "none), or a step_*.pt",
    ] = ""
    save_every: Annotated[int, "steps between two resume points, beside the one after each epoch; 0: only that"] = 0
    save_full: Annotated[bool, "checkpoints hold all weights, the frozen CLIP's too, not only the trained"] = False
    keep_checkpoints: Annotated[int, "resume points that stay, the newest"] = 2
    row_name: Annotated[str, "the name of this run's row in --results_csv; the method's where none is given"] = ""
    results_csv: Annotated[str, "a csv file that gets one row for each evaluation on the test split"] = ""
    wandb_project: Annotated[str, "a Weights & Biases project to report to as well (pip install wandb)"] = ""
    seed: Annotated[int, "of initialisation, order, frame and caption draws"] = 42
    batch_size_val: Annotated[int, "clips or captions at once in evaluation, in each process"] = 16
    n_display: Annotated[int, "training steps between two log lines"] = 50
    select_on: Annotated[
        Literal["last", "holdout", "test"],
        "which weights are reported: the last epoch's, the best on --holdout_videos of the training videos, or the "
        "best on the test split (only to follow papers that do so; the result line says it)",
    ] = "last"
    holdout_videos: Annotated[int, "training videos set aside for --select_on holdout"] = 0
    dsl: Annotated[bool, "more columns for the test split, with CAMoE's dual softmax; it needs all queries"] = False
    dsl_temperature: Annotated[
        float,
        "what --dsl divides similarities by before the softmax over queries; they are cosines times CLIP's "
        "exp(logit_scale), so at 1 it is CLIP's own softmax",
    ] = 1.0
    qb_norm: Annotated[
        bool, "more text-to-video columns for the test split, with QB-Norm; it uses captions of the training split"
    ] = False
    querybank_size: Annotated[int, "training captions that --qb_norm draws by the seed; all if there are fewer"] = 5000

    def __post_init__(self) -> None:
        if not (self.do_train or self.do_eval or self.describe):
            raise ValueError("nothing to do: pass --do_train, --do_eval or --describe")
        _one_of("frame_cache_format", self.frame_cache_format, ("raw", "jpeg"))
        between("allow_missing", self.allow_missing, 0)
        _one_of("select_on", self.select_on, ("last", "holdout", "test"))
        if (self.select_on == "holdout") != (self.holdout_videos > 0):
            raise ValueError("--select_on holdout and --holdout_videos N (2 or more) go together; only one is given")
        between("holdout_videos", self.holdout_videos, 2 if self.select_on == "holdout" else 0)
        between("batch_size_val", self.batch_size_val, 1)
        between("n_display", self.n_display, 1)
        if not 0 < self.dsl_temperature < math.inf:
            raise ValueError(f"--dsl_temperature {self.dsl_temperature:g} is out of range: it takes a number above 0")
        between("querybank_size", self.querybank_size, 1)
        between("save_every", self.save_every, 0)
        between("keep_checkpoints", self.keep_checkpoints, 1)
        between("seed", self.seed, 0, 2**32 - 1)


@dataclass(frozen=True)
class Config:
    """All settings of one run."""

    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    run: RunConfig

    def __post_init__(self) -> None:
        if self.run.do_train or self.run.do_eval:
            needed, for_training = NEEDED_FLAGS[self.data.datatype]
            if self.run.do_train or self.run.qb_norm:
                needed += for_training
            missing = [f"--{name}" for name in needed if not getattr(self.data, name)]
            if missing:
                raise ValueError(f"{self.data.datatype} needs {', '.join(missing)}: where its files are")

    def flat(self) -> dict[str, Any]:
        """All settings, the method's included, by flag name."""
        values: dict[str, Any] = {}
        for section in fields(self):
            values |= asdict(getattr(self, section.name))
        return {name: value for name, value in values.items() if name != "options"} | dict(self.model.options)

    @classmethod
    def from_flat(cls, settings: Mapping[str, Any]) -> "Config":
        """The inverse of `flat`; a setting that is not given has its default."""
        method = settings.get("method", ModelConfig.method)
        known = {option.name for option in method_options(METHODS[method])} if method in METHODS else set()
        sections: dict[str, Any] = {
            name: {item.name: settings[item.name] for item in fields(section) if item.name in settings}
            for name, section in SECTIONS.items()
        }
        sections["model"]["options"] = {name: value for name, value in settings.items() if name in known}
        return cls(**{name: section(**sections[name]) for name, section in SECTIONS.items()})


SECTIONS: dict[str, Any] = {"model": ModelConfig, "data": DataConfig, "optim": OptimConfig, "run": RunConfig}
