"""Reads the splits of a run: the samples in their lists, and which of their videos can be used."""

from collections.abc import Callable, Mapping, Sequence
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
from modules.tokenizer import tokenizer_of


class Splits:
    """The videos and captions that a run's settings name, for a CLIP with this `backbone`.

    `reader` turns a reader of frames into that of a split's videos, as the task's datasets will use it.
    `left_out` has, for each split that was read, the ids of its videos that are missing or cannot be read.
    """

    def __init__(
        self,
        config: Config,
        process: Process,
        backbone: Backbone,
        reader: Callable[[FrameReader, str], FrameReader] = lambda frames, split: frames,
    ) -> None:
        self.config, self.process, self.backbone, self.reader = config, process, backbone, reader
        self.tokenizer = tokenizer_of(backbone, config.data.max_words)
        self.num_workers = reader_processes(config.data.num_thread_reader)
        self.frame_cache = frame_cache(config.data, config.run)
        self.left_out: dict[str, list[str]] = {}
        self._listed: dict[str, list[Sample]] = {}

    def listed(self, split: str) -> list[Sample]:
        """Return the samples that a split's files list; the files are read only once."""
        if split not in self._listed:
            self._listed[split] = self.config.task.list_split(self.config.data, split)
        return self._listed[split]

    def check_overlap(self, split: str = "test") -> None:
        """Raise ValueError if a split shares videos with the training split; with --allow_overlap, only log it."""
        listed = self.listed(split)
        shared = shared_videos(self.listed("train"), listed)
        if not shared:
            return
        found = (
            f"{len(shared)} of the {len(listed)} videos of the {split} split are also in the training split, the first "
            f"is {shorten(str(shared[0].path), 200)}"
        )
        if not self.config.run.allow_overlap:
            raise ValueError(
                f"{found}: pass lists that share no video, or --allow_overlap to evaluate on training videos "
                "nevertheless"
            )
        log.info("attention: %s (--allow_overlap)", found)

    def read(self, split: str) -> list[Sample]:
        """Return the samples of a split whose videos can be used; log what is wrong with the others.

        The videos of the test and the validation split are tried before training, because the run would only notice a
        broken one at its end or after an epoch.

        Raises ValueError if more than --allow_missing videos are missing or cannot be read.
        """
        listed, allowed = self.listed(split), self.config.run.allow_missing
        frames = self.reader(self.frame_reader(training=split == "train"), split)
        problems = missing_files(listed)
        samples = leave_out(listed, problems, allowed, split)
        if frames.cache is not None and samples:  # none are listed if the split comes from shards
            self._announce_cache(split, samples, frames)
        if allowed or (split != "train" and self.config.run.do_train):
            problems |= self.find_unreadable(listed, [row for row in range(len(listed)) if row not in problems], frames)
            samples = leave_out(listed, problems, allowed, split)
            for row in sorted(problems):
                log.info("left out of the %s split: %s", split, problems[row])
        self.left_out[split] = [listed[row].video_id for row in sorted(problems)]
        return samples

    def _announce_cache(self, split: str, samples: list[Sample], frames: FrameReader) -> None:
        """Log the size that the frame cache will have; raise ValueError if the disk has no room for it."""
        run, cache = self.config.run, frames.cache
        assert cache is not None

        def announce() -> None:
            log.info(
                "frame cache %s (%s), %s split: %s", run.frame_cache, run.frame_cache_format, split,
                forecast(samples, frames, run.allow_missing, max(1, self.num_workers)),
            )  # fmt: skip

        self.process.on_main(announce)
        for known in self.process.share(cache.content_samples):  # so that the other processes need not read them
            cache.content_samples.update(known)

    def find_unreadable(self, samples: list[Sample], rows: list[int], frames: FrameReader) -> dict[int, str]:
        """Try to read the videos `rows` of `samples`, each process its share; return the errors by row."""
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
        """Return the number of videos as text: "1000", or "983 of 1000" if some were left out."""
        n_left_out = len(self.left_out[split])
        return f"{n_used} of {n_used + n_left_out}" if n_left_out else str(n_used)

    def log_cut_captions(self, split: str, samples: Sequence[Sample]) -> None:
        """Log how many captions of a split, if it has any, are longer than --max_words."""
        captions = [caption for sample in samples for caption in sample.captions]
        if captions:
            log.info("%s split: %s", split, count_cut(captions, self.tokenizer, self.config.data.max_words))

    def frame_reader(self, training: bool) -> FrameReader:
        return frame_reader(self.config.data, self.backbone, training, self.frame_cache)


def hold_out(
    samples: list[Sample], count: int, seed: int, twin_of: Mapping[str, str] | None = None
) -> tuple[list[Sample], list[Sample]]:
    """Divide training samples into those to train on and `count` held-out ones, drawn by the seed.

    `twin_of` maps a video's id to its twin's. A drawn video takes its twin along, so that held-out frames are never
    trained on in the opposite order; there may then be one held-out video more.
    """
    if count >= len(samples):
        raise ValueError(f"--holdout_videos {count} leaves none of the {len(samples)} training videos to train on")
    rows = {sample.video_id: row for row, sample in enumerate(samples)} if twin_of else {}
    held: set[int] = set()
    for row in np.random.default_rng(seed).permutation(len(samples)).tolist():
        if len(held) >= count:
            break
        held |= {row, rows.get((twin_of or {}).get(samples[row].video_id, ""), row)}
    if len(held) == len(samples):
        raise ValueError(f"--holdout_videos {count} with their twins are all training videos: pass a smaller number")
    return (
        [sample for row, sample in enumerate(samples) if row not in held],
        [sample for row, sample in enumerate(samples) if row in held],
    )


def draw_captions(samples: list[Sample], count: int, seed: int) -> list[Sample]:
    """Draw at most `count` captions of all samples without repetition; each becomes one sample."""
    pairs = [replace(s, captions=(caption,)) for s in samples for caption in s.captions]
    return [pairs[item] for item in np.random.default_rng(seed).permutation(len(pairs))[:count]]
