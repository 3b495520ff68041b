"""Text-video retrieval: train a method on a data set and evaluate it, or evaluate it only.

    one process        python main_task_retrieval.py --do_train --method clip4clip --datatype msrvtt ...
    many GPUs          torchrun --standalone --nproc_per_node=4 main_task_retrieval.py --do_train ...
    zero-shot          python main_task_retrieval.py --do_eval --method clip4clip ...          (CLIP as it is)
    a checkpoint       python main_task_retrieval.py --do_eval --init_model runs/mine/last.safetensors ...
    parameters, GFLOP  python main_task_retrieval.py --describe --method clip4clip --pretrained_clip_name ViT-B/32

`scripts/msrvtt.sh` fills in the rest; `--help` lists every flag.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dataloaders.preparation import forecast, leave_out, missing_files, read_all
from dataloaders.samples import FrameReader, GalleryVideos, QueryCaptions, Sample, TrainingPairs
from dataloaders.twins import read_twins
from engine import preflight
from engine.checkpoint import CheckpointHeader, ResumePoints, load_checkpoint, save_checkpoint
from engine.cli import parse_config
from engine.config import Config
from engine.data import draw_captions, frame_cache, frame_reader, hold_out, list_split, reader_processes
from engine.describe import describe
from engine.distributed import Process, process_group
from engine.errors import explained, one_sentence
from engine.evaluate import evaluate, flat_metrics, format_metrics
from engine.logger import RunLogger, append_row, log
from engine.train import Interrupted, autocast_for, deal_batches, train
from modules.clip_weights import backbone_sha256, load_clip, read_state_dict
from modules.methods import build_method
from modules.released_weights import load_released_state_dict
from modules.tokenizer import Tokenizer

Metrics = dict[str, dict[str, float]]
EvaluationSplit = tuple[GalleryVideos, QueryCaptions]

EXIT_INTERRUPTED = 75  # sysexits.h, "try again later": a signal stopped the run, and --resume auto goes on

SELECTION = {
    "last": "last epoch",
    "holdout": "best epoch on held-out training videos",
    "test": "best epoch ON THE TEST SPLIT",
}


class RetrievalRun:
    """One run: the method, its data, and what is done with them. Shared state of the steps below, nothing else."""

    def __init__(self, config: Config, process: Process, logger: RunLogger) -> None:
        self.config, self.process, self.logger = config, process, logger
        logger.config(config.flat())
        torch.manual_seed(config.run.seed)
        clip = load_clip(config.model.pretrained_clip_name, config.model.pretrained_dir)
        self.backbone_sha256 = backbone_sha256(clip)
        self.image_size = clip.visual.image_size
        preflight.check_context(config.data.max_words, clip)
        name = config.model.pretrained_clip_name
        preflight.check_finite(clip, name if Path(name).exists() else f"{name} in {config.model.pretrained_dir}")
        as_clip = None  # what CLIP itself makes of some input, to tell zero-shot by
        if not (config.run.do_train or config.model.init_model):
            as_clip = preflight.ZeroShotProbe(clip.to(process.device), config.data.max_frames, config.data.max_words)
        self.method = build_method(config.model.method, clip, **config.model.options).to(process.device)
        self.tokenizer = Tokenizer(config.data.max_words)
        self.n_trainable = sum(parameter.numel() for _, parameter in self.method.trainable_parameters())
        self.num_workers = reader_processes(config.data.num_thread_reader)
        log.info(
            "method %s on %s (sha256 %s), %s trainable of %s parameters, %d x %s, --num_thread_reader %d",
            config.model.method, config.model.pretrained_clip_name, self.backbone_sha256[:12], f"{self.n_trainable:,}",
            f"{sum(p.numel() for p in self.method.parameters()):,}", process.world_size, process.device.type,
            self.num_workers,
        )  # fmt: skip
        self.frame_cache = frame_cache(config.run)
        self.epoch, self.selection = 0, ""
        self.lists: dict[str, list[Sample]] = {}
        self.left_out: dict[str, list[str]] = {}  # ids of each split's videos that are missing or cannot be read
        if config.model.init_model:
            self.epoch = self.load_weights(Path(config.model.init_model))
            self.selection = "checkpoint as given"
            log.info("weights from %s, epoch %d", config.model.init_model, self.epoch)
            preflight.check_finite(self.method, config.model.init_model)
        elif as_clip is not None:
            self.selection = as_clip.name_of(self.method, config.model.method, process)
        if config.run.do_train:
            self.check_training()
        self.querybank = None
        if config.run.qb_norm:
            drawn = draw_captions(self.listed("train"), config.run.querybank_size, config.run.seed)
            self.querybank = QueryCaptions(drawn, self.tokenizer)
            log.info("query bank of QB-Norm: %d captions of the training split", len(self.querybank))
        twins_csv = config.data.twins_csv
        if twins_csv:  # the file, before videos are read
            preflight.check_twins(read_twins(Path(twins_csv), self.listed("test")), twins_csv)
        test_samples = self.read_split("test")
        self.test = self.evaluation_split(test_samples)
        self.test_twins = None
        if twins_csv:
            self.test_twins = read_twins(Path(twins_csv), test_samples, left_out=self.left_out["test"])
            preflight.check_twins(self.test_twins, twins_csv)
        log.info("test split: %s videos, %d captions", self.count("test", len(test_samples)), len(self.test[1]))

    def load_weights(self, path: Path) -> int:
        """Read a checkpoint of ours, or one of another system's released code; gives its epoch, 0 where unknown."""
        if path.suffix == ".safetensors":
            return load_checkpoint(path, self.method, self.backbone_sha256).epoch
        frozen = {name: p.clone() for name, p in self.method.named_parameters() if not p.requires_grad}
        try:
            load_released_state_dict(self.method, read_state_dict(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        replaced = [name for name, p in self.method.named_parameters() if name in frozen and (p != frozen[name]).any()]
        if replaced and self.config.run.do_train:
            raise ValueError(
                f"{path}: was trained on another CLIP than --pretrained_clip_name ({len(replaced)} of its frozen "
                f"tensors differ, the first is {replaced[0]}); pass the one it was trained on, or evaluate it only"
            )
        return 0

    def read_split(self, split: str) -> list[Sample]:
        """The samples of a split whose videos can be used; what is wrong with the others goes into the log.

        The test split's videos are tried before a training, which would meet a broken one only at its end.

        Raises ValueError if more videos than --allow_missing are missing or cannot be read.
        """
        listed, allowed = self.listed(split), self.config.run.allow_missing
        frames = self.frame_reader(training=split == "train")
        problems = missing_files(listed)
        samples = leave_out(listed, problems, allowed, split)
        if frames.cache is not None:
            self.announce_cache(split, samples, frames)
        if allowed or (split == "test" and self.config.run.do_train):
            problems |= self.find_unreadable(listed, [row for row in range(len(listed)) if row not in problems], frames)
            samples = leave_out(listed, problems, allowed, split)
            for row in sorted(problems):
                log.info("left out of the %s split: %s", split, problems[row])
        self.left_out[split] = [listed[row].video_id for row in sorted(problems)]
        return samples

    def listed(self, split: str) -> list[Sample]:
        """The samples of a split as its files list them, which are read once."""
        if split not in self.lists:
            self.lists[split] = list_split(self.config.data, split)
        return self.lists[split]

    def announce_cache(self, split: str, samples: list[Sample], frames: FrameReader) -> None:
        """Say what the frame cache will take; ValueError if the disk has no room for it."""
        run, error = self.config.run, None
        if self.process.is_main:
            try:
                log.info(
                    "frame cache %s (%s), %s split: %s", run.frame_cache, run.frame_cache_format, split,
                    forecast(samples, frames, run.allow_missing),
                )  # fmt: skip
            except (ValueError, OSError) as caught:
                error = caught
        self.process.fail_together(error)

    def find_unreadable(self, samples: list[Sample], rows: list[int], frames: FrameReader) -> dict[int, str]:
        """Try the videos `rows` of `samples`, each process its share; the reasons of those that cannot be read."""
        share = rows[self.process.rank :: self.process.world_size]
        found, error = {}, None
        try:
            reasons = read_all([samples[row] for row in share], frames, max(1, self.num_workers))
            progress = tqdm(reasons, "reading videos", len(share), leave=False, disable=not self.process.is_main)
            found = {row: reason for row, reason in zip(share, progress, strict=True) if reason}
        except OSError as caught:
            error = caught
        self.process.fail_together(error)
        return {row: reason for part in self.process.share(found) for row, reason in part.items()}

    def count(self, split: str, n_used: int) -> str:
        """ "1000", or "983 of 1000" where videos were left out."""
        n_left_out = len(self.left_out[split])
        return f"{n_used} of {n_used + n_left_out}" if n_left_out else str(n_used)

    def training_twins(self, samples: list[Sample]) -> dict[str, str]:
        """The training videos that shall meet in a batch: each one's id with the other's."""
        if not self.config.data.train_twins_csv:
            return {}
        left_out = self.left_out.get("train", [])
        twins = read_twins(Path(self.config.data.train_twins_csv), samples, "train", left_out)
        return {samples[i].video_id: samples[j].video_id for i, j in enumerate(twins.tolist()) if j >= 0}

    def frame_reader(self, training: bool) -> FrameReader:
        return frame_reader(self.config.data, self.image_size, training, self.frame_cache)

    def evaluation_split(self, samples: list[Sample]) -> EvaluationSplit:
        frames = self.frame_reader(training=False)
        return GalleryVideos(samples, frames), QueryCaptions(samples, self.tokenizer)

    def evaluate(self, split: EvaluationSplit, postprocess: bool = False) -> Metrics:
        """Metrics on a split, with `postprocess` also those that --dsl and --qb_norm ask for."""
        optim, run = self.config.optim, self.config.run
        precision = optim.precision if optim.precision_val == "same" else optim.precision_val
        return evaluate(
            self.method,
            *split,
            self.process,
            autocast_for(precision, self.process.device),
            run.batch_size_val,
            self.num_workers,
            self.config.data.prefetch_factor,
            self.test_twins if split is self.test else None,
            run.dsl_temperature if postprocess and run.dsl else None,
            self.querybank if postprocess else None,
        )

    def training_pairs(self, samples: list[Sample]) -> tuple[TrainingPairs, list[Sample]]:
        """The pairs of a training split and, with --select_on holdout, the videos that are not among them."""
        data, run = self.config.data, self.config.run
        held: list[Sample] = []
        twin_of = self.training_twins(samples)
        if run.select_on == "holdout":
            samples, held = hold_out(samples, run.holdout_videos, run.seed)
        frames = self.frame_reader(training=True)
        return TrainingPairs(samples, self.tokenizer, frames, data.expand_msrvtt_sentences, run.seed, twin_of), held

    def check_training(self) -> None:
        """What can be said about a training before any video is read; raises as `train` would later."""
        preflight.check_trainable(self.method, self.config.model.method)
        pairs, _ = self.training_pairs(self.listed("train"))
        deal_batches(pairs, self.config.optim, self.process, self.config.run.seed)

    def train(self) -> None:
        """Train, and leave the selected weights in `self.method`."""
        run = self.config.run
        pairs, held = self.training_pairs(self.read_split("train"))
        log.info("training split: %s videos, %d pairs", self.count("train", len(pairs.samples)), len(pairs))
        if held and not run.allow_missing:  # above 0 they have been tried
            unreadable = self.find_unreadable(held, list(range(len(held))), self.frame_reader(training=False))
            leave_out(held, unreadable, 0, "train")
        selection_split = self.test if run.select_on == "test" else self.evaluation_split(held) if held else None
        best = self.logger.output_dir / "best.safetensors"
        notes = {"best_recall": -1.0}  # of the selection, which a resumed run remembers

        def after_epoch(epoch: int) -> None:
            self.epoch = epoch
            self.save(self.logger.output_dir / "last.safetensors")
            if selection_split is None:
                return
            metrics = self.evaluate(selection_split)
            log.info("epoch %d, %s split\n%s", epoch, run.select_on, format_metrics(metrics))
            self.logger.metrics(epoch, run.select_on, flat_metrics(metrics))
            if metrics["text_to_video"]["R@1"] >= notes["best_recall"]:  # of equal epochs the later one
                notes["best_recall"] = metrics["text_to_video"]["R@1"]
                self.save(best)

        train(
            self.method,
            pairs,
            self.config.optim,
            self.process,
            self.logger,
            seed=run.seed,
            num_workers=self.num_workers,
            prefetch_factor=self.config.data.prefetch_factor,
            n_display=run.n_display,
            after_epoch=after_epoch,
            points=ResumePoints(self.logger.output_dir / "resume", self.identity(len(pairs)), run.keep_checkpoints),
            resume=run.resume,
            save_every=run.save_every,
            notes=notes,
        )
        self.epoch = self.config.optim.epochs
        self.selection = SELECTION[run.select_on]
        if selection_split is not None:
            self.process.barrier()  # the main process may still be writing what all are about to read
            self.epoch = load_checkpoint(best, self.method, self.backbone_sha256).epoch

    def identity(self, n_pairs: int) -> dict[str, Any]:
        """What a run must have in common with a resume point, see `ResumePoints`."""
        config = self.config
        of_the_data = (
            "expand_msrvtt_sentences", "max_words", "max_frames", "frame_sampling", "frame_transform",
            "feature_framerate", "slice_framepos",
        )  # fmt: skip
        of_cost_alone = ("gradient_accumulation_steps", "activation_checkpointing", "compile", "precision_val")
        return {
            "method": config.model.method,
            **config.model.options,
            "CLIP (sha256)": self.backbone_sha256,
            **{name: value for name, value in asdict(config.optim).items() if name not in of_cost_alone},
            **{name: getattr(config.data, name) for name in of_the_data},
            **{name: getattr(config.run, name) for name in ("seed", "select_on", "holdout_videos")},
            "training pairs": n_pairs,
        }

    def save(self, path: Path) -> None:
        if self.process.is_main:
            full = self.config.run.save_full
            save_checkpoint(
                path, self.method, CheckpointHeader(self.config.flat(), self.epoch, self.backbone_sha256, full)
            )

    def report(self) -> Metrics:
        """Evaluate on the test split and write the numbers down, with how these weights were selected."""
        metrics = self.evaluate(self.test, postprocess=True)
        videos = self.count("test", len(self.test[0]))
        log.info(
            "test split, %s videos, selection: %s (epoch %d)\n%s",
            videos, self.selection, self.epoch, format_metrics(metrics),
        )  # fmt: skip
        self.logger.metrics(self.epoch, "test", flat_metrics(metrics) | {"selection": self.selection, "videos": videos})
        if self.process.is_main and self.config.run.results_csv:
            row = preflight.result_row(
                self.config, self.process, videos=videos, n_trainable=self.n_trainable, selection=self.selection,
                epoch=self.epoch, metrics=metrics,
            )  # fmt: skip
            append_row(Path(self.config.run.results_csv), row)
        return metrics


def run(config: Config, process: Process) -> Metrics:
    """Train and evaluate as `config` says; gives the metrics on the test split."""
    preflight.check_places(config, process)
    logger = RunLogger(Path(config.run.output_dir), process, config.run.wandb_project, config.run.row_name)
    try:
        job = RetrievalRun(config, process, logger)
        if config.run.do_train:
            job.train()
        return job.report()
    finally:
        logger.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run from a command line; a user's mistake is one sentence on stderr and exit status 2."""
    try:
        config = parse_config(argv)
        if config.run.describe:
            model, data = config.model, config.data
            counts = describe(
                model.method, model.pretrained_clip_name, model.pretrained_dir, model.options, data.max_frames,
                data.max_words,
            )  # fmt: skip
            print(json.dumps(counts, indent=2))
            return 0
        with process_group() as process:
            run(config, process)
        return 0
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return EXIT_INTERRUPTED
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        known = explained(error)
        if known is None or os.environ.get("STOP_TRACEBACK"):
            raise
        print(f"error: {one_sentence(known)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
