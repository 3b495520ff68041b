"""Text-video retrieval: captions search for videos, and videos for captions.

Shapes: N captions, V videos.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch

from dataloaders import DATASETS, NEEDED_FLAGS, SPLITS
from dataloaders.augmentation import Augmentation
from dataloaders.datasets import GalleryVideos, QueryCaptions, TrainingPairs
from dataloaders.frame_captions import FrameCaptions, captioned, read_frame_captions
from dataloaders.frames import FrameReader
from dataloaders.quoting import some
from dataloaders.sampler import EpochSampler
from dataloaders.samples import Sample
from dataloaders.shard_pairs import ShardPairs, Store
from dataloaders.twins import read_twins
from engine.config import Config
from engine.identity import digest
from engine.logger import log
from engine.tasks.base import Metrics, Task, TrainingItems
from engine.tasks.contrastive import ContrastiveStep
from engine.tasks.crops import CropSettings
from engine.tasks.postprocessing import QB_NORM_BETA, dual_softmax, qb_norm
from engine.tasks.retrieval_metrics import (
    Similarity,
    in_tiles,
    retrieval_metrics,
    text_to_video_metrics,
    twin_accuracy,
    video_to_text_metrics,
)
from engine.tasks.shards import (
    SHARDS_OF_THE_RUN,
    ShardReport,
    ShardSettings,
    batches_ahead,
    identity_of,
    open_store,
    refuse_regulariser,
    shard_sampler,
)
from engine.tasks.splits import draw_captions
from engine.tasks.trained_on import left_out_of_start
from modules.losses import AUTO, LOSSES, Loss, build_loss
from modules.methods import Method
from modules.options import Choices, OnlyWith, Range
from modules.rows import Rows, take


@dataclass(frozen=True)
class RetrievalSettings(CropSettings, ShardSettings):
    """Settings of text-video retrieval."""

    task: ClassVar = "retrieval"
    readers: ClassVar = DATASETS
    needed_flags: ClassVar = NEEDED_FLAGS
    splits: ClassVar = SPLITS
    of_the_run: ClassVar = ("dsl", "dsl_temperature", "qb_norm", "querybank_size", *SHARDS_OF_THE_RUN)
    places: ClassVar = ("train_twins_csv", "twins_csv", "frame_captions")
    newer: ClassVar = (
        "loss", "crop_scale", "short_side_max", "train_short_side", "test_short_side", "shard_streams",
        "drop_uncaptioned_pairs",
    )  # fmt: skip

    datatype: Annotated[str, "the data set", Choices(DATASETS)] = "msrvtt"
    expand_msrvtt_sentences: Annotated[
        bool, "make every caption a training pair, instead of one random caption per video in each epoch"
    ] = False
    train_twins_csv: Annotated[
        str, "csv like --twins_csv with pairs of training clips; the two clips of a pair share a batch"
    ] = ""
    twins_csv: Annotated[
        str, "csv with pairs of test clips, one of which is the other played backwards; adds the column twins"
    ] = ""
    train_short_side: Annotated[
        int,
        "pixels of the short side to which frames of training clips are resized before squares are cut out; 0: CLIP's "
        "side, and for random crops at most 8/7 of it, or the file's with --frame_transform bilinear or crop",
        Range(0),
    ] = 0
    test_short_side: Annotated[
        int, "the same in evaluation, where the middle square is cut out; 0: CLIP's side", Range(0)
    ] = 0
    frame_captions: Annotated[
        str,
        "json with captions of the single frames of training clips, for --method discovla: <video_id>_<caption> -> "
        "[T captions], of the frames that --frame_sampling uniform takes",
    ] = ""
    drop_uncaptioned_pairs: Annotated[bool, "leave out training pairs that --frame_captions has no entry for"] = False
    loss: Annotated[
        str,
        "symmetric_info_nce: CLIP's loss, the mean of rows and columns; summed_info_nce: their sum, as STAN's released "
        "code, which matters to --max_grad_norm; sigmoid: SigLIP's loss, over single pairs, with a learned scale and "
        "bias, which start at the backbone's if it was trained with this loss; auto: what the backbone was trained "
        "with, sigmoid for SigLIP. The default is the loss of all published results of these methods, on any backbone",
        Choices((*LOSSES, AUTO)),
    ] = "symmetric_info_nce"
    gather_gradient: Annotated[
        Literal["sum", "own"],
        "gradient through the gather of features; sum: that of one process on the global batch; own: as CLIP4Clip and "
        "STOP's released code, smaller by the number of processes (this affects --max_grad_norm and Adam's eps)",
    ] = "sum"
    same_video: Annotated[
        Literal["negatives", "positives", "apart"],
        "how to treat pairs of one video in a batch; negatives: as negatives, like CLIP, CLIP4Clip and STOP; "
        "positives: the loss takes the mean over all of them in the global batch, like SupCon's L_out and UniCL, which "
        "makes a difference only if the video's clips differ, through dropout or any --frame_sampling but uniform; "
        "apart: put them into separate batches (not with --train_twins_csv)",
        OnlyWith("expand_msrvtt_sentences"),
    ] = "negatives"
    dsl: Annotated[bool, "add columns for the test split with CAMoE's dual softmax, which uses all queries"] = False
    dsl_temperature: Annotated[
        float,
        "number by which --dsl divides similarities before the softmax over queries; similarities are cosines times "
        "CLIP's exp(logit_scale), so 1 gives CLIP's softmax",
        Range(0, above=True),
        OnlyWith("dsl"),
    ] = 1.0
    qb_norm: Annotated[
        bool, "add text-to-video columns for the test split with QB-Norm, which uses captions of the training split"
    ] = False
    querybank_size: Annotated[
        int,
        "number of training captions that --qb_norm draws with --seed; all if there are fewer",
        Range(1),
        OnlyWith("qb_norm"),
    ] = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        listed = {
            "--expand_msrvtt_sentences": self.expand_msrvtt_sentences,
            "--train_twins_csv": bool(self.train_twins_csv),
            "--frame_captions": bool(self.frame_captions),
            "--qb_norm": self.qb_norm,
        }
        for flag, is_set in listed.items():
            if is_set and self.train_shards:
                raise ValueError(
                    f"{flag} needs a list of all training clips, which --train_shards has not: leave it out"
                )

    def needs_training_split(self, do_train: bool) -> bool:
        return self.qb_norm or super().needs_training_split(do_train)

    def augmentation(self) -> Augmentation | None:
        """Return the random crops of training clips, None without any."""
        crops = Augmentation(crop_scale=self.crop_scale, short_side_max=self.short_side_max)
        return crops if crops.crops else None

    def reader(self, frames: FrameReader, split: str) -> FrameReader:
        """Return the reader of a split's videos: whole frames to crop in training, and the short sides asked for."""
        if split == "train":
            return replace(frames, whole=self.augmentation() is not None, short_side=self.train_short_side)
        return replace(frames, short_side=self.test_short_side)


