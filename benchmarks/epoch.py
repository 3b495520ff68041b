"""How long an epoch and an evaluation take on this device, as they are really trained: from a raw frame cache, with
worker processes; needs neither data nor weights.

    bash scripts/epoch.sh
    bash scripts/epoch.sh --method stop --steps 200 --compile

The weights are random, the clips noise, the captions made up. The clips lie in a raw frame cache as
preprocess/cache_frames.py leaves it, in a temporary folder (TMPDIR says where; 3.6 MB a clip), and are read, tokenised
and trained on by `engine.train.Training` itself. An epoch of MSR-VTT has 180,000 pairs: 9,000 clips with 20 captions
each. Here fewer clips have more captions each, which costs the same as long as the operating system keeps all clips in
memory. What it does not show: reading from a disk, and the first look at 9,000 entries with more candidates than the T
that an entry has here.

The steps that warm up are not counted. The first of them compiles, where --compile asks for it; meanwhile worker
processes prepare batches, and the others use these up.

The evaluation is `engine.evaluate.evaluate`, of at most 1,000 clips against a caption each, from the start of its
worker processes to the metrics; twice, the first time with whatever warms up.

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

from benchmarks.step import check_clip, check_outputs, origin_of, parse_with_options, write_json
from dataloaders.cache import FrameCache
from dataloaders.datasets import GalleryVideos, QueryCaptions, TrainingPairs
from dataloaders.frames import FrameReader
from dataloaders.preparation import in_threads
from dataloaders.quoting import quoted
from dataloaders.samples import Sample
from engine.cli import print_report
from engine.config import OptimConfig, between
from engine.distributed import Process
from engine.evaluate import evaluate
from engine.logger import RunLogger
from engine.train import PHASES, Training, auto_precision, autocast_for
from modules.clip import CLIP
from modules.methods import METHODS, Method, build_method
from modules.tokenizer import Tokenizer

MSRVTT_PAIRS = 180_000  # of an epoch
EVALUATION_CLIPS = 1_000
PREFETCH = 2  # batches that a worker process prepares ahead, as training's own default
WHO, DOES, WHERE = (
    ("a man", "a young woman", "a cartoon dog", "two boys", "a band"),
    ("is cooking", "talks about cars", "plays the guitar", "runs and laughs", "explains a computer game"),
    ("in a kitchen", "on a stage", "at the sea", "in front of many people"),
)


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    method: Annotated[str, "one of modules.methods.METHODS"] = "stop"
    pretrained_clip_name: Annotated[str, "a CLIP by name (ViT-B/32 ...) or by its weights; only its sizes count"] = (
        "ViT-B/32"
    )
    clips: Annotated[int, "made clips"] = 1000
    pairs: Annotated[int, "of an epoch; the clips get as many captions as that takes"] = MSRVTT_PAIRS
    steps: Annotated[int, "steps that are counted; 0: a whole epoch"] = 0
    batch_size: Annotated[int, "pairs of a step"] = 128
    batch_size_val: Annotated[int, "clips or captions at once in evaluation"] = 16
    max_frames: Annotated[int, "T, frames of a clip"] = 12
    max_words: Annotated[int, "tokens of a caption, START and END included"] = 32
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], "of the encoders; auto: bf16 on a GPU that has it"
    ] = "auto"
    compile: Annotated[bool, "train through torch.compile, as main_task_retrieval.py --compile"] = False
    num_thread_reader: Annotated[int, "worker processes of the loader; 0: none"] = 8
    output: Annotated[str, "a json file for the numbers"] = "results/epoch.json"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"--method {quoted(self.method)} is not one of: {', '.join(METHODS)}")
        lowest = {"clips": 1, "batch_size": 2, "batch_size_val": 1, "max_frames": 1, "num_thread_reader": 0}
        for name, low in lowest.items():
            between(name, getattr(self, name), low)
        between("pairs", self.pairs, self.batch_size)
        between("steps", self.steps, 0, self.pairs // self.batch_size)

    def on(self, device: torch.device) -> "Settings":
        """With the precision that stands for auto there."""
        return replace(self, precision=auto_precision(device)) if self.precision == "auto" else self

    @property
    def counted_steps(self) -> int:
        return self.steps or self.pairs // self.batch_size

    @property
    def warm_up_steps(self) -> int:
        """The first, those that the worker processes may have prepared meanwhile, and one more."""
        return 2 + PREFETCH * self.num_thread_reader

    @property
    def captions(self) -> int:
        """Of each clip, so that an epoch has the steps that warm up and those that count."""
        return -(-self.batch_size * (self.warm_up_steps + self.counted_steps) // self.clips)


@dataclass(frozen=True)
class EpochTime:
    """How long training took, in seconds; of the steps that count where nothing else is said."""

    first_step: float  # with compiling
    warm_up_steps: int
    warm_up: float  # with the start of the worker processes and the first step
    steps: int
    pairs: int
    seconds: float
    clips_per_second: float
    shares: dict[str, float]  # of the time, by engine.train.PHASES; of "data", waiting for it
    msrvtt_epoch: float | None  # for 180,000 pairs at that rate; None where as many were run


class MadeClips(FrameReader):
    """A FrameReader whose videos are noise of T frames each; their files are only looked at for what names the entry in
    the cache. It fills a cache under the names by which a FrameReader of the same settings finds the entries."""

    def _read(self, path: Path, start: Any, end: Any, positions: Any) -> torch.Tensor:
        """uint8 [T, 3, S, S] from the file's number, at `positions`."""
        shape = (self.max_frames, 3, self.image_size, self.image_size)
        noise = np.random.default_rng(int(path.stem)).integers(256, size=shape, dtype=np.uint8)
        return torch.from_numpy(noise[positions(self.max_frames)])


