"""Measures the search on the test clips of the made world: as files, as moments of one long file, and as twins.

    python -m benchmarks.search_moments --checkpoint runs/search_moments/stop/last.safetensors

`files`: each clip is a file of an index. The recalls of its queries are compared with those of the evaluation of
main_task_retrieval.py, and the ranks with those of the same vectors in fp32.

`moments`: the clips are joined into one file. It is indexed with windows of the median length of a clip and with
several strides, and each caption is asked. A hit is
right if its intersection over union (IoU) with the clip is at least 0.5, or, more strictly, if no other window of the
index has a greater one. With pauses, clips begin anywhere; without, each begins with a window.

`twins`: of a clip and the same clip backwards, which one scores higher for the caption of the clip? The checkpoint is
compared with the untrained CLIP, which sees the same frames: their mean, and the best of them.

Shapes: n clips, each with one caption; T frames, E joint embedding; w windows.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from benchmarks.common import check_outputs, origin_of, parse_settings, write_json
from benchmarks.joined_clips import join_clips
from dataloaders.msrvtt import read_split
from dataloaders.quoting import quoted
from dataloaders.samples import Sample
from dataloaders.twins import read_twins
from dataloaders.video_file import length_of
from engine import run
from engine.checkpoint import read_header
from engine.data import normalise_for
from engine.errors import print_report
from engine.evaluate import evaluating
from engine.tasks.retrieval import Retrieval
from engine.tasks.retrieval_metrics import count_better, summarise
from modules.options import Checked, Range
from modules.similarity import unit
from search.__main__ import main as search
from search.index import Index
from search.model import Encoder, Source, load_encoder

RIGHT = 0.5  # IoU from which a hit counts as the moment
TOP = 5
TRAINED_WITH = (
    "method",
    "epochs",
    "lr",
    "batch_size",
    "max_frames",
    "frame_sampling",
    "select_on",
    "holdout_videos",
    "seed",
)
EQUAL = 1e-6  # difference of two cosines that is rounding


@dataclass(frozen=True)
class Settings(Checked):
    """The flags."""

    checkpoint: Annotated[str, "a .safetensors file of a method trained on the made world"] = ""
    data: Annotated[str, "folder of the made world"] = "data/moving_shapes"
    pretrained_clip_name: Annotated[str, "the CLIP that the checkpoint was trained with"] = (
        "pretrained/moving_shapes_clip.safetensors"
    )
    strides: Annotated[str, "strides, in windows"] = "1,0.5,0.25"
    pauses: Annotated[str, "longest pauses before a clip, in windows; each makes a file"] = "0,1"
    clips: Annotated[int, "only the first so many test clips in the long file; 0: all", Range(0)] = 0
    output: Annotated[str, "json file for the numbers; empty: none"] = "results/search_moments.json"

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, text, most in (("strides", self.strides, 1.0), ("pauses", self.pauses, 10.0)):
            try:
                if not all(0 <= value <= most and (value or flag == "pauses") for value in _numbers(text)):
                    raise ValueError
            except ValueError as error:
                raise ValueError(
                    f"--{flag} {quoted(text)} is no list of numbers up to {most:g}, such as 1,0.5"
                ) from error


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


@dataclass(frozen=True)
class World:
    """The test clips, and the row of each one's twin, int64 [n]."""

    folder: Path
    samples: list[Sample]
    twin_of: np.ndarray

    @classmethod
    def read(cls, folder: Path) -> "World":
        """Read the lists; raises ValueError or OSError for wrong ones."""
        samples = read_split(
            "test", data_path=folder / "MSRVTT_data.json", features_path=folder / "videos",
            train_csv=folder / "MSRVTT_train.csv", val_csv=folder / "MSRVTT_JSFUSION_test.csv",
        )  # fmt: skip
        return cls(folder, samples, read_twins(folder / "twins.csv", samples))

    @property
    def captions(self) -> list[str]:
        """Return one caption of each clip."""
        return [sample.captions[0] for sample in self.samples]