@dataclass(frozen=True)
class RetrievalSplit:
    """A split to search in. `twin_of`, int64 `[V]`, has each video's time-reversed twin or -1; None without twins."""

    videos: GalleryVideos
    captions: QueryCaptions
    twin_of: np.ndarray | None = None

    @property
    def samples(self) -> Sequence[Sample]:
        return self.videos.samples


@dataclass(frozen=True)
class QueryBank:
    """The input of QB-Norm: scores of the bank's captions with videos, the number of these captions, and beta."""

    similarity: Similarity
    size: int
    beta: float


class Retrieval(Task):
    """The task of text-video retrieval; `config.task` is a `RetrievalSettings`."""

    settings = RetrievalSettings
    selects_by = ("text_to_video", "R@1")
    short_names: ClassVar = {"text_to_video": "t2v", "video_to_text": "v2t"}

    def __init__(self, config: Config, method: Method, process: Any) -> None:
        super().__init__(config, method, process)
        self.options: RetrievalSettings = config.task
        self.querybank: QueryCaptions | None = None

    @classmethod
    def make_loss(cls, config: Config, method: Method) -> Loss:
        loss = build_loss(config.task.loss, method.clip)
        if loss.owns_scale:  # the loss then does not use CLIP's temperature
            method.clip.logit_scale.requires_grad_(False)
        loss.unused = left_out_of_start(config, method)
        return loss

    def step(self) -> ContrastiveStep:
        options, loss = self.options, self.make_loss(self.config, self.method).to(self.process.device)
        run, report = self.config.run, None
        if options.train_shards and run.do_train:
            refuse_regulariser(self.method, run.allow_missing)
            report = ShardReport(Path(run.output_dir), run.allow_missing, self.shards, self.process)
        return ContrastiveStep(
            self.method, self.autocast, options.gather_gradient, loss, options.same_video == "positives", report
        )

    def training_items(self, samples: Sequence[Sample], frames: FrameReader) -> TrainingPairs:
        expand, seed = self.options.expand_msrvtt_sentences, self.config.run.seed
        frames, augmentation = self.options.reader(frames, "train"), self.options.augmentation()
        twin_of = self.training_twins
        samples, captions = self._frame_captions(samples)
        if self.options.train_shards:
            return ShardPairs(self.shards, self.splits.tokenizer, frames, seed, augmentation=augmentation)
        return TrainingPairs(samples, self.splits.tokenizer, frames, expand, seed, twin_of, augmentation, captions)

    def reader(self, frames: FrameReader, split: str) -> FrameReader:
        return self.options.reader(frames, split)

    @cached_property
    def shards(self) -> Store:
        """The shards to train on; all processes ask for them together."""
        return open_store(self.config, self.process, self.splits.num_workers)

    def _frame_captions(self, samples: Sequence[Sample]) -> tuple[Sequence[Sample], FrameCaptions | None]:
        """Return the samples to train on and the captions of their frames, if the method reads them.

        Raises ValueError if only one of method and --frame_captions is there for them.
        """
        options, method = self.options, self.config.model.method
        if self.method.reads_frame_captions != bool(options.frame_captions):
            raise ValueError(
                f"--method {method} with these options trains on captions of frames: pass --frame_captions"
                if self.method.reads_frame_captions
                else f"--frame_captions is not for --method {method} with these options: leave it out"
            )
        if options.drop_uncaptioned_pairs and (not options.frame_captions or options.train_twins_csv):
            raise ValueError("--drop_uncaptioned_pairs goes with --frame_captions and not with --train_twins_csv")
        if not options.frame_captions:
            return samples, None
        if (sampling := self.config.data.frame_sampling) != "uniform":
            raise ValueError(
                f"--frame_captions is of the frames that --frame_sampling uniform takes, not {sampling}: pass uniform"
            )
        path = Path(options.frame_captions)
        captions = read_frame_captions(path, self.config.data.max_frames)
        samples, missing = captioned(samples, captions, path, options.drop_uncaptioned_pairs)
        if missing:
            log.info("left out of training: %d pairs without captions of frames (%s)", len(missing), some(missing))
        return samples, FrameCaptions(samples, captions)

    def sampler(self, items: TrainingItems, **order: Any) -> EpochSampler:
        assert isinstance(items, TrainingPairs)
        if isinstance(items, ShardPairs):
            behind = batches_ahead(self.splits.num_workers, self.config)
            return shard_sampler(items, self.options.shard_streams, super().sampler(items), behind)
        apart = items.video_index if self.options.same_video == "apart" else None
        return super().sampler(items, partner=items.partner, video_index=apart, **order)

    def hold_out(self, samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
        """Divide training samples as for every task; twins stay together, and a held-out video keeps one caption."""
        if self.options.train_shards and self.config.run.select_on == "holdout":
            raise ValueError("--select_on holdout needs a list of all training clips, which --train_shards has not")
        kept, held = super().hold_out(samples)
        return kept, [replace(sample, captions=sample.captions[:1]) for sample in held]

    def check_lists(self) -> None:
        if self.options.twins_csv:
            check_twins(read_twins(Path(self.options.twins_csv), self.splits.listed("test")), self.options.twins_csv)
        if self.options.qb_norm:
            drawn = draw_captions(self.splits.listed("train"), self.options.querybank_size, self.config.run.seed)
            self.querybank = QueryCaptions(drawn, self.splits.tokenizer)
            log.info("query bank of QB-Norm: %d captions of the training split", len(self.querybank))

    def evaluation(self, split: str, samples: list[Sample]) -> RetrievalSplit:
        videos = GalleryVideos(samples, self.options.reader(self.splits.frame_reader(training=False), split=""))
        captions, twin_of = QueryCaptions(samples, self.splits.tokenizer), None
        if split == "test" and self.options.twins_csv:
            left_out = self.splits.left_out["test"]
            twin_of = read_twins(Path(self.options.twins_csv), samples, left_out=left_out)
            check_twins(twin_of, self.options.twins_csv)
        if split != "train":
            count = self.splits.count(split, len(samples))
            log.info("%s split: %s videos, %d captions", split, count, len(captions))
            self.splits.log_cut_captions(split, samples)
        return RetrievalSplit(videos, captions, twin_of)

    def evaluate(self, split: RetrievalSplit, final: bool = False) -> Metrics:
        """Score text-to-video and video-to-text retrieval over a whole split.

        One process decodes and encodes each video once, even if it has several captions.

        Returns:
            The directions of `retrieval_metrics`; with twins, "twins" among the text-to-video numbers. With `final`,
            also the numbers of --dsl and --qb_norm, as further directions "text_to_video (DSL)" and so on.
        """
        videos = self.method.prepare(self.encode_clips(split.videos))
        captions = self.method.prepare(self.encode_texts(split.captions))

        @torch.no_grad()
        def scores(text: Rows, caption_ids: np.ndarray, video_ids: np.ndarray) -> torch.Tensor:
            return self.method.similarity_of_prepared(take(text, caption_ids), take(videos, video_ids))

        def similarity_of(text: Rows) -> Similarity:
            return partial(scores, text) if self.method.is_dot_product else in_tiles(partial(scores, text))

        bank = None
        if final and self.querybank is not None:
            beta = QB_NORM_BETA / self.method.clip.logit_scale.exp().item()
            bank_rows = self.method.prepare(self.encode_texts(self.querybank, "query bank"))
            bank = QueryBank(similarity_of(bank_rows), len(self.querybank), beta)
        dsl_temperature = self.options.dsl_temperature if final and self.options.dsl else None
        owner, twin_of = split.captions.video_index, split.twin_of
        return all_metrics(similarity_of(captions), owner, len(split.videos), twin_of, dsl_temperature, bank)

    @classmethod
    def metrics_to_come(cls, config: Config) -> Metrics:
        """Return the metrics of two captions and two videos with equal scores."""
        options = config.task

        def similarity(captions: np.ndarray, videos: np.ndarray) -> torch.Tensor:
            return torch.zeros(len(captions), len(videos))

        return all_metrics(
            similarity,
            np.arange(2),
            2,
            np.array([1, 0]) if options.twins_csv else None,
            options.dsl_temperature if options.dsl else None,
            QueryBank(similarity, 2, 1.0) if options.qb_norm else None,
        )

    def identity(self, items: TrainingItems) -> dict[str, Any]:
        if isinstance(items, ShardPairs):
            return identity_of(items, self.options)
        assert isinstance(items, TrainingPairs)
        meeting = [[item, int(other)] for item, other in enumerate(items.partner) if item != other]
        facts = {"training pairs": len(items), "training twins": digest(meeting)}
        if items.frame_captions is not None:
            facts["captions of frames"] = items.frame_captions.sha256()
        return facts

    @cached_property
    def training_twins(self) -> dict[str, str]:
        """The id of each listed training video's twin, by the video's id; twins share a batch."""
        if not self.options.train_twins_csv:
            return {}
        listed = self.splits.listed("train")
        twins = read_twins(Path(self.options.train_twins_csv), listed, "train")
        return {listed[i].video_id: listed[j].video_id for i, j in enumerate(twins.tolist()) if j >= 0}


def all_metrics(
    similarity: Similarity,
    owner: np.ndarray,
    n_videos: int,
    twin_of: np.ndarray | None = None,
    dsl_temperature: float | None = None,
    bank: QueryBank | None = None,
) -> Metrics:
    """Compute the metrics that `Retrieval.evaluate` returns, from scores of captions with videos.

    `owner`, int64 `[N]`, has each caption's video.
    """
    metrics = retrieval_metrics(similarity, owner, n_videos)
    if twin_of is not None:
        metrics["text_to_video"]["twins"] = twin_accuracy(similarity, owner, twin_of)
    if dsl_temperature is not None:
        for_captions, for_videos = dual_softmax(similarity, len(owner), n_videos, dsl_temperature)
        metrics["text_to_video (DSL)"] = text_to_video_metrics(for_captions, owner, n_videos)
        metrics["video_to_text (DSL)"] = video_to_text_metrics(for_videos, owner, n_videos)
    if bank is not None:
        normalised = qb_norm(similarity, bank.similarity, bank.size, n_videos, bank.beta)
        metrics["text_to_video (QB-Norm)"] = text_to_video_metrics(normalised, owner, n_videos)
    return metrics


def check_twins(twin_of: np.ndarray, twins_csv: str) -> None:
    """Raise ValueError if no test video has a twin; `twin_of`, int64 `[V]`, is the result of `read_twins`."""
    if (twin_of < 0).all():
        raise ValueError(
            f"--twins_csv {twins_csv}: no test video that is used has a twin there; pass the file for this split, or "
            "leave the flag out"
        )
