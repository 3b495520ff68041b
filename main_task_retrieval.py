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
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dataloaders.datasets import QueryCaptions, TrainingPairs
from dataloaders.file_kind import FileKind, file_kind
from dataloaders.preparation import leave_out
from dataloaders.samples import Sample
from dataloaders.twins import read_twins
from engine import identity, preflight
from engine.checkpoint import CheckpointHeader, ResumePoints, save_checkpoint
from engine.cli import parse_config
from engine.config import Config
from engine.data import draw_captions
from engine.data import hold_out as hold_out
from engine.describe import describe
from engine.distributed import Process, process_group
from engine.errors import explained, one_sentence
from engine.evaluate import evaluate, flat_metrics, format_metrics
from engine.file_formats import refuse_other_kind
from engine.logger import AS_GIVEN, RunLogger, append_row, log, provenance
from engine.messages import print_error
from engine.run_folder import one_run_at_a_time, settings_file
from engine.splits import EvaluationSplit, Splits
from engine.train import Interrupted, auto_precision, autocast_for, deal_batches, train
from engine.weights import load_weights, put_trained
from modules.clip_weights import backbone_sha256, load_clip
from modules.methods import build_method
from modules.tokenizer import check_vocabulary

Metrics = dict[str, dict[str, float]]

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
        model = config.model
        torch.manual_seed(config.run.seed)
        for folder in ("", model.pretrained_dir):
            refuse_other_kind(Path(folder, model.pretrained_clip_name), "--pretrained_clip_name")
        clip = load_clip(model.pretrained_clip_name, model.pretrained_dir, asked=model.asked_of_clip())
        check_vocabulary(clip.backbone)
        self.backbone, self.backbone_sha256 = clip.backbone, backbone_sha256(clip)
        preflight.check_context(config.data.max_words, clip)
        name = model.pretrained_clip_name
        preflight.check_finite(clip, name if Path(name).exists() else f"{name} in {model.pretrained_dir}")
        as_clip = None  # what CLIP itself makes of some input, to tell zero-shot by
        if not (config.run.do_train or model.init_model):
            as_clip = preflight.ZeroShotProbe(clip.to(process.device), config.data.max_frames, config.data.max_words)
        self.method = build_method(model.method, clip, **model.options).to(process.device)
        self.splits = Splits(config, process, self.backbone)
        self.n_trainable = sum(parameter.numel() for _, parameter in self.method.trainable_parameters())
        log.info(
            "method %s on %s (sha256 %s), %s trainable of %s parameters, %d x %s, --num_thread_reader %d",
            model.method, name, self.backbone_sha256[:12], f"{self.n_trainable:,}",
            f"{sum(p.numel() for p in self.method.parameters()):,}", process.world_size, process.device.type,
            self.splits.num_workers,
        )  # fmt: skip
        log.info("%s: %s", name, self.backbone)
        self.provenance = provenance(process) if config.run.results_csv else {}  # of the code that runs, not of later
        self.epoch, self.selection, self.clip_name = 0, "", name
        self.trained_on: FileKind | None = None
        if model.init_model:
            self.start_from(Path(model.init_model))
            self.selection = AS_GIVEN
            log.info("weights from %s, epoch %d", model.init_model, self.epoch)
            preflight.check_finite(self.method, model.init_model)
        elif as_clip is not None:
            self.selection = as_clip.name_of(self.method, model.method, process)
        if config.run.do_train or config.run.qb_norm:
            self.splits.check_overlap()
        if config.run.do_train:
            self.check_training()
        self.querybank = None
        if config.run.qb_norm:
            drawn = draw_captions(self.splits.listed("train"), config.run.querybank_size, config.run.seed)
            self.querybank = QueryCaptions(drawn, self.splits.tokenizer)
            log.info("query bank of QB-Norm: %d captions of the training split", len(self.querybank))
        twins_csv = config.data.twins_csv
        if twins_csv:  # the file, before videos are read
            preflight.check_twins(read_twins(Path(twins_csv), self.splits.listed("test")), twins_csv)
        samples = self.splits.read("test")
        self.test = self.splits.evaluation(samples)
        self.test_twins = None
        if twins_csv:
            self.test_twins = read_twins(Path(twins_csv), samples, left_out=self.splits.left_out["test"])
            preflight.check_twins(self.test_twins, twins_csv)
        self.test_files = self.kind_of(samples)
        log.info("test split: %s videos, %d captions", self.splits.count("test", len(samples)), len(self.test[1]))
        self.splits.log_cut_captions("test", samples)
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

    def check_training(self) -> None:
        """What can be said about a training before any video is read; raises as `train` would later."""
        preflight.check_trainable(self.method, self.config.model.method)
        preflight.check_reached(self.method, self.config.data.max_frames, self.config.data.max_words)
        pairs, _ = self.splits.training_pairs(self.splits.listed("train"))
        deal_batches(pairs, self.config.optim, self.process, self.config.run.seed)

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
            self.splits.num_workers,
            self.config.data.prefetch_factor,
            self.test_twins if split is self.test else None,
            run.dsl_temperature if postprocess and run.dsl else None,
            self.querybank if postprocess else None,
        )

    def train(self) -> None:
        """Train, and leave the selected weights in `self.method`."""
        run = self.config.run
        pairs, held = self.splits.training_pairs(self.splits.read("train"))
        self.trained_on = self.kind_of(pairs.samples)
        log.info("training split: %s videos, %d pairs", self.splits.count("train", len(pairs.samples)), len(pairs))
        self.splits.log_cut_captions("training", pairs.samples)
        if held and not run.allow_missing:  # above 0 they have been tried
            frames = self.splits.frame_reader(training=False)
            leave_out(held, self.splits.find_unreadable(held, list(range(len(held))), frames), 0, "train")
        selection_split = self.test if run.select_on == "test" else self.splits.evaluation(held) if held else None
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
            num_workers=self.splits.num_workers,
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
            **identity.of_the_data(pairs, selected_on, Path(config.data.features_path), self.splits.left_out["train"]),
        }

    def save(self, path: Path) -> None:
        if self.process.is_main:
            full, trained_on = self.config.run.save_full, self.trained_on.facts if self.trained_on else {}
            header = CheckpointHeader(
                self.config.flat(), self.epoch, self.backbone_sha256, full, self.backbone.facts(), trained_on
            )
            save_checkpoint(path, self.method, header)

    def kind_of(self, samples: Sequence[Sample]) -> FileKind | None:
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
        videos = self.splits.count("test", len(self.test[0]))
        log.info(
            "test split, %s videos, selection: %s (epoch %d)\n%s",
            videos, self.selection, self.epoch, format_metrics(metrics),
        )  # fmt: skip
        told = {"selection": self.selection, "videos": videos, **files}
        self.logger.metrics(self.epoch, "test", flat_metrics(metrics) | told)
        if self.process.is_main and self.config.run.results_csv:
            row = preflight.result_row(
                self.config, clip=self.clip_name, videos=videos, n_trainable=self.n_trainable, epoch=self.epoch,
                selection=self.selection, metrics=metrics,
            )  # fmt: skip
            append_row(Path(self.config.run.results_csv), row | self.provenance)
        return metrics


def run(config: Config, process: Process) -> Metrics:
    """Train and evaluate as `config` says; gives the metrics on the test split."""
    preflight.check_places(config, process)
    folder = Path(config.run.output_dir)
    with one_run_at_a_time(folder, process):
        logger = RunLogger(folder, process, config.run.wandb_project, config.run.row_name, begin=False)
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
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        known = explained(error)
        if known is None or os.environ.get("STOP_TRACEBACK"):
            raise
        print_error(one_sentence(known))
        return 2


if __name__ == "__main__":
    sys.exit(main())
