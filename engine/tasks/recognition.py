"""Action recognition: each video gets the class whose text, bag of prompts or row of a linear head scores best.

Shapes: N videos, V views of a video, K classes, P texts of a class, n videos at once.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from dataloaders.classes import Classes
from dataloaders.datasets import Batch, LabelledClips, ViewedVideos
from dataloaders.frames import FrameReader
from dataloaders.protocols import check_protocol, hold_out_groups
from dataloaders.quoting import shorten
from dataloaders.sampler import EpochSampler
from dataloaders.samples import Sample
from dataloaders.views import Views
from engine.config import Config
from engine.data import normalise_for
from engine.evaluate import evaluating
from engine.identity import digest
from engine.logger import log
from engine.tasks.base import Metrics, Task, TrainingItems
from engine.tasks.class_features import ClassFeatures, description
from engine.tasks.class_texts import check_texts, class_texts
from engine.tasks.classification import ClassificationLoss, ClassificationStep, new_loss
from engine.tasks.classifiers import encode_in_blocks
from engine.tasks.ensemble import load_raw_tower, raw_rows
from engine.tasks.predictions import Predictions, folder_of_predictions, write_predictions
from engine.tasks.recognition_metrics import recognition_metrics, reversed_ids, topk_accuracy
from engine.tasks.recognition_settings import RecognitionSettings
from engine.tasks.trained_on import check_start, header_of, left_out_of_start, trained_with, training_of
from modules.bag import Bag
from modules.clip_weights import backbone_sha256
from modules.methods import Method
from modules.rows import Rows, to_float

__all__ = ["Recognition", "RecognitionSettings", "class_texts", "topk_accuracy"]

ONE_VIEW = Views()  # in evaluations that select weights


class Scores(NamedTuple):
    """The scores of n videos: of every view, and of the mean feature of the views, which is empty if not asked for."""

    views: Tensor  # fp32 [n,V,K]
    of_features: Tensor  # fp32 [n,K] or [n,0]


@dataclass(frozen=True)
class RecognitionSplit:
    """Labelled videos, their classes, and the texts of these: int64 `[K P,L]`, or a bag of K classes. `novel` are those
    of the novel half."""

    samples: list[Sample]
    classes: Classes
    texts: Tensor | Bag
    novel: "RecognitionSplit | None" = None


class Recognition(Task):
    """The task of action recognition; `config.task` is a `RecognitionSettings`."""

    settings = RecognitionSettings
    selects_by = ("recognition", "top1")
    short_names: ClassVar = {"recognition": ""}

    def __init__(self, config: Config, method: Method, process: Any) -> None:
        super().__init__(config, method, process)
        self.options: RecognitionSettings = config.task
        if self.options.test_videos == "all" and config.run.do_train:
            raise ValueError("--test_videos all tests on training videos: pass --do_eval, or --test_videos test")
        if self.options.classes == "novel" and config.run.do_train:
            raise ValueError("--classes novel is for an evaluation without training: pass --do_eval, or --classes base")
        self.start = header_of(config.model.init_model)  # what the weights were trained on before
        if self.options.classifier != "linear" and not config.run.do_train and trained_with(config) == "linear":
            raise ValueError(
                f"--init_model {config.model.init_model}: was trained with --classifier linear, which trains no texts: "
                "pass --classifier linear, or a checkpoint of --classifier text or bag"
            )
        self._check_bag_flags()
        self.templates = self.options.class_templates()
        self.classes = self.options.chosen_classes(config.data)
        self.features = self._read_features() if self.options.classifier == "bag" else None
        self.texts = self._texts(self.classes)
        self.views = Views.parse(self.options.test_views)
        self.raw = load_raw_tower(config.model, process.device) if self.options.ensemble_clip else None
        if self.options.view_fusion == "features" and not method.is_dot_product:
            raise ValueError(
                f"--view_fusion features needs one vector of a clip, and --method {config.model.method} has several; "
                "pass --view_fusion logits"
            )

    def _check_bag_flags(self) -> None:
        """Raise ValueError if a flag of bags was passed for another classifier; it may come from a checkpoint."""
        options, inherited = self.options, self.start.settings if self.start is not None else {}
        if options.classifier != "bag":
            for name in ("text_features", "bag_mean"):
                value = getattr(options, name)
                if value != getattr(RecognitionSettings, name) and value != inherited.get(name):
                    raise ValueError(
                        f"--{name} {shorten(value)} is for --classifier bag, and this is --classifier "
                        f"{options.classifier}: pass --classifier bag, or leave it out"
                    )

    def _read_features(self) -> ClassFeatures:
        """Read --text_features; ValueError also if the weights of --init_model come with another CLIP."""
        options, clip, start = self.options, self.method.clip, self.start
        if start is not None and start.full and start.backbone_sha256 != backbone_sha256(clip):
            raise ValueError(
                f"--init_model {self.config.model.init_model}: holds another CLIP than --pretrained_clip_name, whose "
                "text tower made --text_features: pass its --pretrained_clip_name, and features of that CLIP"
            )
        every = options.all_classes(self.config.data)
        features = ClassFeatures.read(options.text_features, clip, every, options.bag_mean)
        if options.classes == "base":  # the end of the run needs them; a class without prompts stops it now
            features.rows(options.chosen_classes(self.config.data, "novel"))
        return features

    def _texts(self, classes: Classes) -> Tensor | Bag:
        """Return the bag of classes, or their texts, int64 `[K P,L]`, class by class.

        Raises ValueError if two classes read alike, if one has no prompts, and for a single class, which any model
        would always get right.
        """
        if len(classes) == 1:
            raise ValueError(
                f"there is only one class, {shorten(classes.keys[0])}, so every answer would be right: pass lists, "
                "folders or --classes with two or more"
            )
        device = self.process.device
        if self.features is not None:
            return Bag(*(tensor.to(device) for tensor in self.features.bag(classes)))
        texts = class_texts(classes.names, self.templates)
        tokenizer, max_words = self.splits.tokenizer, self.config.data.max_words
        if self.options.classifier == "text":
            check_texts(classes.names, texts, tokenizer, max_words)
        return tokenizer([text for of_class in texts for text in of_class]).to(device)

    # --- training ---

    @classmethod
    def make_loss(cls, config: Config, method: Method) -> ClassificationLoss:
        options: RecognitionSettings = config.task
        sizes = config.data.max_frames, config.data.max_words
        classes = len(options.chosen_classes(config.data)) if options.classifier == "linear" else None
        loss = new_loss(method, classes, options.label_smoothing, *sizes, with_bag=options.classifier == "bag")
        if options.classifier == "text":
            loss.unused = left_out_of_start(config, method)
        return loss

    def step(self) -> ClassificationStep:
        loss, options = self.make_loss(self.config, self.method).to(self.process.device), self.options
        self._step = ClassificationStep(
            self.method, loss, self.autocast, len(self.classes), self.texts if loss.head is None else None,
            options.augmentation().mixes, options.bag_mean,
        )  # fmt: skip
        return self._step

    def training_items(self, samples: Sequence[Sample], frames: FrameReader) -> LabelledClips:
        options, partner = self.options, self.options.training_partners(self.config.data, samples)
        return LabelledClips(samples, frames, self.classes, self.config.run.seed, options.augmentation(), partner)

    def sampler(self, items: TrainingItems, **order: Any) -> EpochSampler:
        assert isinstance(items, LabelledClips)
        sampler, settings = super().sampler(items, partner=items.partner, **order), self.config.optim
        part = settings.batch_size // self.process.world_size // settings.gradient_accumulation_steps
        if self.options.augmentation().mixes and part % 2:
            raise ValueError(
                f"MixUp and CutMix mix pairs of clips, and each part of the batch has {part}: choose --batch_size so "
                "that each process and part gets an even number"
            )
        return sampler

    def reader(self, frames: FrameReader, split: str) -> FrameReader:
        return self.config.task.reader(frames, split)

    def hold_out(self, samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
        """Divide training samples as for every task; the videos of a group stay together."""
        run = self.config.run
        return hold_out_groups(samples, run.holdout_videos, run.seed) if run.select_on == "holdout" else (samples, [])

    def check_lists(self) -> None:
        """Check that the test videos are new to the model, by file and by group, and that a head is of these classes.

        Raises ValueError; with --allow_overlap, what is not new is only logged.
        """
        self._check_head()
        self._unless_allowed(lambda: check_start(self.config))
        if self.config.run.do_train:
            training, test = self.splits.listed("train"), self.splits.listed("test")
            self._unless_allowed(lambda: check_protocol(training, test, self.classes))
            if self.options.classes == "base":
                self.splits.check_overlap("novel")

    def _unless_allowed(self, check: Callable[[], None]) -> None:
        """Call a check that raises ValueError; with --allow_overlap, log its message instead."""
        try:
            check()
        except ValueError as error:
            if not self.config.run.allow_overlap:
                raise
            log.info("attention: %s (--allow_overlap)", error)

    def _check_head(self) -> None:
        """Note the classes of a head to train, which starts fresh unless a checkpoint had the same ones.

        Raises ValueError if a checkpoint is evaluated that has no head, or one of other classes or another order.
        """
        loss, source = self._step.loss, self.config.model.init_model
        if loss.head is None:
            return
        own, loaded = number_of(self.classes.keys), int(loss.classes)
        if self.config.run.do_train:
            if loaded not in (0, own):
                log.info("the linear head of %s is of other classes than these: a new one is trained", source)
                loss.start_fresh()
            loss.classes.fill_(own)
        elif source and loaded != own:
            raise ValueError(
                f"--init_model {source}: has no linear head for these {len(self.classes)} classes in their order; pass "
                "a checkpoint of --classifier linear on this data set, or --classifier text"
            )

    def identity(self, items: TrainingItems) -> dict[str, Any]:
        texts = class_texts(self.classes.names, self.templates) if self.options.classifier == "text" else []
        assert isinstance(items, LabelledClips)
        twins = {} if items.partner is None else {"training twins": digest(items.partner.tolist())}
        features = {} if self.features is None else {"text features": self.features.digest(self.classes)}
        known = {
            "classes": digest(self.classes.keys),
            "class texts": digest(texts),
            "labels of mirrored clips": digest(self.options.augmentation().label_after_flip(self.classes).tolist()),
        }
        return known | twins | features

    # --- evaluation ---

    def evaluation(self, split: str, samples: list[Sample]) -> RecognitionSplit:
        novel = None
        if split == "test" and self.options.classes == "base":
            classes = self.options.chosen_classes(self.config.data, "novel")
            novel = RecognitionSplit(self.splits.read("novel"), classes, self._texts(classes))
            self._log_split("novel", novel)
        here = RecognitionSplit(samples, self.classes, self.texts, novel)
        if split != "train":
            self._log_split(split, here)
        return here

    def _log_split(self, name: str, split: RecognitionSplit) -> None:
        labels = {sample.label for sample in split.samples}
        log.info(
            "%s split: %s videos of %d of %d classes", name, self.splits.count(name, len(split.samples)), len(labels),
            len(split.classes),
        )  # fmt: skip

    def evaluate(self, split: RecognitionSplit, final: bool = False) -> Metrics:
        """Score a whole split.

        Returns:
            The numbers of `recognition_metrics` as "recognition". With `final`, all views of --test_views count, and
            the predictions are written into the run's folder; after --classes base the novel half follows as "novel",
            and "recognition" gets "HM", the harmonic mean of the two top1. Else each video has one view.
        """
        metrics = self._evaluate(split, final)
        if final and split.novel is not None:
            metrics["novel"] = self._evaluate(split.novel, final, "novel")["recognition"]
            metrics["recognition"]["HM"] = harmonic_mean(metrics["recognition"]["top1"], metrics["novel"]["top1"])
        return metrics

    def _evaluate(self, split: RecognitionSplit, final: bool, name: str = "") -> Metrics:
        views, fusion = (self.views, self.options.view_fusion) if final else (ONE_VIEW, "logits")
        scores = self.score(split, views, fusion == "features", self.raw if final else None)
        predictions = Predictions(
            tuple(sample.video_id for sample in split.samples), split.classes.ids(split.samples), split.classes.keys,
            split.classes.names, scores.views.cpu().numpy(), fusion,
            reversed_ids(split.classes.keys, split.classes.reversed),
            scores.of_features.cpu().numpy() if fusion == "features" else None,
        )  # fmt: skip
        fused, labels = predictions.scores(), predictions.labels
        metrics = recognition_metrics(fused, labels, predictions.reversed_of, predictions.ids)
        if final:
            if len(views) > 1:
                each = [round(topk_accuracy(predictions.views[:, v], labels, 1), 3) for v in range(len(views))]
                log.info(
                    "top-1 of each of %s views alone: %s; fused by %s: %.3f", views, ", ".join(map(str, each)), fusion,
                    metrics["recognition"]["top1"],
                )  # fmt: skip
                self.told[f"{name} top1 of each view".lstrip()] = each
            run = self.config.run
            folder = folder_of_predictions(Path(run.output_dir), run.do_train) / name
            self.process.on_main(lambda: write_predictions(folder, predictions))
            log.info("predictions, accuracies of classes and confusion matrix: %s", folder)
        return metrics

    def score(
        self, split: RecognitionSplit, views: Views, of_features: bool, raw: torch.nn.Module | None = None
    ) -> Scores:
        """Score all N videos with the K classes, on all processes; only scores are kept, so that memory stays flat.

        With the `raw` tower of CLIP, --ensemble_clip of each score is that tower's.
        """
        videos = ViewedVideos(split.samples, self.splits.frame_reader(training=False), views)
        classifier = self.classifier(split)
        # --batch_size_val counts clips, and a video has V of them.
        encoder = replace(self.encoder, batch_size=max(1, self.encoder.batch_size // len(views)))

        def score(batch: Batch) -> Scores:
            video, frame_mask = batch["video"].flatten(0, 1), batch["frame_mask"].flatten(0, 1)
            pixels = normalise_for(self.method.clip, video)
            clips = to_float(self.method.encode_video(pixels, frame_mask))
            rows = None if raw is None else raw_rows(raw, pixels, frame_mask, clips)
            with torch.autocast(video.device.type, enabled=False):  # scores are in fp32, as in training
                scores = self._step.logits(classifier, clips)
                if rows is not None:
                    scores = torch.lerp(scores, self._step.logits(classifier, rows), self.options.ensemble_clip)
                scores = scores.unflatten(0, (-1, len(views)))
                if not of_features:
                    return Scores(scores, scores.new_empty(len(scores), 0))
                assert isinstance(clips, Tensor)
                mean = torch.nn.functional.normalize(clips, dim=-1).unflatten(0, (-1, len(views))).mean(dim=1)
                return Scores(scores, self._step.logits(classifier, mean))

        with evaluating(self.method):
            scores = encoder(videos, score, "videos")
        assert isinstance(scores, Scores)
        return scores

    def classifier(self, split: RecognitionSplit) -> Rows | None:
        """Return the bag of a split's classes or the classifier of their texts, None with a linear head.

        In the precision of training, a frozen text side's is encoded once for training and all evaluations.
        """
        if self._step.loss.head is not None:
            return None
        if isinstance(split.texts, Bag):
            return split.texts
        same_precision = self.config.optim.precision_val == "same"
        if split.texts is self.texts and not self._step.learns_texts and same_precision:
            return self._step.frozen_classifier()
        with evaluating(self.method), self.encoder.autocast():
            return self._step.classifier(encode_in_blocks(self.method, split.texts))

    @classmethod
    def columns(cls, config: Config) -> dict[str, Any]:
        options: RecognitionSettings = config.task
        templates = options.class_templates()
        texts = templates[0] if len(templates) == 1 else f"{len(templates)} of {options.templates or options.datatype}"
        trained = training_of(config)
        shots = trained.get("shots", "")
        return {
            "split": options.split,
            "list": "all videos of both lists" if options.test_videos == "all" else Path(config.data.val_csv).name,
            "classes": options.classes,
            "start": trained.get("init_model") or "CLIP",
            "train_data": trained.get("datatype", ""),
            "train_list": Path(trained.get("train_csv", "")).name,
            "shots": "none" if not trained else "all" if shots == 0 else shots,
            "shots_seed": trained["shots_seed"] if shots else "",
            "flip": trained.get("flip", ""),
            "classifier": options.classifier + f" + {options.ensemble_clip:g} CLIP" * (options.ensemble_clip > 0),
            "class_texts": {
                "text": f"{texts} ({options.class_names})",
                "bag": description(options.text_features, options.bag_mean),
            }.get(options.classifier, ""),
            "views": options.test_views,
            "view_fusion": options.view_fusion,
        }

    @classmethod
    def metrics_to_come(cls, config: Config) -> Metrics:
        """Return the metrics of one video with equal scores for all classes; reads the classes, but no video."""
        options: RecognitionSettings = config.task
        metrics = _chance(options.chosen_classes(config.data))
        if options.classes == "base":
            metrics["novel"] = _chance(options.chosen_classes(config.data, "novel"))["recognition"]
            metrics["recognition"]["HM"] = 0.0
        return metrics


def _chance(classes: Classes) -> Metrics:
    reversed_of = reversed_ids(classes.keys, classes.reversed)
    labels = torch.arange(len(classes))
    return recognition_metrics(torch.zeros(len(classes), len(classes)), labels, reversed_of)


def number_of(keys: Sequence[str]) -> int:
    """Return a number above 0 that stands for these keys in this order."""
    return int(hashlib.sha256("\n".join(keys).encode(errors="surrogateescape")).hexdigest()[:15], 16) + 1


def harmonic_mean(first: float, second: float) -> float:
    """Return 2 a b / (a + b), and 0 if one of them is 0."""
    return 2 * first * second / (first + second) if first and second else 0.0