def make_samples(folder: Path, clips: int, captions: int) -> list[Sample]:
    """Samples with captions of about as many words as MSR-VTT's, no two alike; their files hold no video."""
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
    """Write an entry for each sample, `jobs` at a time."""
    written = in_threads(lambda sample: made.prepare(sample.path), samples, jobs)
    for _ in tqdm(written, "making clips", len(samples), leave=False):
        pass


def time_epoch(
    method: Method, pairs: TrainingPairs, settings: Settings, process: Process, logger: RunLogger
) -> EpochTime:
    """Train: the steps that warm up, then those that count.

    Raises ValueError if torch.compile is asked for and does not work here.
    """
    optim = OptimConfig(
        epochs=1,
        batch_size=settings.batch_size,
        lr=1e-9,  # random weights on noise shall not diverge
        precision=settings.precision,
        compile=settings.compile,
    )
    begin = time.perf_counter()
    run = Training(
        method, pairs, optim, process, logger,
        seed=0, num_workers=settings.num_thread_reader, prefetch_factor=PREFETCH,
    )  # fmt: skip
    method.train()
    warm_up, steps = settings.warm_up_steps, settings.counted_steps
    batches = run.batches(0)

    def take(count: int, name: str) -> float:
        """Steps until the device has finished them; gives the time at the end."""
        for batch in tqdm(islice(batches, count), name, count, leave=False):
            run.take_step(batch)
        run.settle()
        return time.perf_counter()

    batch = next(batches)
    first = time.perf_counter()
    run.take_step(batch)
    run.settle()
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


def time_evaluations(
    method: Method, videos: GalleryVideos, captions: QueryCaptions, settings: Settings, process: Process
) -> list[float]:
    """Seconds of two evaluations."""
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        evaluate(
            method, videos, captions, process, autocast_for(settings.precision, process.device),
            settings.batch_size_val, settings.num_thread_reader, PREFETCH,
        )  # fmt: skip
        seconds.append(time.perf_counter() - begin)
    return seconds


def format_times(epoch: EpochTime, evaluated: int, evaluations: Sequence[float], compiled: bool) -> str:
    """The table."""
    rows = [
        ("first step", f"{epoch.first_step:.1f} s" + (", compiling included" if compiled else "")),
        ("warm-up", f"{epoch.warm_up:.1f} s, {epoch.warm_up_steps} steps, with the first and the start of all"),
        ("training", f"{epoch.seconds:.1f} s, {epoch.pairs:,} pairs in {epoch.steps:,} steps"),
        ("clips a second", f"{epoch.clips_per_second:,.1f}"),
        ("waiting for data", f"{epoch.shares['data']:.1%} of the time"),
        ("the rest of it", ", ".join(f"{phase} {epoch.shares[phase]:.1%}" for phase in PHASES[1:])),
    ]
    if epoch.msrvtt_epoch is not None:
        rows.append((f"{MSRVTT_PAIRS:,} pairs", f"{epoch.msrvtt_epoch:.0f} s at this rate; so many were not run"))
    for number, seconds in zip(("first", "second"), evaluations, strict=True):
        rows.append((f"{number} evaluation", f"{seconds:.1f} s, {evaluated:,} clips and as many captions"))
    return "\n".join(f"{name:<20}{value}" for name, value in rows)


def report(settings: Settings, options: dict[str, Any]) -> str:
    """Make the clips, measure, and say how."""
    check_outputs(settings.output)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings, process = settings.on(device), Process(0, 1, device)
    architecture = check_clip(settings.pretrained_clip_name, settings.max_words)
    torch.manual_seed(0)
    method = build_method(settings.method, CLIP(architecture), **options).to(device)
    tokenizer = Tokenizer(settings.max_words)
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
        # As in a run, none of its entries is open yet: each worker process checks them when it first opens them.
        cache = FrameCache(folder / "cache")
        pairs = TrainingPairs(samples, tokenizer, FrameReader(*frames, training=True, cache=cache), True, seed=0)
        split = GalleryVideos(test, FrameReader(*frames, cache=cache)), QueryCaptions(test, tokenizer)
        logger = RunLogger(folder / "run", process)
        try:
            epoch = time_epoch(method, pairs, settings, process, logger)
            evaluations = time_evaluations(method, *split, settings, process)
        finally:
            logger.close()
    origin, where = origin_of(device)
    if settings.output:
        measured = {"training": asdict(epoch), "evaluation_clips": len(test), "evaluation": evaluations}
        write_json(Path(settings.output), {"settings": asdict(settings) | options, **origin, **measured})
    how = f"{settings.precision}, compiled" if settings.compile else settings.precision
    return "\n".join(
        (
            f"{settings.method} on {settings.pretrained_clip_name}, {how}, batch {settings.batch_size}, in evaluation "
            f"{settings.batch_size_val}, frames {settings.max_frames}, words {settings.max_words}, "
            f"{settings.num_thread_reader} worker processes",
            where,
            f"{settings.clips:,} made clips with {settings.captions:,} captions each; their raw cache was filled in "
            f"{filled:.1f} s",
            "",
            format_times(epoch, len(test), evaluations, settings.compile),
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    return print_report(lambda: report(*parse_with_options(Settings, argv)))


if __name__ == "__main__":
    sys.exit(main())
