"""Runs a program: builds the method and the task from the settings, trains, evaluates and writes a result row.

A program calls `main` with its task. `main` reads the command line, prints errors as one sentence, and returns exit
codes.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dataloaders.file_kind import FileKind, file_kind
from dataloaders.preparation import leave_out
from dataloaders.samples import Sample
from engine import identity, preflight
from engine.checkpoint import CheckpointHeader, ResumePoints, epoch_file, save_checkpoint
from engine.cli import parse_config
from engine.config import Config
from engine.describe import describe
from engine.distributed import Process, process_group
from engine.errors import explained, one_sentence
from engine.file_formats import refuse_other_kind
from engine.interrupt import Interrupted
from engine.logger import AS_GIVEN, RunLogger, append_row, log, provenance
from engine.messages import print_error, print_result
from engine.precision import auto_precision
from engine.run_folder import one_run_at_a_time, settings_file
from engine.tasks.base import Metrics, Task, TrainingItems, flat_metrics, format_metrics
from engine.train import Training, train
from engine.weights import load_weights, put_trained
from modules.clip_weights import backbone_sha256, load_clip
from modules.methods import build_method
from modules.tokenizer import find_tokenizer

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: a signal stopped the run, and --resume auto continues it

SELECTION = {
    "last": "last epoch",
    "holdout": "best epoch on held-out training videos",
    "val": "best epoch on the validation split",
    "test": "best epoch ON THE TEST SPLIT",
}


class Run:
    """One run: builds the method and its task, trains, and evaluates."""

    def __init__(self, config: Config, task: type[Task], process: Process, logger: RunLogger) -> None:
        """Build the method and the task, and check everything that can be checked before a video is read."""
        self.config, self.process, self.logger = config, process, logger
        self.provenance = provenance(process) if config.run.results_csv else {}  # now, before the code may change
        self.epoch, self.selection = 0, ""
        self.trained_on: FileKind | None = None
        self.common: dict[str, Any] = {}  # `identity` of a training
        self.build(task)
        self.check()
        samples = self.task.splits.read("test")
        self.test = self.task.evaluation("test", samples)
        self.test_files = self.kind_of(samples)
        logger.config(self.config.flat(), settings_file(logger.output_dir, config.run.do_train))

    def build(self, task: type[Task]) -> None:
        """Load CLIP, build the method and the task's training step around it, and load --init_model."""
        config, model = self.config, self.config.model
        torch.manual_seed(config.run.seed)
        for folder in ("", model.pretrained_dir):
            refuse_other_kind(Path(folder, model.pretrained_clip_name), "--pretrained_clip_name")
        clip = load_clip(model.pretrained_clip_name, model.pretrained_dir, asked=model.asked_of_clip())
        find_tokenizer(clip, model.pretrained_clip_name)
        self.backbone, self.backbone_sha256 = clip.backbone, backbone_sha256(clip)
        preflight.check_context(config.data.max_words, clip)
        name = self.clip_name = model.pretrained_clip_name
        preflight.check_finite(clip, name if Path(name).exists() else f"{name} in {model.pretrained_dir}")
        as_clip = None  # the scores of CLIP itself, to recognise a zero-shot method
        if not (config.run.do_train or model.init_model):
            sizes = config.data.max_frames, config.data.max_words
            as_clip = preflight.ZeroShotProbe(clip.to(self.process.device), *sizes)
        self.method = build_method(model.method, clip, **model.options).to(self.process.device)
        self.task = task(config, self.method, self.process)
        self.step = self.task.step()
        self.n_trainable = sum(parameter.numel() for _, parameter in self.step.trainable_parameters())
        log.info(
            "method %s on %s (sha256 %s), %s trainable of %s parameters, %d x %s, --num_thread_reader %d",
            model.method, name, self.backbone_sha256[:12], f"{self.n_trainable:,}",
            f"{sum(p.numel() for p in self.step.parameters()):,}", self.process.world_size, self.process.device.type,
            self.task.splits.num_workers,
        )  # fmt: skip
        log.info("%s: %s", name, self.backbone)
        if model.init_model:
            self.start_from(Path(model.init_model))
        elif as_clip is not None:
            self.selection = as_clip.name_of(self.step, model.method, self.process)

    def start_from(self, path: Path) -> None:
        """Load --init_model. If it contains another CLIP, this run writes full checkpoints, because later evaluations
        need that CLIP."""
        config = self.config
        loaded = load_weights(path, self.method, self.backbone_sha256, config.run.do_train, self.step.loss)
        self.backbone_sha256, self.epoch = loaded.backbone_sha256, loaded.header.epoch
        self.trained_on = FileKind.from_facts(loaded.header.trained_on)
        if loaded.replaced:
            self.clip_name = f"of {path.name}"
            self.config = replace(
                config, run=replace(config.run, save_full=config.run.save_full or config.run.do_train)
            )
            log.info(
                "the CLIP is that of %s (sha256 %s) and not of --pretrained_clip_name%s", path,
                self.backbone_sha256[:12], "; checkpoints hold it too, as with --save_full" * config.run.do_train,
            )  # fmt: skip
        self.selection = loaded.header.made_of or AS_GIVEN
        log.info("weights from %s, %s", path, loaded.header.made_of or f"epoch {self.epoch}")
        preflight.check_finite(self.method, str(path))

    def check(self) -> None:
        """Check the lists and, before training, everything that would stop it later; reads no video."""
        config, splits = self.config, self.task.splits
        if config.task.needs_training_split(config.run.do_train):
            splits.check_overlap()
        if config.run.do_train:
            preflight.check_trainable(self.step, config.model.method)
            preflight.check_reached(self.method, config.data.max_frames, config.data.max_words)
            if config.run.select_on == "val":
                splits.check_overlap("val")
            items, _ = self.training_items(splits.listed("train"))
            self.task.sampler(items)
        self.task.check_lists()

    def training_items(self, samples: list[Sample]) -> tuple[TrainingItems, list[Sample]]:
        """Return the items to train on from samples of the training split, and the held-out samples."""
        kept, held = self.task.hold_out(samples)
        return self.task.training_items(kept, self.task.splits.frame_reader(training=True)), held

    def selection_split(self, held: list[Sample]) -> Any:
        """Return the split that selects the weights, or None if the last epoch's weights are kept."""
        run, splits = self.config.run, self.task.splits
        if run.select_on == "test":
            return self.test
        if run.select_on == "val":
            return self.task.evaluation("val", splits.read("val"))
        if not held:
            return None
        if not run.allow_missing:  # otherwise `Splits.read` has tried them already
            unreadable = splits.find_unreadable(held, list(range(len(held))), splits.frame_reader(training=False))
            leave_out(held, unreadable, 0, "train")
        return self.task.evaluation("train", held)

    def train(self) -> None:
        """Train, and leave the selected weights in `self.method`."""
        config, run, splits = self.config, self.config.run, self.task.splits
        items, held = self.training_items(splits.read("train"))
        self.trained_on = self.kind_of(items.samples)
        count = splits.count("train", len(items.samples) or len(items))  # shards have no list of samples
        log.info("training split: %s videos, %d %s", count, len(items), self.step.items)
        splits.log_cut_captions("training", items.samples)
        selection_split = self.selection_split(held)
        last_path, best_path = (self.logger.output_dir / f"{name}.safetensors" for name in ("last", "best"))
        self.epoch = 0
        # The state of the selection, saved in resume points: it holds the best weights for a run in another folder.
        notes: dict[str, Any] = {"best_recall": -1.0}
        self.step.notes = notes
        parameters = dict(self.step.trainable_parameters())

        def after_epoch(epoch: int) -> None:
            self.epoch = epoch
            self.save(last_path)
            if run.save_every_epoch:
                self.save(epoch_file(self.logger.output_dir, epoch))
            if selection_split is None:
                return
            metrics = self.task.evaluate(selection_split)
            log.info("epoch %d, %s split\n%s", epoch, run.select_on, format_metrics(metrics))
            self.logger.metrics(epoch, run.select_on, flat_metrics(metrics, self.task.short_names))
            measured, metric = self.task.selects_by
            if metrics[measured][metric] >= notes["best_recall"]:  # the later one of equal epochs
                best = {name: p.detach().to("cpu", copy=True) for name, p in parameters.items()}
                notes.update(best_recall=metrics[measured][metric], best_epoch=epoch, best_tensors=best)
                self.save(best_path)

        training = Training(
            self.step, items, self.task.sampler(items), config.optim, self.process, self.logger, seed=run.seed,
            num_workers=splits.num_workers, prefetch_factor=config.data.prefetch_factor,
        )  # fmt: skip
        self.common = self.identity(items, selection_split)
        points = ResumePoints(self.logger.output_dir / "resume", self.common, run.keep_checkpoints)
        train(
            training, n_display=run.n_display, after_epoch=after_epoch, points=points, resume=run.resume,
            save_every=run.save_every, notes=notes,
        )  # fmt: skip
        if self.epoch == 0:  # the resumed run was finished; this folder may lack its weights or have another run's
            self.epoch = config.optim.epochs
            self.save(last_path)
        self.selection = SELECTION[run.select_on]
        if selection_split is not None:
            self.epoch = notes["best_epoch"]
            put_trained(parameters, notes["best_tensors"])
            self.save(best_path)  # a run that resumes in another folder has no file there, or another run's

    def identity(self, items: TrainingItems, selection_split: Any) -> dict[str, Any]:
        """Return what a run and a resume point must have in common, see `ResumePoints`."""
        config, selected_on = self.config, selection_split.samples if selection_split is not None else ()
        precision = auto_precision(self.process.device) if config.optim.precision == "auto" else config.optim.precision
        place, left_out = Path(config.data.features_path), self.task.splits.left_out["train"]
        return {
            **identity.of_the_settings(config, precision),
            **identity.of_the_weights(self.method, self.backbone_sha256),
            **identity.of_the_samples(items.samples, selected_on, place, left_out),
            **self.task.identity(items),
        }

    def save(self, path: Path) -> None:
        """Write the current weights; the main process does it for all."""
        if self.process.is_main:
            full, trained_on = self.config.run.save_full, self.trained_on.facts if self.trained_on else {}
            header = CheckpointHeader(
                self.config.flat(), self.epoch, self.backbone_sha256, full, self.backbone.facts(), trained_on,
                self.config.task.task, self.common,
            )  # fmt: skip
            save_checkpoint(path, self.method, header, self.step.loss)

    def kind_of(self, samples: Sequence[Sample]) -> FileKind | None:
        """Return the kind of these video files on the main process, and None on the others, which do not report it."""
        return file_kind(samples) if self.process.is_main else None

    def compare_files(self) -> dict[str, str]:
        """Return the kinds of the training and test files if they differ, and log a warning."""
        here, there = self.test_files, self.trained_on
        if not (here and there and here.differs_from(there)):
            return {}
        log.warning(
            "attention: trained on files of another kind (%s) than the test files (%s), which changes the numbers: "
            "evaluate on files made like the training files", there, here,
        )  # fmt: skip
        return {"trained_on": str(there), "test_files": str(here)}

    def report(self) -> Metrics:
        """Evaluate on the test split, and log the metrics with how these weights were selected."""
        self.logger.begin()
        files = self.compare_files()
        metrics = self.task.evaluate(self.test, final=True)
        flat = flat_metrics(metrics, self.task.short_names)
        videos = self.task.splits.count("test", len(self.test.samples))
        log.info(
            "test split, %s videos, selection: %s (epoch %d)\n%s",
            videos, self.selection, self.epoch, format_metrics(metrics),
        )  # fmt: skip
        told = {"selection": self.selection, "videos": videos, **files, **self.task.told}
        self.logger.metrics(self.epoch, "test", flat | told)
        if self.process.is_main and self.config.run.results_csv:
            row = preflight.result_row(
                self.config, clip=self.clip_name, videos=videos, n_trainable=self.n_trainable, epoch=self.epoch,
                selection=self.selection, metrics=self.task.columns(self.config) | flat,
            )  # fmt: skip
            append_row(Path(self.config.run.results_csv), row | self.provenance)
        return metrics