def evaluate(settings: Settings, world: World, folder: Path) -> dict[str, float]:
    """Return the test metrics that main_task_retrieval.py --do_eval gives for the checkpoint."""
    data = world.folder
    flags = ["--do_eval", "--init_model", settings.checkpoint, "--output_dir", str(folder)]
    flags += ["--method", str(read_header(Path(settings.checkpoint)).settings["method"]), "--num_thread_reader", "0"]
    flags += ["--datatype", "msrvtt", "--val_csv", str(data / "MSRVTT_JSFUSION_test.csv")]
    flags += ["--train_csv", str(data / "MSRVTT_train.csv"), "--data_path", str(data / "MSRVTT_data.json")]
    flags += ["--features_path", str(data / "videos"), "--twins_csv", str(data / "twins.csv")]
    flags += ["--pretrained_clip_name", settings.pretrained_clip_name]
    if code := run.main(Retrieval, flags):
        raise RuntimeError(f"the evaluation ended with exit code {code}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {name: value for name, value in lines[-1].items() if name.startswith("t2v")}


def index(settings: Settings, window: float, videos: Path, folder: Path, *flags: str) -> None:
    """Index a folder with the checkpoint, with windows of so many seconds."""
    flags = ("--window", f"{window:.6f}", *flags)
    model = ["--checkpoint", settings.checkpoint, "--pretrained_clip_name", settings.pretrained_clip_name]
    if code := search(["index", str(videos), "--index", str(folder), "--jobs", "1", *model, *flags]):
        raise RuntimeError(f"indexing ended with exit code {code}")


def found_scores(opened: Index, world: World) -> np.ndarray:
    """Return the scores that queries of all captions give for the files of all clips, float32 [n, n]."""
    rows = {sample.video_id: row for row, sample in enumerate(world.samples)}
    scores = np.full((len(rows), len(rows)), np.nan, dtype=np.float32)
    for row, caption in enumerate(world.captions):
        for hit in opened.query(caption, top=len(rows)):
            scores[row, rows[Path(hit.file).stem]] = hit.score
    return scores


def recalls(scores: np.ndarray) -> dict[str, float]:
    """Return R@1, R@5, R@10, median and mean rank, as the evaluation counts and rounds them; scores are [n, n]."""
    metrics = summarise(*count_better(torch.from_numpy(scores), torch.arange(len(scores))))
    return {f"t2v {name}": round(value, 3) for name, value in metrics.items()}


def measure_files(scores: np.ndarray, in_fp32: np.ndarray, evaluated: dict[str, float]) -> dict[str, Any]:
    """Compare the index of files with the evaluation, and with scores of vectors that were never rounded."""
    found = recalls(scores)
    right = torch.arange(len(scores))
    ranks, of_fp32 = (count_better(torch.from_numpy(array), right)[0] for array in (scores, in_fp32))
    changed = np.flatnonzero(ranks != of_fp32)
    gaps = np.abs(in_fp32 - np.diag(in_fp32)[:, None])
    gaps[np.diag_indices_from(gaps)] = np.inf
    return {
        "index": found,
        "evaluation": evaluated,
        "equal": all(value == evaluated[name] for name, value in found.items()),
        "fp32": recalls(in_fp32),
        "queries": len(scores),
        "ranks_changed_by_fp16": len(changed),
        "their_gaps_to_the_nearest_clip": gaps[changed].min(axis=1).tolist(),
        "median_gap_to_the_nearest_clip": float(np.median(gaps.min(axis=1))),
        "hits_in_other_order_by_fp16": int((np.argsort(-scores) != np.argsort(-in_fp32)).any(axis=1).sum()),
        "largest_difference_of_a_score": float(np.abs(scores - in_fp32).max()),
    }


def overlap(moments: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Return intersection over union of moments [w, 2] with one [2], float64 [w]."""
    shared = np.minimum(moments[:, 1], moment[1]) - np.maximum(moments[:, 0], moment[0])
    union = np.maximum(moments[:, 1], moment[1]) - np.minimum(moments[:, 0], moment[0])
    return np.maximum(shared, 0) / union


def measure_moments(opened: Index, captions: Sequence[str], moments: np.ndarray) -> dict[str, Any]:
    """Ask an index of the long file for each caption; `moments` [n, 2] are right.

    `iou` is the mean of the first hit, `best_iou` that of the window which fits best, whatever it scores.
    """
    ids, _ = opened.vectors()
    windows = np.array([(window.start, window.end) for window in opened.windows(ids)])
    rows = []
    for caption, moment in zip(captions, moments, strict=True):
        hits = opened.query(caption, top=TOP, per_file=TOP)
        found, best = overlap(np.array([hit[1:3] for hit in hits]), moment), overlap(windows, moment).max()
        right, exact = found >= RIGHT, found >= best - 1e-9
        rows.append((right[0], right.any(), exact[0], exact.any(), found[0], best, best >= RIGHT))
    means = np.array(rows, dtype=np.float64).mean(axis=0)
    names = ("R@1", "R@5", "R@1 best window", "R@5 best window", "iou", "best_iou", "possible")
    percent = [100.0, 100.0, 100.0, 100.0, 1.0, 1.0, 100.0]
    model = opened.model.facts["content"]
    values = {name: round(float(m * p), 3) for name, m, p in zip(names, means, percent, strict=True)}
    return {"window": model["window"], "stride": model["stride"], "windows": len(ids), **values}


def measure_twins(scores: np.ndarray, twin_of: np.ndarray) -> dict[str, float]:
    """Return how many captions score their clip above its twin, the same, or below it; scores are [n, n]."""
    own = np.flatnonzero(twin_of >= 0)
    ahead = scores[own, own] - scores[own, twin_of[own]]
    wins, ties = int((ahead > EQUAL).sum()), int((np.abs(ahead) <= EQUAL).sum())
    accuracy = 100 * (wins + ties / 2) / len(own)
    return {"captions": len(own), "above": wins, "equal": ties, "below": len(own) - wins - ties, "accuracy": accuracy}


@dataclass(frozen=True)
class Vectors:
    """Of all clips, float32: those of the model and of the untrained CLIP, [n, E] each, and the untrained CLIP's of
    each frame, a list of [T, E]."""

    trained: np.ndarray
    untrained: np.ndarray
    frames: list[np.ndarray]


def encode(encoder: Encoder, untrained: Encoder, world: World) -> Vectors:
    """Read the clips once and encode them with both models."""
    trained, means, of_frames = [], [], []
    clip = untrained.method.clip
    for sample in world.samples:
        video, mask = encoder.reader(sample.path)
        trained.append(encoder.encode_windows([(video, mask)])[0])
        means.append(untrained.encode_windows([(video, mask)])[0])
        with evaluating(untrained.method), untrained.autocast():
            of_frames.append(unit(clip.visual(normalise_for(clip, video[mask]))).numpy())
    return Vectors(np.stack(trained), np.stack(means), of_frames)


def measure_all(settings: Settings, world: World, folder: Path) -> dict[str, Any]:
    """Return all numbers; `folder` takes the indexes and the long files."""
    encoder = load_encoder(Source(settings.checkpoint, settings.pretrained_clip_name), torch.device("cpu"))
    untrained = load_encoder(Source("", settings.pretrained_clip_name), torch.device("cpu"), probe=False)
    texts, plain = encoder.encode_text(world.captions), untrained.encode_text(world.captions)
    vectors = encode(encoder, untrained, world)

    window = float(np.median([length_of(sample.path) for sample in world.samples]))
    evaluated = evaluate(settings, world, folder / "evaluation")
    videos = folder / "clips"
    videos.mkdir()
    for sample in world.samples:
        shutil.copy2(sample.path, videos)
    index(settings, window, videos, folder / "index of files")
    with Index.open(folder / "index of files") as opened:
        scores = found_scores(opened, world)

    frames = [plain @ rows.T for rows in vectors.frames]  # [n, T] each
    header = read_header(Path(settings.checkpoint))
    return {
        "trained_with": {name: header.settings.get(name) for name in TRAINED_WITH},
        "files": measure_files(scores, texts @ vectors.trained.T, evaluated),
        "moments": [
            row for pause in _numbers(settings.pauses) for row in moments_of(settings, world, window, folder, pause)
        ],
        "twins": {
            "checkpoint": measure_twins(scores, world.twin_of),
            "untrained CLIP, mean of frames": measure_twins(plain @ vectors.untrained.T, world.twin_of),
            "untrained CLIP, best frame": measure_twins(
                np.stack([rows.max(axis=1) for rows in frames], axis=1), world.twin_of
            ),
        },
    }


def moments_of(settings: Settings, world: World, window: float, folder: Path, pause: float) -> list[dict[str, Any]]:
    """Return the numbers of one long file, by stride; `window` is in seconds."""
    chosen = world.samples[: settings.clips or None]
    videos = folder / f"pauses of {pause:g}"
    videos.mkdir()
    moments = join_clips([sample.path for sample in chosen], videos / "long.mp4", pause * window)
    rows = []
    for number, stride in enumerate(_numbers(settings.strides)):
        flags = ["--model", f"model{number}", "--stride", f"{stride * window:.6f}"]
        index(settings, window, videos, folder / f"index {pause:g}", *flags)
        with Index.open(folder / f"index {pause:g}", f"model{number}") as opened:
            measured = measure_moments(opened, world.captions[: len(chosen)], moments)
        rows.append({"longest_pause": pause * window, "clips": len(chosen), **measured})
    return rows


def text_of(found: dict[str, Any]) -> str:
    """Return the numbers for people."""
    files = found["files"]
    equal = "equal" if files["equal"] else f"NOT equal to {files['evaluation']}"
    lines = [
        f"files: {files['index']}, {equal} to the evaluation's; fp16 changes {files['ranks_changed_by_fp16']} of "
        f"{files['queries']} ranks",
        "pause  stride  windows    R@1    R@5  R@1 best  R@5 best    IoU  best IoU",
    ]
    for row in found["moments"]:
        recall = f"{row['R@1']:5.1f}  {row['R@5']:5.1f}  {row['R@1 best window']:8.1f}  {row['R@5 best window']:8.1f}"
        lines.append(
            f"{row['longest_pause']:5g}  {row['stride']:6g}  {row['windows']:7d}  {recall}  {row['iou']:5.3f}  "
            f"{row['best_iou']:8.3f}"
        )
    for name, row in found["twins"].items():
        lines.append(f"twins, {name}: {row['above']} above, {row['equal']} equal, {row['below']} below")
    return "\n".join(lines)


def report(argv: Sequence[str] | None) -> str:
    """Measure as the flags say; return the text to print."""
    settings = parse_settings(Settings, argv)
    check_outputs(settings.output)
    if not settings.checkpoint:
        raise ValueError("--checkpoint is missing: pass a model trained on the made world (scripts/search_moments.sh)")
    world = World.read(Path(settings.data))
    origin, line = origin_of(torch.device("cpu"))  # now, before the code may change
    with tempfile.TemporaryDirectory() as folder:
        found = measure_all(settings, world, Path(folder))
    if settings.output:
        write_json(Path(settings.output), {**origin, "settings": asdict(settings), **found})
    return f"{text_of(found)}\n{line}"


def main(argv: Sequence[str] | None = None) -> int:
    return print_report(lambda: report(argv))


if __name__ == "__main__":
    sys.exit(main())
