"""The contract between a task and the engine.

A *method* (`modules.methods`) turns CLIP into a video model. A *task* defines what a batch means and how a split is
scored. The engine trains, evaluates, distributes, saves and resumes both, and depends on no particular one:

    engine.run       builds the method and the task, checks, trains, reports
    engine.train     takes batches from `Task.training_items` and the loss from `TaskStep.forward`
    engine.evaluate  encodes a task's datasets on all processes and gathers the rows by id

A new task subclasses `Task`, `TaskStep` and `engine.config.TaskSettings`, and gets a line in `engine.tasks.registry`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dataloaders.datasets import Batch, Item
from dataloaders.frames import FrameReader
from dataloaders.sampler import EpochSampler
from dataloaders.samples import Sample
from engine.config import Config, TaskSettings
from engine.data import normalise_for
from engine.distributed import Process
from engine.evaluate import Encoder, evaluating
from engine.precision import autocast_for
from engine.tasks.splits import Splits, hold_out
from modules.methods import Method
from modules.rows import Rows, to_float

Metrics = dict[str, dict[str, float]]
"""Numbers by the thing measured ("text_to_video", ...) and by metric ("R@1", ...)."""


class TrainingItems(Protocol):
    """A torch dataset to train on, indexed by (epoch, index); its items are dictionaries of tensors and an `index`."""

    samples: Sequence[Sample]

    def __len__(self) -> int: ...

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]: ...

    def video_id(self, index: int) -> str:
        """Return the id of an item's video, for messages."""
        ...


class Part(NamedTuple):
    """A part of a batch, with a forward and backward pass separate from the other parts."""

    inputs: tuple[Any, ...]  # the arguments of `TaskStep.forward`
    random_state: Tensor | None = None  # to set before the pass, so that dropout draws the same numbers again


class TaskStep(nn.Module):
    """Computes the loss of the global batch from one process's share of it.

    `DistributedDataParallel` wraps this module and averages gradients over processes. `loss` may own parameters, which
    are trained, saved and resumed under the names `loss.*`.
    """

    inputs: tuple[str, ...]  # names of the batch's tensors that `forward` takes, in its order
    items = "items"  # the log's word for the training items
    scored_by_loss = False  # whether evaluation uses a trained head of the loss, which is random before training

    def __init__(self, method: Method, loss: nn.Module, autocast: Callable[[], torch.autocast]) -> None:
        super().__init__()
        self.method, self.loss, self.autocast = method, loss, autocast
        self.notes: dict[str, Any] = {}  # the run's notes, plain values that resume points save

    def received(self, batch: Batch) -> None:
        """Take note of a batch just before its step; all processes call this together. A ValueError ends the run."""

    def forward(self, *inputs: Any) -> Tensor:
        """Return the scalar loss over all processes; its gradient must be right after DDP's averaging.

        For a mean over items, return `engine.distributed.mean_over_processes` of this process's mean.
        """
        raise NotImplementedError

    def embed(
        self, video: Tensor, frame_mask: Tensor, token_ids: Tensor | None
    ) -> tuple[Rows | None, Rows, Tensor | None]:
        """Embed uint8 `[n,T,3,H,W]`, bool `[n,T]` and, if given, texts int64 `[N,L]`.

        Returns:
            The rows of texts (None without) and of clips, in fp32, and the method's `regulariser`, a scalar or None.
        """
        with self.autocast():
            video = normalise_for(self.method.clip, video)
            text, clips = self.method(video, frame_mask, token_ids)
            extra = self.method.regulariser(video, clips)
        return None if text is None else to_float(text), to_float(clips), extra

    def in_parts(self, inputs: tuple[Tensor, ...], count: int) -> tuple[Tensor | None, list[Part]]:
        """Divide a batch into `count` equal parts that give the gradient of the whole batch.

        Returns:
            The loss of the batch, and the parts. The batch's gradient is the sum of the parts' gradients. The loss may
            be None: then loss and gradient are the mean over the parts, as here, which is right for a mean over items.
        """
        return None, [Part(part) for part in zip(*(tensor.chunk(count) for tensor in inputs), strict=True)]

    def batch_note(self, batch_size: int) -> str:
        """Return text for the log about a global batch of this size, with a leading comma; empty by default."""
        return ""

    def scalars(self) -> dict[str, float]:
        """Return scalars to log in addition to the loss: CLIP's temperature and the loss's scalar parameters.

        All processes call this together.
        """
        own = {f"loss_{name}": p.item() for name, p in self.loss.named_parameters() if p.numel() == 1}
        return {"logit_scale": self.method.clip.logit_scale.detach().exp().item(), **own}

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters that training changes: the method's under their names, and the loss's as `loss.*`."""
        yield from self.method.trainable_parameters()
        yield from ((f"loss.{name}", p) for name, p in self.loss.named_parameters() if p.requires_grad)

    def parameter_groups(self, lr: float, coef_lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return the method's optimiser groups, and one at `lr` without decay for the loss's parameters, if any."""
        groups = self.method.parameter_groups(lr, coef_lr, weight_decay)
        own = [parameter for parameter in self.loss.parameters() if parameter.requires_grad]
        return groups + ([{"name": "loss", "params": own, "lr": lr, "weight_decay": 0.0}] if own else [])


