"""Times an epoch and an evaluation as they really run: from a raw frame cache, with worker processes; needs neither
data nor weights.

    bash scripts/benchmark_epoch.sh
    bash scripts/benchmark_epoch.sh --method stop --steps 200 --compile

The weights are random, the clips noise, the captions made up. The clips are in a raw frame cache as
preprocess/cache_frames.py writes it, in a temporary folder (set TMPDIR to choose the place; 3.6 MB per clip).
`engine.train.Training` itself reads, tokenises and trains on them. An epoch of MSR-VTT has 180,000 pairs: 9,000 clips
with 20 captions each. Here fewer clips have more captions each, which costs the same while the operating system keeps
all clips in memory. The benchmark does not measure reads from a disk, nor the first read of 9,000 entries that have
more candidates than the T frames of an entry here.

The warm-up steps are not counted. The first of them compiles if --compile is set. Worker processes prepare batches
meanwhile, and the other warm-up steps use those batches up.

The evaluation is retrieval's (`engine.tasks.retrieval`) on at most 1,000 clips with one caption each, from the start
of its worker processes to the metrics. It runs twice; the first time includes all warm-up.

Shapes: T frames, S image side.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.common import (
    check_clip,
    check_outputs,
    default_device,
    origin_of,
    parse_with_options,
    write_json,
)
from dataloaders.cache import FrameCache
from dataloaders.datasets import GalleryVideos, QueryCaptions, TrainingPairs
from dataloaders.frames import FrameReader
from dataloaders.preparation import in_threads
from dataloaders.samples import Sample
from engine.clock import PHASES
from engine.config import Config, DataConfig, ModelConfig, OptimConfig, RunConfig
from engine.distributed import Process
from engine.errors import print_report
from engine.logger import RunLogger
from engine.precision import auto_precision
from engine.tasks.retrieval import Retrieval, RetrievalSettings, RetrievalSplit
from engine.train import Training
from modules.clip import CLIP
from modules.clip_weights import backbone_of
from modules.methods import METHODS, Method, build_method
from modules.open_clip_names import is_open_clip_name
from modules.options import Checked, Choices, Range, between
from modules.tokenizer import find_tokenizer, tokenizer_of

MSRVTT_PAIRS = 180_000  # per epoch
EVALUATION_CLIPS = 1_000
PREFETCH = 2  # batches that a worker process prepares ahead; training's default
WHO, DOES, WHERE = (
    ("a man", "a young woman", "a cartoon dog", "two boys", "a band"),
    ("is cooking", "talks about cars", "plays the guitar", "runs and laughs", "explains a computer game"),
    ("in a kitchen", "on a stage", "at the sea", "in front of many people"),
)


@dataclass(frozen=True)
class Settings(Checked):
    """The flags."""

    method: Annotated[str, "the method", Choices(METHODS)] = "stop"
    pretrained_clip_name: Annotated[str, "a CLIP by name (ViT-B/32 ...) or by its weights; only its sizes count"] = (
        "ViT-B/32"
    )
    clips: Annotated[int, "made clips", Range(1)] = 1000
    pairs: Annotated[int, "pairs per epoch; the clips get as many captions as that takes"] = MSRVTT_PAIRS
    steps: Annotated[int, "steps to time; 0: a whole epoch"] = 0
    batch_size: Annotated[int, "pairs per step", Range(2)] = 128
    batch_size_val: Annotated[int, "clips or captions per batch in evaluation", Range(1)] = 16
    max_frames: Annotated[int, "T, frames per clip", Range(1)] = 12
    max_words: Annotated[int, "tokens per caption, START and END included"] = 32
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], "precision of the encoders; auto: bf16 on a GPU that has it"
    ] = "auto"
    compile: Annotated[bool, "train through torch.compile, as main_task_retrieval.py --compile does"] = False
    num_thread_reader: Annotated[int, "worker processes of the loader; 0: none", Range(0)] = 8
    output: Annotated[str, "json file for the numbers; empty: none"] = "results/benchmark_epoch.json"

    def __post_init__(self) -> None:
        super().__post_init__()
        between("pairs", self.pairs, self.batch_size)
        between("steps", self.steps, 0, self.pairs // self.batch_size)

    def on(self, device: torch.device) -> "Settings":
        """Return these settings with the precision that `auto` means on `device`."""
        return replace(self, precision=auto_precision(device)) if self.precision == "auto" else self

    @property
    def counted_steps(self) -> int:
        return self.steps or self.pairs // self.batch_size

    @property
    def warm_up_steps(self) -> int:
        """The first, those whose batches the worker processes may have prepared meanwhile, and one more."""
        return 2 + PREFETCH * self.num_thread_reader

    @property
    def captions(self) -> int:
        """Captions per clip, enough for the warm-up steps and the counted steps of an epoch."""
        return -(-self.batch_size * (self.warm_up_steps + self.counted_steps) // self.clips)


@dataclass(frozen=True)
class EpochTime:
    """Training times in seconds; without a comment, those of the counted steps."""

    first_step: float  # includes compiling
    warm_up_steps: int
    warm_up: float  # includes the start of the worker processes and the first step
    steps: int
    pairs: int
    seconds: float
    clips_per_second: float
    shares: dict[str, float]  # shares of the time by engine.clock.PHASES; "data" is the wait for it
    msrvtt_epoch: float | None  # 180,000 pairs at that rate; None if all of them were run


class MadeClips(FrameReader):
    """A FrameReader whose videos are T frames of noise each; it never decodes their files.

    It fills a cache under the names by which a FrameReader with the same settings finds the entries.
    """

    def _read(self, path: Any, start: Any, end: Any, positions: Any) -> torch.Tensor:
        """Return uint8 `[T,3,S,S]` at `positions`, seeded by the number in the file's name."""
        shape = (self.max_frames, 3, self.image_size, self.image_size)
        noise = np.random.default_rng(int(path.stem)).integers(256, size=shape, dtype=np.uint8)
        return torch.from_numpy(noise[positions(self.max_frames, 0.0)])


