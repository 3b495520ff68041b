"""Compares this project with well-known libraries that do the same work, in at most 15 minutes; needs no data.

    bash scripts/benchmark_peers.sh
    bash scripts/benchmark_peers.sh --only decoding,caches --repeats 21

One process and one thread. In every round this project and each library do the same work, one after the other. A ratio
is a library's processor time over ours in the same round, so above 1 this project is faster; the table has the median,
the least and the most of the rounds. A library that is missing or cannot be used is named and left out
(requirements-benchmark.txt has them all).
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
from tqdm import tqdm

from benchmarks import peer_data, peer_models
from benchmarks.common import check_clip, check_outputs, origin_of, parse_settings, write_json
from benchmarks.peer_contests import Contest, Peer, Sizes, Work
from engine.errors import print_report
from modules.options import Checked, Range, one_of

PARTS: dict[str, Callable[[Sizes, Path], Iterator[Contest]]] = {
    "decoding": peer_data.decoding,
    "towers": peer_models.towers,
    "steps": peer_models.steps,
    "metrics": peer_models.metrics,
    "caches": peer_data.caches,
}
LEAST_ROUNDS = 3  # also where --seconds is over


@dataclass(frozen=True)
class Settings(Checked):
    """The flags."""

    only: Annotated[str, f"parts to run, separated by commas, from {', '.join(PARTS)}; empty: all"] = ""
    pretrained_clip_name: Annotated[str, "CLIP whose sizes the towers have; their weights are random"] = "ViT-B/32"
    clips: Annotated[int, "clips to decode and to read from caches", Range(1)] = 4
    max_frames: Annotated[int, "T, frames per clip", Range(1)] = 12
    clip_seconds: Annotated[int, "length of a clip to decode", Range(1)] = 10
    batch_size: Annotated[int, "clips of a training step, and of a pass of the visual tower", Range(1)] = 2
    captions: Annotated[int, "captions of the larger contest in metrics; five per video", Range(5)] = 10_000
    repeats: Annotated[int, "most rounds of a contest", Range(1)] = 15
    seconds: Annotated[float, f"seconds after which no round begins, from {LEAST_ROUNDS} rounds on", Range(0)] = 40.0
    output: Annotated[str, "json file for the numbers; empty: none"] = "results/peers.json"

    def parts(self) -> list[str]:
        """Return the parts to run; raise ValueError for an unknown one."""
        names = [name.strip() for name in self.only.split(",") if name.strip()]
        for name in names:
            one_of("only", name, PARTS)
        return names or list(PARTS)


@dataclass(frozen=True)
class Row:
    """A library's processor time over ours, and the seconds of both; medians over the rounds."""

    part: str
    work: str
    peer: str
    ratio: float
    least: float
    most: float
    our_seconds: float
    peer_seconds: float
    rounds: int


def usable(contest: Contest) -> tuple[dict[str, Work], list[str]]:
    """Return the work of the peers that can be used, and one sentence for each other one."""
    found: dict[str, Work] = {}
    missing = []
    for name, peer in contest.peers.items():
        where = f"{name} is left out of {contest.part} ({contest.work})"
        if find_spec(peer.module) is None:
            missing.append(f"{where}: {peer.module} is not installed; pip install -r requirements-benchmark.txt")
            continue
        try:
            work = peer.prepare()
            work()  # opens, compiles and caches what it does once
        except (ImportError, OSError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
            missing.append(f"{where}: {peer.module} does not work here ({reason})")
            continue
        found[name] = work
    return found, missing


def race(contest: Contest, peers: Mapping[str, Work], settings: Settings) -> list[Row]:
    """Let this project and the peers alternate; return a row for each peer."""
    works = {"": contest.ours, **peers}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    contest.ours()
    begin = time.perf_counter()
    for number in range(settings.repeats):
        if number >= LEAST_ROUNDS and time.perf_counter() - begin > settings.seconds:
            break
        for name in list(works)[:: 1 if number % 2 == 0 else -1]:
            start = time.process_time()
            works[name]()
            seconds[name].append(max(time.process_time() - start, 1e-9))
    rows = []
    for name in peers:
        ratios = [peer / ours for peer, ours in zip(seconds[name], seconds[""], strict=True)]
        mine, others = median(seconds[""]), median(seconds[name])
        rows.append(
            Row(contest.part, contest.work, name, median(ratios), min(ratios), max(ratios), mine, others, len(ratios))
        )
    return rows


def format_rows(rows: Sequence[Row]) -> str:
    """Return the table, in Markdown, so that it can stand in docs/performance.md."""
    lines = [
        "| part | work | peer | peer's time / ours | least to most | ours, ms | peer, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.part} | {row.work} | {row.peer} | {row.ratio:.2f} | {row.least:.2f}-{row.most:.2f} | "
            f"{1e3 * row.our_seconds:,.1f} | {1e3 * row.peer_seconds:,.1f} |"
        )
    return "\n".join(lines)


def versions_of(contests: Sequence[Mapping[str, Peer]]) -> dict[str, str]:
    """Return the version of each peer's distribution that is installed."""
    distributions = packages_distributions()
    found = {}
    for module in sorted({peer.module for peers in contests for peer in peers.values()}):
        for name in distributions.get(module, [])[:1]:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
    return found


def report(settings: Settings) -> str:
    """Measure, write the file and return the text to print."""
    parts = settings.parts()
    check_outputs(settings.output)
    architecture = check_clip(settings.pretrained_clip_name, 3)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = Sizes(
        architecture,
        settings.clips,
        settings.max_frames,
        settings.clip_seconds,
        settings.batch_size,
        (min(1000, settings.captions), settings.captions),
        (min(1000, settings.captions), settings.captions // 5),
    )
    rows: list[Row] = []
    missing: list[str] = []
    peers: list[Mapping[str, Peer]] = []
    for part in tqdm(parts, "parts", leave=False):
        with tempfile.TemporaryDirectory() as folder:
            for contest in PARTS[part](sizes, Path(folder)):
                works, left_out = usable(contest)
                rows += race(contest, works, settings)
                missing += left_out
                peers.append(contest.peers)
    origin, where = origin_of(torch.device("cpu"))
    if settings.output:
        content: dict[str, Any] = {"settings": asdict(settings), **origin}
        content |= {"peers": versions_of(peers), "rows": [asdict(row) for row in rows], "left_out": missing}
        write_json(Path(settings.output), content)
    return "\n".join([where, "", format_rows(rows), *([""] if missing else []), *missing])


def main(argv: Sequence[str] | None = None) -> int:
    return print_report(lambda: report(parse_settings(Settings, argv)))


if __name__ == "__main__":
    sys.exit(main())