class Task(ABC):
    """Defines what a batch means and how a split is scored, for one run.

    `splits` reads the lists and checks the videos; `encoder` encodes a dataset on all processes.
    """

    settings: ClassVar[type[TaskSettings]]  # the task's name and its own flags
    selects_by: ClassVar[tuple[str, str]]  # keys of the metric that --select_on compares, higher is better
    short_names: ClassVar[Mapping[str, str]] = {}  # for files: short forms of the outer keys of `Metrics`, or ""

    def __init__(self, config: Config, method: Method, process: Process) -> None:
        self.config, self.method, self.process = config, method, process
        self.told: dict[str, Any] = {}  # further facts about the last final evaluation, for metrics.jsonl
        self.splits = Splits(config, process, method.clip.backbone, self.reader)
        optim = config.optim
        self.autocast = autocast_for(optim.precision, process.device)  # of training
        precision = optim.precision if optim.precision_val == "same" else optim.precision_val
        self.encoder = Encoder(
            process, autocast_for(precision, process.device), config.run.batch_size_val, self.splits.num_workers,
            config.data.prefetch_factor,
        )  # fmt: skip

    # --- training ---

    @classmethod
    @abstractmethod
    def make_loss(cls, config: Config, method: Method) -> nn.Module:
        """Build the loss that the settings name. Freeze parameters of the method that this loss does not use."""

    @abstractmethod
    def step(self) -> TaskStep:
        """Build the training step of the method with the loss of `make_loss`; called once."""

    @abstractmethod
    def training_items(self, samples: Sequence[Sample], frames: FrameReader) -> TrainingItems:
        """Build the dataset to train on from samples of the training split."""

    def sampler(self, items: TrainingItems, **order: Any) -> EpochSampler:
        """Return the sampler of this process's batches; `order` has further arguments of `EpochSampler`.

        Raises ValueError if the batch size is not divisible by processes times parts, or exceeds the number of items.
        """
        settings, world_size = self.config.optim, self.process.world_size
        parts = settings.gradient_accumulation_steps
        if settings.batch_size % (world_size * parts):
            shares = f"{world_size} processes" + (f" times {parts} parts" if parts > 1 else "")
            raise ValueError(f"--batch_size {settings.batch_size} is global and is not divisible by the {shares}")
        share = settings.batch_size // world_size
        return EpochSampler(len(items), share, self.process.rank, world_size, self.config.run.seed, **order)

    def hold_out(self, samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
        """Divide training samples into those to train on and, with --select_on holdout, those that select weights."""
        run = self.config.run
        if run.select_on != "holdout":
            return samples, []
        return hold_out(samples, run.holdout_videos, run.seed, self.training_twins)

    @property
    def training_twins(self) -> Mapping[str, str]:
        """The id of each training video's twin, by the video's id; a held-out video takes its twin along."""
        return {}

    # --- evaluation ---

    @abstractmethod
    def evaluation(self, split: str, samples: list[Sample]) -> Any:
        """Build the input of `evaluate` for a split (train, val or test); it has the attribute `samples`."""

    @abstractmethod
    def evaluate(self, split: Any, final: bool = False) -> Metrics:
        """Score a split; all processes call this together and get the same numbers.

        Args:
            split: the result of `evaluation`.
            final: whether these numbers are the reported ones, not only used to select weights.
        """

    def encode_clips(self, videos: Dataset[Item]) -> Rows:
        """Encode a dataset of V clips on all processes; return the method's rows `[V,...]`, in fp32."""
        method = self.method
        with evaluating(method):
            return self.encoder(
                videos,
                lambda batch: method.encode_video(normalise_for(method.clip, batch["video"]), batch["frame_mask"]),
                "videos",
            )

    def encode_texts(self, texts: Dataset[Item], name: str = "captions") -> Rows:
        """Encode a dataset of N `token_ids` on all processes; return the method's rows `[N,...]`, in fp32."""
        with evaluating(self.method):
            # Tokenising is so quick that starting worker processes would take longer.
            return self.encoder(texts, lambda batch: self.method.encode_text(batch["token_ids"]), name, workers=False)

    @classmethod
    @abstractmethod
    def metrics_to_come(cls, config: Config) -> Metrics:
        """Return metrics with the names of the reported ones and arbitrary values; reads no video."""

    # --- optional parts ---

    @classmethod
    def columns(cls, config: Config) -> dict[str, Any]:
        """Return facts about an evaluation for its row in --results_csv, beside those of every task; reads no video."""
        return {}

    def reader(self, frames: FrameReader, split: str) -> FrameReader:
        """Return the reader of a split's videos, as this task's datasets use it; only to try and to cache them."""
        return frames

    def check_lists(self) -> None:  # noqa: B027 (a task may have nothing to check)
        """Check the lists as only this task can, before any video is read; raises ValueError or OSError."""

    def identity(self, items: TrainingItems) -> dict[str, Any]:
        """Return facts by name that a run and a resume point must share, beside settings, weights and samples."""
        return {}


def flat_metrics(metrics: Metrics, short_names: Mapping[str, str]) -> dict[str, float]:
    """Return the metrics with one level of names, rounded, for files: "t2v R@1", "t2v R@1 (DSL)" and so on."""
    flat: dict[str, float] = {}
    for measured, values in metrics.items():
        what, *extra = measured.split(maxsplit=1)
        words = [short_names.get(what, what)] if short_names.get(what, what) else []
        flat |= {" ".join([*words, name, *extra]): round(value, 3) for name, value in values.items()}
    return flat


def format_metrics(metrics: Metrics) -> str:
    """Return text for a log, with one row for each thing measured."""
    width = max(map(len, metrics))
    rows = []
    for measured, values in metrics.items():
        numbers = "  ".join(f"{name} {value:.1f}" for name, value in values.items())
        rows.append(f"  {measured.replace('_', '-'):>{width}}:  {numbers}")
    return "\n".join(rows)
