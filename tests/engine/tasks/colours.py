"""A small task in one file: name the colour of a clip, with one text per class and a cross-entropy loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from dataloaders import DATASETS, NEEDED_FLAGS
from dataloaders.datasets import GalleryVideos
from dataloaders.frames import FrameReader
from dataloaders.samples import Sample
from engine.config import Config, TaskSettings
from engine.data import normalise_for
from engine.distributed import mean_over_processes
from engine.tasks.base import Metrics, Task, TaskStep
from modules.methods import Method
from modules.options import Choices
from modules.rows import to_float


@dataclass(frozen=True)
class ColourSettings(TaskSettings):
    """Settings of the toy task."""

    task: ClassVar = "colours"
    readers: ClassVar = DATASETS
    needed_flags: ClassVar = NEEDED_FLAGS
    datatype: Annotated[str, "the data set", Choices(DATASETS)] = "msrvtt"
    classes: Annotated[str, "the class names, separated by commas"] = "red,green,blue,yellow"


class LabelledClips(GalleryVideos):
    """Clips labelled with the class whose name is in their first caption."""

    def __init__(self, samples: Sequence[Sample], frames: FrameReader, classes: Sequence[str], seed: int) -> None:
        super().__init__(samples, frames)
        self.seed = seed
        self.labels = [next(n for n, name in enumerate(classes) if name in s.captions[0]) for s in samples]

    def __getitem__(self, key: Any) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)  # of training, of evaluation
        sample, generator = self.samples[index], np.random.default_rng([self.seed, epoch, index])
        video, frame_mask = self.frames(sample.path, generator, sample.start, sample.end)
        return {"video": video, "frame_mask": frame_mask, "label": self.labels[index], "index": index}


class ColourStep(TaskStep):
    inputs, items = ("video", "frame_mask", "label"), "clips"
    texts: Tensor  # int64 [classes,L]

    def forward(self, video: Tensor, frame_mask: Tensor, label: Tensor) -> Tensor:
        with self.autocast():
            texts = self.method.encode_text(self.texts)
            clips = self.method.encode_video(normalise_for(self.method.clip, video), frame_mask)
        logits = self.method.similarity(to_float(texts), to_float(clips)).T
        return mean_over_processes(self.loss(logits, label))


class Colours(Task):
    settings, selects_by, short_names = ColourSettings, ("colours", "top-1"), {"colours": ""}

    @classmethod
    def make_loss(cls, config: Config, method: Method) -> nn.Module:
        return nn.CrossEntropyLoss()

    def step(self) -> ColourStep:
        step = ColourStep(self.method, self.make_loss(self.config, self.method), self.autocast)
        names = [self.splits.tokenizer(f"a {name} half") for name in self.config.task.classes.split(",")]
        step.register_buffer("texts", torch.cat(names).to(self.process.device), persistent=False)
        self.texts = step.texts
        return step

    def training_items(self, samples: Sequence[Sample], frames: FrameReader) -> LabelledClips:
        return LabelledClips(samples, frames, self.config.task.classes.split(","), self.config.run.seed)

    def evaluation(self, split: str, samples: list[Sample]) -> LabelledClips:
        return self.training_items(samples, self.splits.frame_reader(training=False))

    @torch.no_grad()
    def evaluate(self, split: LabelledClips, final: bool = False) -> Metrics:
        best = self.method.similarity(self.method.encode_text(self.texts), self.encode_clips(split)).argmax(dim=0)
        return {"colours": {"top-1": 100 * (best.cpu() == torch.tensor(split.labels)).float().mean().item()}}

    @classmethod
    def metrics_to_come(cls, config: Config) -> Metrics:
        return {"colours": {"top-1": 0.0}}
