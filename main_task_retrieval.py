"""Text-video retrieval: train a method on a data set and evaluate it, or evaluate it only.

    one process        python main_task_retrieval.py --do_train --method clip4clip --datatype msrvtt ...
    many GPUs          torchrun --standalone --nproc_per_node=4 main_task_retrieval.py --do_train ...
    zero-shot          python main_task_retrieval.py --do_eval ...          (CLIP as it is)
    a checkpoint       python main_task_retrieval.py --do_eval --init_model runs/mine/last.safetensors ...
    parameters, GFLOP  python main_task_retrieval.py --describe --method clip4clip --pretrained_clip_name ViT-B/32

`scripts/msrvtt.sh` fills in the rest; `--help` lists every flag.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dataloaders.file_kind import FileKind, file_kind
from dataloaders.preparation import forecast, leave_out, missing_files, read_all
from dataloaders.samples import FrameReader, GalleryVideos, QueryCaptions, Sample, TrainingPairs
from dataloaders.twins import read_twins
from engine import identity
from engine.checkpoint import CheckpointHeader, ResumePoints, save_checkpoint
from engine.cli import parse_config
from engine.config import Config
from engine.data import check_overlap, draw_captions, frame_cache, frame_reader, hold_out, list_split
from engine.describe import describe
from engine.distributed import Process, process_group
from engine.evaluate import evaluate, flat_metrics, format_metrics
from engine.file_formats import refuse_other_kind
from engine.logger import RunLogger, append_row, log, provenance
from engine.messages import print_error
from engine.run_folder import one_run_at_a_time, settings_file
from engine.train import Interrupted, auto_precision, autocast_for, train
from engine.weights import load_weights, put_trained
from modules.caption_lengths import count_cut
from modules.clip_weights import backbone_sha256, load_clip
from modules.methods import build_method
from modules.tokenizer import Tokenizer, check_vocabulary

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
        torch.manual_seed(config.run.seed)
        for folder in ("", config.model.pretrained_dir):
            refuse_other_kind(Path(folder, config.model.pretrained_clip_name), "--pretrained_clip_name")
        clip = load_clip(
            config.model.pretrained_clip_name, config.model.pretrained_dir, asked=config.model.asked_of_clip()
        )
        check_vocabulary(clip.backbone)
        self.backbone, self.backbone_sha256 = clip.backbone, backbone_sha256(clip)
        self.method = build_method(config.model.method, clip, **config.model.options).to(process.device)
        if config.data.max_words > clip.text.context_length:
            raise ValueError(f"--max_words {config.data.max_words} exceeds the {clip.text.context_length} of this CLIP")
        self.tokenizer = Tokenizer(config.data.max_words)
        self.n_trainable = sum(parameter.numel() for _, parameter in self.method.trainable_parameters())
        log.info(
            "method %s on %s (sha256 %s), %s trainable of %s parameters, %d x %s",
            config.model.method, config.model.pretrained_clip_name, self.backbone_sha256[:12], f"{self.n_trainable:,}",
            f"{sum(p.numel() for p in self.method.parameters()):,}", process.world_size, process.device.type,
        )  # fmt: skip
        log.info("%s: %s", config.model.pretrained_clip_name, self.backbone)
        self.frame_cache = frame_cache(config.data, config.run)
        self.provenance = provenance(process) if config.run.results_csv else {}  # of the code that runs, not of later
        self.epoch, self.selection = 0, "zero-shot"
        self.clip_name = config.model.pretrained_clip_name
        self.trained_on: FileKind | None = None
        self.left_out: dict[str, list[str]] = {}  # ids of each split's videos that are missing or cannot be read
        if config.model.init_model:
            self.start_from(Path(config.model.init_model))
            self.selection = "checkpoint as given"
            log.info("weights from %s, epoch %d", config.model.init_model, self.epoch)
        test_samples = self.read_split("test")
        self.test = self.evaluation_split(test_samples)
        twins_csv = config.data.twins_csv
        self.test_twins = None
        if twins_csv:
            self.test_twins = read_twins(Path(twins_csv), test_samples, left_out=self.left_out["test"])
        self.test_files = self.kind_of(test_samples)
        log.info("test split: %s videos, %d captions", self.count("test", len(test_samples)), len(self.test[1]))
        self.log_cut_captions("test", test_samples)
        self.querybank = None
        if config.run.qb_norm:
            drawn = draw_captions(list_split(config.data, "train"), config.run.querybank_size, config.run.seed)
            self.querybank = QueryCaptions(drawn, self.tokenizer)
            log.info("query bank of QB-Norm: %d captions of the training split", len(self.querybank))
        logger.config(self.config.flat(), settings_file(logger.output_dir, config.run.do_train))

    def start_from(self, path: Path) -> None:
        """Load --init_model. If it brings another CLIP, only full checkpoints can be evaluated later: they are made."""
        config = self.config
        loaded = load_weights(path, self.method, self.backbone_sha256, config.run.do_train)
        self.backbone_sha256, self.epoch = loaded.backbone_sha256, loaded.epoch
        self.trained_on = FileKind.from_facts(loaded.trained_on)
        if loaded.replaced:
            self.clip_name = f"of {path.name}"
            self.config = replace(
                config, run=replace(config.run, save_full=config.run.save_full or config.run.do_train)
            )
            log.info(
                "the CLIP is that of %s (sha256 %s) and not of --pretrained_clip_name%s", path,
                self.backbone_sha256[:12], "; checkpoints hold it too, as with --save_full" * config.run.do_train,
            )  # fmt: skip

    def read_split(self, split: str) -> list[Sample]:
        """The samples of a split whose videos can be used; what is wrong with the others goes into the log.

        Raises ValueError if more videos than --allow_missing are missing or cannot be read.
        """
        listed, allowed = list_split(self.config.data, split), self.config.run.allow_missing
        frames = self.frame_reader(training=split == "train")
        problems = missing_files(listed)
        samples = leave_out(listed, problems, allowed, split)
        if frames.cache is not None:
            self.announce_cache(split, samples, frames)
        if allowed:
            problems |= self.find_unreadable(listed, [row for row in range(len(listed)) if row not in problems], frames)
            samples = leave_out(listed, problems, allowed, split)
            for row in sorted(problems):
                log.info("left out of the %s split: %s", split, problems[row])
        self.left_out[split] = [listed[row].video_id for row in sorted(problems)]
        return samples

    def announce_cache(self, split: str, samples: list[Sample], frames: FrameReader) -> None:
        """Say what the frame cache will take; ValueError if the disk has no room for it."""
        run, error = self.config.run, None
        if self.process.is_main:
            try:
                log.info(
                    "frame cache %s (%s), %s split: %s", run.frame_cache, run.frame_cache_format, split,
                    forecast(samples, frames, run.allow_missing, max(1, self.config.data.num_thread_reader)),
                )  # fmt: skip
            except (ValueError, OSError) as caught:
                error = caught
        self.process.fail_together(error)
        if self.frame_cache:
            for known in self.process.share(
                self.frame_cache.content_samples
            ):  # so that no other process reads them again
                self.frame_cache.content_samples.update(known)

    def find_unreadable(self, samples: list[Sample], rows: list[int], frames: FrameReader) -> dict[int, str]:
        """Try the videos `rows` of `samples`, each process its share; the reasons of those that cannot be read."""
        share = rows[self.process.rank :: self.process.world_size]
        found, error = {}, None
        try:
            reasons = read_all([samples[row] for row in share], frames, max(1, self.config.data.num_thread_reader))
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

    def log_cut_captions(self, split: str, samples: list[Sample]) -> None:
        """Say how many captions of a split are longer than --max_words."""
        captions = (caption for sample in samples for caption in sample.captions)
        log.info("%s split: %s", split, count_cut(captions, self.tokenizer.words, self.config.data.max_words))

    def training_twins(self, samples: list[Sample]) -> dict[str, str]:
        """The training videos that shall meet in a batch: each one's id with the other's."""
        if not self.config.data.train_twins_csv:
            return {}
        twins = read_twins(Path(self.config.data.train_twins_csv), samples, "train", self.left_out["train"])
        return {samples[i].video_id: samples[j].video_id for i, j in enumerate(twins.tolist()) if j >= 0}

    def frame_reader(self, training: bool) -> FrameReader:
        return frame_reader(self.config.data, self.backbone, training, self.frame_cache)

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
            self.config.data.num_thread_reader,
            self.config.data.prefetch_factor,
            self.test_twins if split is self.test else None,
            run.dsl_temperature if postprocess and run.dsl else None,
            self.querybank if postprocess else None,
        )

    def train(self) -> None:
        """Train, and leave the selected weights in `self.method`."""
        run = self.config.run
        samples, selection_split = self.read_split("train"), None
        twin_of = self.training_twins(samples)
        if run.select_on == "holdout":
            samples, held = hold_out(samples, run.holdout_videos, run.seed)
            selection_split = self.evaluation_split(held)
        elif run.select_on == "test":
            selection_split = self.test
        pairs = TrainingPairs(
            samples,
            self.tokenizer,
            self.frame_reader(training=True),
            self.config.data.expand_msrvtt_sentences,
            run.seed,
            twin_of,
        )
        self.trained_on = self.kind_of(samples)
        log.info("training split: %s videos, %d pairs", self.count("train", len(samples)), len(pairs))
        self.log_cut_captions("training", samples)
        last_path, best_path = (self.logger.output_dir / f"{name}.safetensors" for name in ("last", "best"))
        self.epoch = 0
        # Of the selection, the best weights included: a run that goes on has them, in whatever folder.
        notes: dict[str, Any] = {"best_recall": -1.0}

        def after_epoch(epoch: int) -> None:
            self.epoch = epoch
            self.save(last_path)
            if selection_split is None:
                return
            metrics = self.evaluate(selection_split)
            log.info("epoch %d, %s split\n%s", epoch, run.select_on, format_metrics(metrics))
            self.logger.metrics(epoch, run.select_on, flat_metrics(metrics))
            if metrics["text_to_video"]["R@1"] >= notes["best_recall"]:  # of equal epochs the later one
                trained = {n: p.detach().to("cpu", copy=True) for n, p in self.method.trainable_parameters()}
                notes.update(best_recall=metrics["text_to_video"]["R@1"], best_epoch=epoch, best_tensors=trained)
                self.save(best_path)

        train(
            self.method,
            pairs,
            self.config.optim,
            self.process,
            self.logger,
            seed=run.seed,
            num_workers=self.config.data.num_thread_reader,
            prefetch_factor=self.config.data.prefetch_factor,
            n_display=run.n_display,
            after_epoch=after_epoch,
            points=ResumePoints(
                self.logger.output_dir / "resume", self.identity(pairs, selection_split), run.keep_checkpoints
            ),
            resume=run.resume,
            save_every=run.save_every,
            notes=notes,
        )
        if self.epoch == 0:  # all epochs were done before; this folder may have another run's weights, or none
            self.epoch = self.config.optim.epochs
            self.save(last_path)
        self.selection = SELECTION[run.select_on]
        if selection_split is not None:
            self.epoch = notes["best_epoch"]
            put_trained(self.method, notes["best_tensors"])
            self.save(best_path)  # a run that goes on in another folder has none there, or another run's

    def identity(self, pairs: TrainingPairs, selection_split: EvaluationSplit | None) -> dict[str, Any]:
        """What a run must have in common with a resume point, see `ResumePoints`."""
        config, selected_on = self.config, selection_split[0].samples if selection_split is not None else ()
        precision = auto_precision(self.process.device) if config.optim.precision == "auto" else config.optim.precision
        return {
            **identity.of_the_settings(config.model, config.data, config.optim, config.run, precision),
            **identity.of_the_weights(self.method, self.backbone_sha256),
            **identity.of_the_data(pairs, selected_on, Path(config.data.features_path), self.left_out["train"]),
        }

    def save(self, path: Path) -> None:
        if self.process.is_main:
            full, trained_on = self.config.run.save_full, self.trained_on.facts if self.trained_on else {}
            header = CheckpointHeader(
                self.config.flat(), self.epoch, self.backbone_sha256, full, self.backbone.facts(), trained_on
            )
            save_checkpoint(path, self.method, header)

    def kind_of(self, samples: list[Sample]) -> FileKind | None:
        """On the main process, which alone tells of it."""
        return file_kind(samples) if self.process.is_main else None

    def compare_files(self) -> dict[str, str]:
        """The kinds of files of training and of the test split if they are two, which the log then warns of."""
        here, there = self.test_files, self.trained_on
        if not (here and there and here.differs_from(there)):
            return {}
        log.warning(
            "attention: trained on files of another kind (%s) than the test files (%s), which changes the numbers: "
            "evaluate on files made as those for training", there, here,
        )  # fmt: skip
        return {"trained_on": str(there), "test_files": str(here)}

    def report(self) -> Metrics:
        """Evaluate on the test split and write the numbers down, with how these weights were selected."""
        self.logger.begin()
        files = self.compare_files()
        metrics = self.evaluate(self.test, postprocess=True)
        videos = self.count("test", len(self.test[0]))
        log.info(
            "test split, %s videos, selection: %s (epoch %d)\n%s",
            videos, self.selection, self.epoch, format_metrics(metrics),
        )  # fmt: skip
        told = {"selection": self.selection, "videos": videos, **files}
        self.logger.metrics(self.epoch, "test", flat_metrics(metrics) | told)
        if self.process.is_main and self.config.run.results_csv:
            row = {
                "name": self.config.run.row_name or self.config.model.method,
                "method": self.config.model.method,
                "clip": self.clip_name,
                "data": self.config.data.datatype,
                "videos": videos,
                "trainable_parameters": self.n_trainable,
                "seed": self.config.run.seed,
                "selection": self.selection,
                "epoch": self.epoch,
            }
            append_row(Path(self.config.run.results_csv), row | flat_metrics(metrics) | self.provenance)
        return metrics


def run(config: Config, process: Process) -> Metrics:
    """Train and evaluate as `config` says; gives the metrics on the test split."""
    uses_both = config.run.do_train or config.run.qb_norm
    overlap = check_overlap(config.data, config.run.allow_overlap) if uses_both else ""
    folder = Path(config.run.output_dir)
    with one_run_at_a_time(folder, process):
        logger = RunLogger(folder, process, config.run.wandb_project, config.run.row_name, begin=False)
        try:
            if overlap:
                log.info("%s", overlap)
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
                data.max_words, model.asked_of_clip(),
            )  # fmt: skip
            print(json.dumps(counts, indent=2))
            return 0
        with process_group() as process:
            run(config, process)
        return 0
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return EXIT_INTERRUPTED
    except (ValueError, OSError) as error:
        if os.environ.get("STOP_TRACEBACK"):
            raise
        print_error(one_sentence(error))
        return 2


def one_sentence(error: Exception) -> str:
    """The message of an error; of one that a decoding process raised, without that process's traceback."""
    message = str(error).strip()
    if "Original Traceback" in message:
        message = message.splitlines()[-1].split(": ", 1)[-1]
    return message


if __name__ == "__main__":
    sys.exit(main())
