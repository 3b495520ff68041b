"""Every setting of a run, in frozen dataclasses. `engine.cli` turns each field into a flag of the same name.

A field's annotation has its help line, choices and range (`modules.options`). `TaskSettings` has the settings of one
task, `ModelConfig.options` the values of a method's settings, which are its constructor's keyword arguments.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from dataloaders.cache import FrameCacheFormat
from dataloaders.frame_sampling import FrameSampling
from dataloaders.samples import Sample
from dataloaders.transforms import FrameTransform
from modules.backbones import ACTIVATIONS, INTERPOLATIONS, RESIZE_MODES, STATISTICS, StatedFacts
from modules.methods import METHODS, method_options
from modules.options import Checked, Choices, OnlyWith, Range

TRAINING = OnlyWith("do_train")


@dataclass(frozen=True)
class ModelConfig(Checked):
    """The network. The clip_ flags are for weights that do not state these facts, such as a bare state dict."""

    method: Annotated[str, "the method", Choices(METHODS)] = "clip4clip"
    pretrained_clip_name: Annotated[
        str,
        "the CLIP: a name of OpenAI's (ViT-B/32 ...), a name of open_clip's (open_clip:ViT-B-16/datacomp_xl_s13b_b90k "
        "...), or the path of a weights file or of a Hugging Face or open_clip folder",
    ] = "ViT-B/32"
    pretrained_dir: Annotated[str, "folder to look up a CLIP that is given by name"] = "pretrained"
    clip_activation: Annotated[str, "activation that the weights were trained with", Choices(ACTIVATIONS)] = ""
    clip_vision_heads: Annotated[int, "attention heads of the vision tower; 0: as the weights state", Range(0)] = 0
    clip_text_heads: Annotated[int, "attention heads of the text tower; 0: as the weights state", Range(0)] = 0
    clip_statistics: Annotated[str, "mean and deviation to normalise pixels with", Choices(STATISTICS)] = ""
    clip_resize: Annotated[
        str, "how frames become squares: short side resized and rest cropped, or squashed", Choices(RESIZE_MODES)
    ] = ""
    clip_interpolation: Annotated[str, "interpolation to resize frames with", Choices(INTERPOLATIONS)] = ""
    init_model: Annotated[
        str,
        "checkpoint to start from or to evaluate: one of this project (.safetensors), or one of STOP's, DGL's, "
        "CLIP4Clip's, STDD's or STAN's released code (any other ending)",
    ] = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def asked_of_clip(self) -> StatedFacts:
        """Return the facts that the clip_ flags state about the weights, for `modules.clip_weights.load_clip`."""
        mean, std = STATISTICS.get(self.clip_statistics, (None, None))
        return StatedFacts(
            self.clip_activation or None, self.clip_vision_heads or None, self.clip_text_heads or None, mean, std,
            self.clip_resize or None, self.clip_interpolation or None,
        )  # fmt: skip


@dataclass(frozen=True)
class DataConfig(Checked):
    """The data set, and which frames and words of it are used."""

    data_path: Annotated[str, "annotation file (MSRVTT_data.json), or folder with the data set's files"] = ""
    features_path: Annotated[str, "folder with the video files"] = ""
    train_csv: Annotated[str, "csv with the ids of the training videos; --datatype custom: csv or jsonl"] = ""
    val_csv: Annotated[
        str, "csv with the test pairs (the flag's name is CLIP4Clip's); --datatype custom: csv or jsonl"
    ] = ""
    max_words: Annotated[int, "tokens per text, including START and END", Range(3, 77)] = 32
    max_frames: Annotated[int, "T, frames per clip", Range(1)] = 12
    frame_sampling: Annotated[
        FrameSampling,
        "uniform: as CLIP4Clip, short clips are padded; segment: one frame per segment, drawn at random in training; "
        "dense: --frame_stride apart, from a random start in training, else from the middle; released: as STOP's "
        "released code, whose training never sees the last frames left over by n // T; slowfast: as PySlowFast, "
        "--frame_stride / 30 seconds apart at any frame rate, from a random start in training, else from the first; "
        "stan: as segment, with the rounding of STAN's released code",
    ] = "uniform"
    frame_stride: Annotated[
        int,
        "from one frame to the next; dense: in candidates; slowfast: in frames of 1/30 second",
        Range(1),
        OnlyWith("frame_sampling", ("dense", "slowfast")),
    ] = 1
    frame_transform: Annotated[
        FrameTransform,
        "resize: scale the short side to CLIP's size, then crop the middle square; crop: only crop the middle square, "
        "as STOP's released code does, for videos re-encoded to that short side; bilinear: as resize, but bilinear and "
        "without antialiasing, as PySlowFast",
    ] = "resize"
    feature_framerate: Annotated[float, "candidate frames per second; 0: every frame of the file", Range(0)] = 1.0
    slice_framepos: Annotated[
        int,
        "frames of the head (0), tail (1) or all (2)",
        Range(0, 2),
        OnlyWith("frame_sampling", ("uniform",)),
    ] = 2
    num_thread_reader: Annotated[
        int,
        "decoding workers of each training process, which change no result; 0: none; -1: the process's share of the "
        "cores minus one, at least 1 and at most 8",
        Range(-1),
    ] = -1
    prefetch_factor: Annotated[int, "batches that each decoding worker prepares in advance", Range(1)] = 2


@dataclass(frozen=True)
class OptimConfig(Checked):
    """How the method is trained."""

    epochs: Annotated[int, "passes over the training items", Range(1)] = 5
    batch_size: Annotated[
        int, "global batch size, over all processes; in retrieval, the loss takes its negatives from it", Range(2)
    ] = 128
    lr: Annotated[float, "learning rate of the tensors that the method adds to CLIP", Range(0)] = 1e-4
    coef_lr: Annotated[float, "factor on --lr for trained CLIP tensors", Range(0)] = 1e-3
    weight_decay: Annotated[float, "weight decay of AdamW; never on biases", Range(0)] = 0.2
    adam_beta2: Annotated[float, "decay rate of AdamW's mean of squared gradients", Range(0, 0.99999)] = 0.98
    adam_eps: Annotated[float, "epsilon of AdamW", Range(0, above=True)] = 1e-6
    adam_eps_uncorrected: Annotated[bool, "add --adam_eps before AdamW's correction, as TempMe's code does"] = False
    gradient_accumulation_steps: Annotated[
        int,
        "number of parts into which each process divides its share of the batch, which saves memory but takes more "
        "time; the gradient stays that of the whole global batch",
        Range(1),
    ] = 1
    activation_checkpointing: Annotated[
        bool, "recompute CLIP's blocks in the backward pass, which saves memory but takes more time"
    ] = False
    compile: Annotated[
        bool,
        "run the encoders through torch.compile in training: the first step takes minutes, later steps are faster; "
        "needs a C++ compiler, and on a GPU triton",
    ] = False
    warmup_proportion: Annotated[float, "share of all steps in which the learning rate rises", Range(0, 1)] = 0.1
    max_grad_norm: Annotated[
        float, "maximum norm of the gradient over all parameters; a larger one is scaled down", Range(0, above=True)
    ] = 1.0
    schedule: Annotated[
        Literal["warmup_cosine", "released", "one_percent", "periodic_cosine"],
        "learning rate schedule, a linear rise and half a cosine down; warmup_cosine: down to 0; released: as STOP's "
        "released code, which starts at 1e-8 and never goes below it; one_percent: from 1 % and back to it, as STDD's; "
        "periodic_cosine: from 5 %, then down to 0 and up again every --cosine_epochs, as STAN's",
    ] = "warmup_cosine"
    cosine_epochs: Annotated[
        float,
        "--schedule periodic_cosine: epochs from the highest rate to 0",
        Range(0, above=True),
        OnlyWith("schedule", ("periodic_cosine",)),
    ] = 4.5
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        "precision of the encoders in training and evaluation; auto: bf16 on a GPU that supports it, else fp32; fp16: "
        "scales the loss, and skips and counts steps whose gradient overflows",
    ] = "auto"
    precision_val: Annotated[
        Literal["same", "fp32"], "precision in evaluation; same: as --precision; fp32: as STOP's released code"
    ] = "same"


@dataclass(frozen=True)
class RunConfig(Checked):
    """What the run does, and where its output goes."""

    do_train: Annotated[bool, "train, then evaluate on the test split"] = False
    do_eval: Annotated[
        bool, "evaluate --init_model on the test split, or the untrained method (clip4clip: zero-shot CLIP)"
    ] = False
    describe: Annotated[bool, "print the method's parameters and operations as JSON; needs no files"] = False
    output_dir: Annotated[str, "folder for the log, metrics, checkpoints and config.json"] = "runs/default"
    frame_cache: Annotated[str, "folder to keep decoded frames in, to decode each video only once; empty: none"] = ""
    frame_cache_format: Annotated[
        FrameCacheFormat,
        "raw: same pixels as without a cache, 150 kB per frame at 224 pixels; jpeg: a tenth of that, slightly lossy",
        OnlyWith("frame_cache"),
    ] = "raw"
    allow_missing: Annotated[
        int,
        "number of videos per split that may be left out because they are missing or unreadable; above 0, every video "
        "is tried first, and the log and the result say how many were left out",
        Range(0),
    ] = 0
    allow_overlap: Annotated[
        bool, "accept a training split that has videos of the test split; the log says how many"
    ] = False
    resume: Annotated[
        str,
        "continue a stopped run; auto: from the newest undamaged resume point in --output_dir, if any; a path: from it",
        TRAINING,
    ] = ""
    save_every: Annotated[int, "also write a resume point every so many steps; 0: after epochs", Range(0), TRAINING] = 0
    save_every_epoch: Annotated[bool, "also keep a checkpoint of each epoch, for engine.average", TRAINING] = False
    save_full: Annotated[bool, "write all weights into checkpoints, the frozen CLIP included", TRAINING] = False
    keep_checkpoints: Annotated[int, "number of resume points to keep, the newest ones", Range(1), TRAINING] = 2
    row_name: Annotated[str, "name of this run's row in --results_csv; empty: the method's name"] = ""
    results_csv: Annotated[str, "csv file to add a row to for each evaluation on the test split"] = ""
    wandb_project: Annotated[str, "Weights & Biases project to report to as well (pip install wandb)"] = ""
    seed: Annotated[int, "seed of initialisation, order, and draws of frames and texts", Range(0, 2**32 - 1)] = 42
    batch_size_val: Annotated[int, "clips or texts encoded at once in evaluation, in each process", Range(1)] = 16
    n_display: Annotated[int, "training steps between two log lines", Range(1)] = 50
    select_on: Annotated[
        Literal["last", "holdout", "val", "test"],
        "the epoch whose weights are reported; last: the last one; holdout: the best one on --holdout_videos training "
        "videos; val: the best one on the validation split, if the data set has one; test: the best one on the test "
        "split (only to follow papers that do so; the result line says it)",
    ] = "last"
    holdout_videos: Annotated[int, "number of training videos set aside for --select_on holdout", Range(2)] = 0

    def __post_init__(self) -> None:
        if not (self.do_train or self.do_eval or self.describe):
            raise ValueError("nothing to do: pass --do_train, --do_eval or --describe")
        super().__post_init__()
        if (self.select_on == "holdout") != (self.holdout_videos > 0):
            raise ValueError("--select_on holdout and --holdout_videos N (2 or more) need each other; pass both")


@dataclass(frozen=True)
class TaskSettings(Checked):
    """The settings of only one task; a subclass has `Annotated` fields, one of them `datatype`.

    Class attributes: `task` is the task's name. `readers` has `read_split` of each data set by the value of `datatype`,
    `needed_flags` the flags that it needs for any split, and those that the training split needs beside them, `splits`
    the splits that it has, where that is known. `of_the_run` names settings of one evaluation, which do not change what
    is learned; `places` settings that name or choose files, whose content `Task.identity` covers; `newer` settings that
    resume points of an earlier version lack, where they had the default.
    """

    task: ClassVar[str]
    readers: ClassVar[Mapping[str, Callable[..., list[Sample]]]]
    needed_flags: ClassVar[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]]
    splits: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    of_the_run: ClassVar[tuple[str, ...]] = ()
    places: ClassVar[tuple[str, ...]] = ()
    newer: ClassVar[tuple[str, ...]] = ()

    datatype: str = ""

    def needs_training_split(self, do_train: bool) -> bool:
        """Return whether a run reads the training split's lists; by default, one that trains does."""
        return do_train

    def list_split(self, data: DataConfig, split: str) -> list[Sample]:
        """Return the samples that a split's files list, even if their videos are missing."""
        names = ("data_path", "features_path", "train_csv", "val_csv")
        return self.readers[self.datatype](split, **{name: Path(getattr(data, name)) for name in names})


