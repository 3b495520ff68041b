"""The settings of action recognition: one flag each."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np

from dataloaders import ACTION_DATASETS, ACTION_NEEDED_FLAGS, ACTION_READERS, ACTION_SPLITS
from dataloaders.augmentation import FLIP, Augmentation
from dataloaders.classes import Classes, renamed
from dataloaders.frames import FrameReader
from dataloaders.protocols import chosen_classes, few_shot
from dataloaders.samples import Sample
from dataloaders.twins import read_twins
from dataloaders.views import Views
from engine.config import DataConfig
from engine.logger import log
from engine.tasks.class_texts import read_templates
from engine.tasks.crops import CropSettings
from engine.tasks.recognition_metrics import FUSIONS
from modules.bag import BagMean
from modules.options import Choices, OnlyWith, Range


@dataclass(frozen=True)
class RecognitionSettings(CropSettings):
    """Settings of action recognition. The data set's own defaults are in its file in `dataloaders`."""

    task: ClassVar = "recognition"
    readers: ClassVar = ACTION_DATASETS
    needed_flags: ClassVar = ACTION_NEEDED_FLAGS
    splits: ClassVar = ACTION_SPLITS
    of_the_run: ClassVar = ("test_views", "view_fusion", "test_videos", "ensemble_clip")
    # The digests of samples cover those that choose videos.
    places: ClassVar = (
        "labels_csv", "class_names", "templates", "text_features", "classes", "split", "shots", "shots_seed",
        "train_twins_csv",
    )  # fmt: skip
    newer: ClassVar = ("bag_mean", "short_side_max")

    datatype: Annotated[str, "the data set", Choices(ACTION_DATASETS)] = "ucf101"
    split: Annotated[int, "the official split of the data set, where it has three", Range(1, 3)] = 1
    labels_csv: Annotated[str, "file with the classes: csv `id,name`, json, or txt with one a line"] = ""
    shots: Annotated[int, "training videos of each class, drawn by --shots_seed; 0: all", Range(0)] = 0
    shots_seed: Annotated[
        int, "seed of --shots alone, so that runs of other --seed train on the same videos", Range(0, 2**32 - 1)
    ] = 0
    classes: Annotated[
        str,
        "all; base: train and test on the base half, then also test on the novel half and print the harmonic mean; "
        "novel: only with --do_eval; half:0 to half:9: the random halves of zero-shot evaluation; or a file with the "
        "keys of some classes, one a line",
    ] = "all"
    train_twins_csv: Annotated[
        str,
        "csv `video_id,twin_id` of training clips, of which one is the other played backwards; both share a batch",
    ] = ""
    class_names: Annotated[
        str,
        "what texts call the classes; split: the words of the folder's name (brush_hair, ApplyEyeMakeup) apart; raw: "
        "the folder's name as it is; or a csv file `id,name`",
    ] = "split"
    templates: Annotated[
        str, "text with {} in the place of a class's name, or a file with one a line; empty: the data set's"
    ] = ""
    classifier: Annotated[
        Literal["text", "linear", "bag"],
        "text: similarity with the texts of the classes, as in retrieval; linear: a trained head, without any text; "
        "bag: every frame with every prompt of --text_features, as STDD",
    ] = "text"
    text_features: Annotated[
        str,
        "--classifier bag: file with the embeddings of the prompts of each class, written by "
        "preprocess/text_features.py, or STDD's own .pt",
    ] = ""
    bag_mean: Annotated[
        BagMean,
        "--classifier bag: the prompts that a mean counts; padded: also the repeats that fill short classes up, as "
        "released; masked: each prompt once",
    ] = "padded"
    label_smoothing: Annotated[float, "share of the target spread evenly over all classes", Range(0, 0.99)] = 0.0
    test_views: Annotated[
        str,
        "clips x squares of each test video; 3x1: 3 moments, the middle square; 1x3: 1 moment, 3 squares along the "
        "long side",
    ] = "1x1"
    test_videos: Annotated[
        Literal["test", "all"],
        "test: the test split; all: the training and test lists together, for zero-shot evaluations of a whole data "
        "set, only with --do_eval",
    ] = "test"
    ensemble_clip: Annotated[
        float,
        "share of the scores of the CLIP of --pretrained_clip_name, with the same class texts, in those of the last "
        "evaluation; 0: none",
        Range(0, 1),
    ] = 0.0
    view_fusion: Annotated[
        str, "what is averaged over views: scores, their softmax, or features, before they are scored",
        Choices(FUSIONS), OnlyWith("test_views", ("of several views",), "1x1".__ne__),
    ] = "logits"  # fmt: skip
    flip: Annotated[
        str,
        "horizontal flips of training clips; mapped: a flip also exchanges the labels of left and right classes; "
        "plain: labels stay, which is refused where the data set has such classes; plain_despite_map: not refused, "
        "only to follow published work that does so",
        Choices(FLIP),
    ] = "none"
    flip_probability: Annotated[
        float, "share of clips that --flip mirrors", Range(0, 1), OnlyWith("flip", tuple(FLIP)[1:])
    ] = 0.5
    jitter_probability: Annotated[float, "share of clips with changed brightness, contrast and hue", Range(0, 1)] = 0.0
    gray_probability: Annotated[float, "share of clips made gray", Range(0, 1)] = 0.0
    rand_augment_ops: Annotated[int, "operations of RandAugment on a clip", Range(0)] = 0
    rand_augment_magnitude: Annotated[
        int, "strength of these operations", Range(0, 30), OnlyWith("rand_augment_ops", (), bool)
    ] = 9
    erasing_probability: Annotated[
        float, "share of clips with the same rectangle of all frames erased", Range(0, 1)
    ] = 0.0
    mixup_alpha: Annotated[float, "parameter of MixUp's Beta distribution; 0: no MixUp", Range(0)] = 0.0
    cutmix_alpha: Annotated[float, "parameter of CutMix's Beta distribution; 0: no CutMix", Range(0)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        Views.parse(self.test_views)
        if self.ensemble_clip and (self.classifier == "linear" or self.view_fusion == "features"):
            other = "--classifier linear" if self.classifier == "linear" else "--view_fusion features"
            raise ValueError(
                f"--ensemble_clip mixes scores of class texts, so it cannot do {other}; leave one of both out"
            )
        if self.classifier == "linear" and self.classes in ("base", "novel"):
            raise ValueError(
                f"--classifier linear has no row for a class it was not trained on, so it cannot do --classes "
                f"{self.classes}; pass --classifier text"
            )

    def augmentation(self) -> Augmentation:
        return Augmentation(**{item.name: getattr(self, item.name) for item in fields(Augmentation)})

    def reader(self, frames: FrameReader, split: str) -> FrameReader:
        """Return the reader of a split's videos: whole frames to crop in training, one view to select weights."""
        if split == "train":
            return replace(frames, whole=self.augmentation().crops)
        return frames if split == "val" else replace(frames, views=Views.parse(self.test_views))

    def all_classes(self, data: DataConfig) -> Classes:
        """Return the classes of the data set, called as --class_names says."""
        read = ACTION_READERS[self.datatype].read_classes
        return renamed(read(**self._files(data)), self.class_names)

    def chosen_classes(self, data: DataConfig, part: str = "") -> Classes:
        """Return the K classes that --classes names, or those of another part."""
        return chosen_classes(self.all_classes(data), part or self.classes)

    def class_templates(self) -> tuple[str, ...]:
        """Return the P templates of class texts."""
        return read_templates(self.templates, ACTION_READERS[self.datatype].TEMPLATES)

    def list_split(self, data: DataConfig, split: str) -> list[Sample]:
        """Return the labelled samples of a split: of the chosen classes, and in training the drawn ones.

        The split "novel" is the test split's part of the novel classes.
        """
        name = split
        part, split = ("novel", "test") if split == "novel" else ("", split)
        keys = self.chosen_classes(data, part).keys
        chosen = set(keys)
        read = self.readers[self.datatype]
        parts = ("train", "test") if split == "test" and self.test_videos == "all" else (split,)
        listed = [sample for one in parts for sample in read(one, **self._files(data), fold=self.split)]
        samples = [sample for sample in listed if sample.label in chosen]
        if not samples:
            raise ValueError(f"--classes {part or self.classes}: no video of the {split} split is of these classes")
        if len(samples) < len(listed):
            log.info("%s split: %d of %d videos are of the %d classes", name, len(samples), len(listed), len(chosen))
        return few_shot(samples, self.shots, self.shots_seed, keys) if split == "train" and self.shots else samples

    def training_partners(self, data: DataConfig, samples: Sequence[Sample]) -> np.ndarray | None:
        """Return the index of each training clip's twin, or of the clip itself, int64 `[n]`; None without a csv.

        Pairs with a clip that the training split lists but this run does not train on, do not count.
        """
        if not self.train_twins_csv:
            return None
        listed = replace(self, classes="all", shots=0).list_split(data, "train")
        unused = {sample.video_id for sample in listed} - {sample.video_id for sample in samples}
        twin_of = read_twins(Path(self.train_twins_csv), samples, "train", unused)
        return np.where(twin_of < 0, np.arange(len(samples)), twin_of)

    def _files(self, data: DataConfig) -> dict[str, Path]:
        names = ("data_path", "features_path", "train_csv", "val_csv")
        return {name: Path(getattr(data, name)) for name in names} | {"labels_csv": Path(self.labels_csv)}