def run(config: Config, task: type[Task], process: Process) -> Metrics:
    """Train and evaluate as `config` says; return the metrics on the test split."""
    preflight.check_places(config, task, process)
    folder = Path(config.run.output_dir)
    with one_run_at_a_time(folder, process):
        logger = RunLogger(folder, process, config.run.wandb_project, config.run.row_name, begin=False)
        try:
            job = Run(config, task, process, logger)
            if config.run.do_train:
                job.train()
            return job.report()
        finally:
            logger.close()


def main(task: type[Task], argv: Sequence[str] | None = None) -> int:
    """Run a task from a command line; print a user's mistake as one sentence on stderr and return exit code 2."""
    try:
        config = parse_config(argv, task.settings)
        if config.run.describe:
            model, data = config.model, config.data
            counts = describe(
                model.method, model.pretrained_clip_name, model.pretrained_dir, model.options, data.max_frames,
                data.max_words, model.asked_of_clip(), lambda method: task.make_loss(config, method),
            )  # fmt: skip
            print_result(json.dumps(counts, indent=2))
            return 0
        with process_group() as process:
            run(config, task, process)
        return 0
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return EXIT_INTERRUPTED
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        known = explained(error)
        if known is None or os.environ.get("STOP_TRACEBACK"):
            raise
        print_error(one_sentence(known))
        return 2