def make_samples(folder: Path, clips: int, captions: int) -> list[Sample]:
    """Return samples with unique captions about as long as MSR-VTT's; their files hold no video."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    samples = []
    for clip in range(clips):
        path = folder / f"{clip}.mp4"
        path.write_bytes(b"no video: frames come from the cache")
        who, does, where = (rng.integers(len(words), size=captions) for words in (WHO, DOES, WHERE))
        texts = (
            f"{WHO[a]} {DOES[b]} {WHERE[c]} in take {number} of film {clip}"
            for number, (a, b, c) in enumerate(zip(who, does, where, strict=True))
        )
        samples.append(Sample(f"video{clip}", path, tuple(texts)))
    return samples


def fill_cache(made: MadeClips, samples: Sequence[Sample], jobs: int) -> None:
    """Write a cache entry for each sample, `jobs` at a time."""
    written = in_threads(lambda sample: made.prepare(sample.path), samples, jobs)
    for _ in tqdm(written, "making clips", len(samples), leave=False):
        pass


def make_task(method: Method, settings: Settings, process: Process) -> Retrieval:
    """Build retrieval as a run does: every caption is a pair."""
    config = Config(
        ModelConfig(),
        DataConfig(
            max_words=settings.max_words,
            max_frames=settings.max_frames,
            num_thread_reader=settings.num_thread_reader,
            prefetch_factor=PREFETCH,
        ),
        OptimConfig(
            epochs=1,
            batch_size=settings.batch_size,
            lr=1e-9,  # random weights on noise must not diverge
            precision=settings.precision,
            compile=settings.compile,
        ),
        RunConfig(describe=True, seed=0, batch_size_val=settings.batch_size_val),  # no files are named
        RetrievalSettings(expand_msrvtt_sentences=True),
    )
    return Retrieval(config, method, process)


def time_epoch(
    task: Retrieval, pairs: TrainingPairs, settings: Settings, process: Process, logger: RunLogger
) -> EpochTime:
    """Train for the warm-up steps, then for the counted steps.

    Raises ValueError if --compile is set and torch.compile does not work here.
    """
    begin = time.perf_counter()
    run = Training(
        task.step(), pairs, task.sampler(pairs), task.config.optim, process, logger,
        seed=0, num_workers=settings.num_thread_reader, prefetch_factor=PREFETCH,
    )  # fmt: skip
    task.method.train()
    warm_up, steps = settings.warm_up_steps, settings.counted_steps
    batches = run.batches(0)

    def take(count: int, name: str) -> float:
        """Take `count` steps; return the time when the device has finished them."""
        for batch in tqdm(islice(batches, count), name, count, leave=False):
            run.take_step(batch)
        run.results.check()
        return time.perf_counter()

    batch = next(batches)
    first = time.perf_counter()
    run.take_step(batch)
    run.results.check()
    first_step = time.perf_counter() - first
    warmed_up = take(warm_up - 1, "warm-up")
    run.clock.restart()
    seconds = take(steps, "steps") - warmed_up
    n_pairs, msrvtt_steps = steps * settings.batch_size, MSRVTT_PAIRS // settings.batch_size
    return EpochTime(
        first_step=first_step,
        warm_up_steps=warm_up,
        warm_up=warmed_up - begin,
        steps=steps,
        pairs=n_pairs,
        seconds=seconds,
        clips_per_second=n_pairs / seconds,
        shares=run.clock.shares(),
        msrvtt_epoch=msrvtt_steps * seconds / steps if steps < msrvtt_steps else None,
    )


def time_evaluations(task: Retrieval, split: RetrievalSplit) -> list[float]:
    """Evaluate twice; return the seconds of each."""
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        task.evaluate(split)
        seconds.append(time.perf_counter() - begin)
    return seconds


def format_times(epoch: EpochTime, evaluated: int, evaluations: Sequence[float], compiled: bool) -> str:
    """Return the table."""
    rows = [
        ("first step", f"{epoch.first_step:.1f} s" + (", compiling included" if compiled else "")),
        ("warm-up", f"{epoch.warm_up:.1f} s, {epoch.warm_up_steps} steps, with the first and the start of workers"),
        ("training", f"{epoch.seconds:.1f} s, {epoch.pairs:,} pairs in {epoch.steps:,} steps"),
        ("clips per second", f"{epoch.clips_per_second:,.1f}"),
        ("waiting for data", f"{epoch.shares['data']:.1%} of the time"),
        ("other phases", ", ".join(f"{phase} {epoch.shares[phase]:.1%}" for phase in PHASES[1:])),
    ]
    if epoch.msrvtt_epoch is not None:
        rows.append((f"{MSRVTT_PAIRS:,} pairs", f"{epoch.msrvtt_epoch:.0f} s at this rate, extrapolated"))
    for number, seconds in zip(("first", "second"), evaluations, strict=True):
        rows.append((f"{number} evaluation", f"{seconds:.1f} s, {evaluated:,} clips with one caption each"))
    return "\n".join(f"{name:<20}{value}" for name, value in rows)


def report(settings: Settings, options: dict[str, Any]) -> str:
    """Make the clips, measure, write the file and return the text to print."""
    check_outputs(settings.output)
    device = default_device()
    settings, process = settings.on(device), Process(0, 1, device)
    architecture = check_clip(settings.pretrained_clip_name, settings.max_words)
    torch.manual_seed(0)
    name = settings.pretrained_clip_name
    clip = CLIP(architecture, backbone_of(name) if is_open_clip_name(name) else None)
    find_tokenizer(clip, name)
    method = build_method(settings.method, clip, **options).to(device)
    tokenizer = tokenizer_of(method.clip.backbone, settings.max_words)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        samples = make_samples(folder / "videos", settings.clips, settings.captions)
        test = [replace(sample, captions=sample.captions[:1]) for sample in samples[:EVALUATION_CLIPS]]
        frames = (settings.max_frames, architecture.image_size, "segment")
        begin = time.perf_counter()
        for training, some in ((True, samples), (False, test)):
            made = MadeClips(*frames, training=training, cache=FrameCache(folder / "cache"))
            fill_cache(made, some, max(1, settings.num_thread_reader))
        filled = time.perf_counter() - begin
        # A new cache has no open entries, as in a run: each worker process checks an entry when it first opens it.
        cache = FrameCache(folder / "cache")
        pairs = TrainingPairs(samples, tokenizer, FrameReader(*frames, training=True, cache=cache), True, seed=0)
        split = RetrievalSplit(GalleryVideos(test, FrameReader(*frames, cache=cache)), QueryCaptions(test, tokenizer))
        logger = RunLogger(folder / "run", process)
        try:
            task = make_task(method, settings, process)
            epoch = time_epoch(task, pairs, settings, process, logger)
            evaluations = time_evaluations(task, split)
        finally:
            logger.close()
    origin, where = origin_of(device)
    if settings.output:
        measured = {"training": asdict(epoch), "evaluation_clips": len(test), "evaluation": evaluations}
        write_json(Path(settings.output), {"settings": asdict(settings) | options, **origin, **measured})
    how = f"{settings.precision}, compiled" if settings.compile else settings.precision
    return "\n".join(
        (
            f"{settings.method} on {settings.pretrained_clip_name}, {how}, batch {settings.batch_size}, "
            f"evaluation batch {settings.batch_size_val}, frames {settings.max_frames}, words {settings.max_words}, "
            f"{settings.num_thread_reader} worker processes",
            where,
            f"{settings.clips:,} made clips with {settings.captions:,} captions each; filling their raw cache took "
            f"{filled:.1f} s",
            "",
            format_times(epoch, len(test), evaluations, settings.compile),
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    return print_report(lambda: report(*parse_with_options(Settings, argv)))


if __name__ == "__main__":
    sys.exit(main())
