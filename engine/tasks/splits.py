"""The splits of a run: what their lists say, which of their videos can be used, and the datasets made of them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from dataloaders.frames import FrameReader
from dataloaders.preparation import forecast, leave_out, missing_files, read_all
from dataloaders.quoting import shorten
from dataloaders.samples import Sample, shared_videos
from engine.config import Config
from engine.data import frame_cache, frame_reader, reader_processes
from engine.distributed import Process
from engine.logger import log
from modules.backbones import Backbone
from modules.caption_lengths import count_cut
from modules.tokenizer import Tokenizer


class Splits:
    """The videos and captions that a run's settings name, for a CLIP with this `backbone`.

    `left_out` has the ids of each split's videos that are missing or cannot be read, once the split has been read.
    """

    def __init__(self, config: Config, process: Process, backbone: Backbone) -> None:
        self.config, self.process, self.backbone = config, process, backbone
        self.tokenizer = Tokenizer(config.data.max_words)
        self.num_workers = reader_processes(config.data.num_thread_reader)
        self.frame_cache = frame_cache(config.data, config.run)
        self.left_out: dict[str, list[str]] = {}
        self._listed: dict[str, list[Sample]] = {}

    def listed(self, split: str) -> list[Sample]:
        """The samples of a split as its files list them, which are read once."""
        if split not in self._listed:
            self._listed[split] = self.config.task.list_split(self.config.data, split)
        return self._listed[split]

    def check_overlap(self, split: str = "test") -> None:
        """Refuse videos of a split that are in the training split too; with --allow_overlap, log how many there are."""
        listed = self.listed(split)
        shared = shared_videos(self.listed("train"), listed)
        if not shared:
            return
        found = (
            f"{len(shared)} of the {len(listed)} videos of the {split} split are in the training split too, the first "
            f"is {shorten(str(shared[0].path), 200)}"
        )
        if not self.config.run.allow_overlap:
            raise ValueError(
                f"{found}: pass lists that share no video, or --allow_overlap to measure what was trained on all the "
                "same"
            )
        log.info("attention: %s (--allow_overlap)", found)

    def read(self, split: str) -> list[Sample]:
        """The samples of a split whose videos can be used; what is wrong with the others goes into the log.

        Before a training, the videos of the test and the validation split are tried: it would meet a broken one only
        after an epoch or at its end.

        Raises ValueError if more videos than --allow_missing are missing or cannot be read.
        """
        listed, allowed = self.listed(split), self.config.run.allow_missing
        frames = self.frame_reader(training=split == "train")
        problems = missing_files(listed)
        samples = leave_out(listed, problems, allowed, split)
        if frames.cache is not None:
            self._announce_cache(split, samples, frames)
        if allowed or (split != "train" and self.config.run.do_train):
            problems |= self.find_unreadable(listed, [row for row in range(len(listed)) if row not in problems], frames)
            samples = leave_out(listed, problems, allowed, split)
            for row in sorted(problems):
                log.info("left out of the %s split: %s", split, problems[row])
        self.left_out[split] = [listed[row].video_id for row in sorted(problems)]
        return samples

    def _announce_cache(self, split: str, samples: list[Sample], frames: FrameReader) -> None:
        """Say what the frame cache will take; ValueError if the disk has no room for it."""
        run, cache, error = self.config.run, frames.cache, None
        assert cache is not None
        if self.process.is_main:
            try:
                log.info(
                    "frame cache %s (%s), %s split: %s", run.frame_cache, run.frame_cache_format, split,
                    forecast(samples, frames, run.allow_missing, max(1, self.num_workers)),
                )  # fmt: skip
            except (ValueError, OSError) as caught:
                error = caught
        self.process.fail_together(error)
        for known in self.process.share(cache.content_samples):  # so that no other process reads them again
            cache.content_samples.update(known)

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

    def log_cut_captions(self, split: str, samples: Sequence[Sample]) -> None:
        """Say how many captions of a split are longer than --max_words."""
        captions = (caption for sample in samples for caption in sample.captions)
        log.info("%s split: %s", split, count_cut(captions, self.tokenizer.words, self.config.data.max_words))

    def frame_reader(self, training: bool) -> FrameReader:
        return frame_reader(self.config.data, self.backbone, training, self.frame_cache)


def hold_out(samples: list[Sample], count: int, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Divide training samples into those to train on and `count` others, drawn by the seed."""
    if count >= len(samples):
        raise ValueError(f"--holdout_videos {count} leaves none of the {len(samples)} training videos to train on")
    held = set(np.random.default_rng(seed).permutation(len(samples))[:count].tolist())
    return (
        [sample for row, sample in enumerate(samples) if row not in held],
        [sample for row, sample in enumerate(samples) if row in held],
    )


def draw_captions(samples: list[Sample], count: int, seed: int) -> list[Sample]:
    """Draw at most `count` captions of all samples without repetition; each becomes a sample."""
    pairs = [replace(s, captions=(caption,)) for s in samples for caption in s.captions]
    return [pairs[item] for item in np.random.default_rng(seed).permutation(len(pairs))[:count]]