@dataclass(frozen=True)
class Config:
    """All settings of one run."""

    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    run: RunConfig
    task: Any  # a subclass of `TaskSettings`, whose fields only its task knows

    def __post_init__(self) -> None:
        if self.run.do_train or self.run.do_eval:
            needed, for_training = self.task.needed_flags[self.task.datatype]
            if self.task.needs_training_split(self.run.do_train):
                needed += for_training
            missing = [f"--{name}" for name in needed if not (vars(self.data) | vars(self.task))[name]]
            if missing:
                raise ValueError(f"{self.task.datatype} needs {', '.join(missing)}: they name its files")
        if self.run.select_on == "val" and "val" not in self.task.splits.get(self.task.datatype, ("val",)):
            raise ValueError(f"--select_on val: {self.task.datatype} has no validation split; pass --select_on holdout")

    def flat(self) -> dict[str, Any]:
        """Return all settings, the method's included, by flag name."""
        values: dict[str, Any] = {}
        for section in fields(self):
            values |= asdict(getattr(self, section.name))
        return {name: value for name, value in values.items() if name != "options"} | dict(self.model.options)

    @classmethod
    def from_flat(cls, settings: Mapping[str, Any], task: type[TaskSettings]) -> "Config":
        """Build the settings from the result of `flat`; a missing one has its default, an unknown one is dropped."""
        method = settings.get("method", ModelConfig.method)
        known = {option.name for option in method_options(METHODS[method])} if method in METHODS else set()
        classes = sections_with(task)
        values: dict[str, Any] = {
            name: {item.name: settings[item.name] for item in fields(section) if item.name in settings}
            for name, section in classes.items()
        }
        values["model"]["options"] = {name: value for name, value in settings.items() if name in known}
        return cls(**{name: section(**values[name]) for name, section in classes.items()})


SECTIONS: dict[str, Any] = {"model": ModelConfig, "data": DataConfig, "optim": OptimConfig, "run": RunConfig}


def sections_with(task: type[TaskSettings]) -> dict[str, Any]:
    """Return the settings classes of a program for this task, by section title."""
    return SECTIONS | {"task": task}
