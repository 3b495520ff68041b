"""Every setting of a run, as frozen dataclasses. `engine.cli` makes one flag of each field, under the field's name.

A setting's choices and range stand in its annotation (`modules.options`). Settings that one task alone has are in that
task's `TaskSettings`. A method's settings are the keyword arguments of its constructor (`modules.methods.base`), and
travel in `ModelConfig.options`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from dataloaders.samples import Sample
from modules.backbones import ACTIVATIONS, INTERPOLATIONS, RESIZE_MODES, STATISTICS, StatedFacts
from modules.methods import METHODS, method_options
from modules.options import Choices, Range, check_options, options_of


class Checked:
    """A dataclass whose values are checked against their annotations. Raises ValueError."""

    def __post_init__(self) -> None:
        check_options(options_of(type(self)), vars(self))


@dataclass(frozen=True)
class ModelConfig(Checked):
    """The network. Flags that start with clip_ are for weights that do not say these things themselves, such as a bare
    state dict."""

    method: Annotated[str, "the method", Choices(METHODS)] = "clip4clip"
    pretrained_clip_name: Annotated[
        str,
        "a CLIP by OpenAI's name (ViT-B/32 ...), by open_clip's (open_clip:ViT-B-16/datacomp_xl_s13b_b90k ...), or a "
        "path to its weights: a file, or a folder of Hugging Face or open_clip",
    ] = "ViT-B/32"
    pretrained_dir: Annotated[str, "where a CLIP given by name is looked up"] = "pretrained"
    clip_activation: Annotated[str, "the activation that the weights were trained with", Choices(ACTIVATIONS)] = ""
    clip_vision_heads: Annotated[
        int, "attention heads of the vision tower; 0: as the weights' source says", Range(0)
    ] = 0
    clip_text_heads: Annotated[int, "attention heads of the text tower; 0: as the weights' source says", Range(0)] = 0
    clip_statistics: Annotated[str, "the mean and deviation that normalise pixels", Choices(STATISTICS)] = ""
    clip_resize: Annotated[
        str, "how frames become squares: by their short side and a crop, or squashed", Choices(RESIZE_MODES)
    ] = ""
    clip_interpolation: Annotated[str, "how frames are resized", Choices(INTERPOLATIONS)] = ""
    init_model: Annotated[
        str,
        "a checkpoint to start from or to evaluate: of this project (.safetensors), or of STOP's, DGL's or CLIP4Clip's "
        "released code (any other ending)",
    ] = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def asked_of_clip(self) -> StatedFacts:
        """Return what the clip_ flags say of the weights, for `modules.clip_weights.load_clip`."""
        mean, std = STATISTICS.get(self.clip_statistics, (None, None))
        return StatedFacts(
            self.clip_activation or None, self.clip_vision_heads or None, self.clip_text_heads or None, mean, std,
            self.clip_resize or None, self.clip_interpolation or None,
        )  # fmt: skip


@dataclass(frozen=True)
class DataConfig(Checked):
    """Which clips, and which frames and words of them."""

    data_path: Annotated[str, "the annotation file (MSRVTT_data.json), or the folder with a data set's files"] = ""
    features_path: Annotated[str, "the folder with the video files"] = ""
    train_csv: Annotated[str, "csv with the training videos' ids; custom: csv or jsonl"] = ""
    val_csv: Annotated[str, "csv with the test pairs (CLIP4Clip's name for it); custom: csv or jsonl"] = ""
    max_words: Annotated[int, "tokens of a text, START and END included", Range(3, 77)] = 32
    max_frames: Annotated[int, "T, frames of a clip", Range(1)] = 12
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
    feature_framerate: Annotated[float, "candidate frames a second; 0: every frame of the file", Range(0)] = 1.0
    slice_framepos: Annotated[
        int, "uniform only; frames from the head (0), the tail (1), the whole clip (2)", Range(0, 2)
    ] = 2
    num_thread_reader: Annotated[
        int,
        "worker processes that decode, in each training process; 0: none; -1: this process's share of the cores less "
        "one for itself, at least 1 and at most 8; the result is the same with any number",
        Range(-1),
    ] = -1
    prefetch_factor: Annotated[int, "batches that each worker process prepares ahead", Range(1)] = 2


@dataclass(frozen=True)
class OptimConfig(Checked):
    """How it learns."""

    epochs: Annotated[int, "passes over the training items", Range(1)] = 5
    batch_size: Annotated[
        int, "global: over all processes together; in retrieval the negatives of the loss come from it", Range(2)
    ] = 128
    lr: Annotated[float, "learning rate of what the method adds to CLIP", Range(0)] = 1e-4
    coef_lr: Annotated[float, "trained CLIP tensors learn at lr times this", Range(0)] = 1e-3
    weight_decay: Annotated[float, "AdamW's; never on biases", Range(0)] = 0.2
    gradient_accumulation_steps: Annotated[
        int,
        "parts in which a process works through its share of the batch, to save memory at the cost of time; the "
        "gradient stays that of the whole global batch",
        Range(1),
    ] = 1
    activation_checkpointing: Annotated[
        bool, "compute the inside of CLIP's blocks again in backward, to save memory at the cost of time"
    ] = False
    compile: Annotated[
        bool,
        "run the encoders through torch.compile in training: the first step takes minutes, the others less time; needs "
        "a C++ compiler, and on a GPU triton",
    ] = False
    warmup_proportion: Annotated[float, "share of all steps in which the learning rate rises", Range(0, 1)] = 0.1
    max_grad_norm: Annotated[
        float, "gradients are scaled down to this norm over all parameters", Range(0, above=True)
    ] = 1.0
    schedule: Annotated[
        Literal["warmup_cosine", "released"],
        "of the learning rate, up and then down by half a cosine; warmup_cosine: down to 0; released: as STOP's "
        "released code, from 1e-8 in the first step and never below it",
    ] = "warmup_cosine"
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        "of the encoders in training and evaluation; auto: bf16 on a GPU that has it; fp16: with a scaled loss, steps "
        "whose gradient overflows are skipped and counted",
    ] = "auto"
    precision_val: Annotated[
        Literal["same", "fp32"], "of the encoders in evaluation; same: as --precision; fp32: as STOP's released code"
    ] = "same"


@dataclass(frozen=True)
class RunConfig(Checked):
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
        Range(0),
    ] = 0
    allow_overlap: Annotated[
        bool, "use the training split although it has videos of the test split too; the log says how many"
    ] = False
    resume: Annotated[
        str,
        "go on from where a run stopped: auto, the newest whole point in --output_dir (from the start if there is "
        "none), or a step_*.pt",
    ] = ""
    save_every: Annotated[
        int, "steps between two resume points, beside the one after each epoch; 0: only that", Range(0)
    ] = 0
    save_full: Annotated[bool, "checkpoints hold all weights, the frozen CLIP's too, not only the trained"] = False
    keep_checkpoints: Annotated[int, "resume points that stay, the newest", Range(1)] = 2
    row_name: Annotated[str, "the name of this run's row in --results_csv; without it the method's"] = ""
    results_csv: Annotated[str, "a csv file that gets one row for each evaluation on the test split"] = ""
    wandb_project: Annotated[str, "a Weights & Biases project to report to as well (pip install wandb)"] = ""
    seed: Annotated[int, "of initialisation, order, and draws of frames and texts", Range(0, 2**32 - 1)] = 42
    batch_size_val: Annotated[int, "clips or texts at once in evaluation, in each process", Range(1)] = 16
    n_display: Annotated[int, "training steps between two log lines", Range(1)] = 50
    select_on: Annotated[
        Literal["last", "holdout", "val", "test"],
        "which weights are reported: the last epoch's, the best on --holdout_videos of the training videos, the best "
        "on the validation split where the data set has one, or the best on the test split (only to follow papers that "
        "do so; the result line says it)",
    ] = "last"
    holdout_videos: Annotated[int, "training videos set aside for --select_on holdout", Range(2)] = 0

    def __post_init__(self) -> None:
        if not (self.do_train or self.do_eval or self.describe):
            raise ValueError("nothing to do: pass --do_train, --do_eval or --describe")
        super().__post_init__()
        if (self.select_on == "holdout") != (self.holdout_videos > 0):
            raise ValueError("--select_on holdout and --holdout_videos N (2 or more) go together; only one is given")


@dataclass(frozen=True)
class TaskSettings(Checked):
    """The settings that one task alone has; a subclass has `Annotated` fields, one of them `datatype`.

    Class attributes: `task` is the task's name. `readers` has `read_split` of each data set by the value of `datatype`,
    `needed_flags` the flags that it needs for any split, and those that the training split needs beside them, `splits`
    the splits that it has, where that is known. `of_the_run` names settings of one evaluation, which do not change what
    is learned; `places` settings that are files, whose content `Task.identity` covers; `newer` settings that resume
    points of an earlier version lack, where they had the default.
    """

    task: ClassVar[str]
    readers: ClassVar[Mapping[str, Callable[..., list[Sample]]]]
    needed_flags: ClassVar[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]]
    splits: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    of_the_run: ClassVar[tuple[str, ...]] = ()
    places: ClassVar[tuple[str, ...]] = ()
    newer: ClassVar[tuple[str, ...]] = ()

    datatype: str = ""

    def needs_training_split(self) -> bool:
        """Return whether evaluation alone reads the training split's lists too."""
        return False

    def list_split(self, data: DataConfig, split: str) -> list[Sample]:
        """Return the samples of a split as its files list them, whether or not their videos are there."""
        names = ("data_path", "features_path", "train_csv", "val_csv")
        return self.readers[self.datatype](split, **{name: Path(getattr(data, name)) for name in names})


@dataclass(frozen=True)
class Config:
    """All settings of one run."""

    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    run: RunConfig
    task: Any  # a `TaskSettings`, with fields that its task knows

    def __post_init__(self) -> None:
        if self.run.do_train or self.run.do_eval:
            needed, for_training = self.task.needed_flags[self.task.datatype]
            if self.run.do_train or self.task.needs_training_split():
                needed += for_training
            missing = [f"--{name}" for name in needed if not getattr(self.data, name)]
            if missing:
                raise ValueError(f"{self.task.datatype} needs {', '.join(missing)}: where its files are")
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
        """Do the inverse of `flat`; a setting that is not given has its default, one that is unknown is dropped."""
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
    """Return the sections of a program for this task, by title."""
    return SECTIONS | {"task": task}
