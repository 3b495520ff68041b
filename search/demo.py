"""Runs `demo`: draws videos, indexes them, asks three questions, and opens the page.

The videos are test clips of the made world (preprocess/make_moving_shapes.py), which no training has seen. Each comes
with its twin, the same clip backwards. 180 clips are files, named after what happens in them; 60 more follow one
another in one long file, so that a moment in it has to be found.

Shapes: M moments, N windows, E joint embedding.
"""

import csv
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from preprocess.make_moving_shapes import plan
from preprocess.moving_shapes.files import FRAMES_PER_SECOND, fingerprint, is_made, make_whole, write_csv, write_video
from preprocess.moving_shapes.takes import stage
from search import commands
from search.__main__ import make_parser
from search.commands import clock, shown
from search.database import NAME
from search.engines.base import INSTALL
from search.engines.derived import remove_derived
from search.index import Hit, Index
from search.model import Encoder, Source, load_encoder
from search.store import Store, is_below
from search.updating import index_folder, say

ROOT = Path(__file__).resolve().parents[1]
TRAINED = ROOT / "runs" / "quickstart" / "stop" / "last.safetensors"  # scripts/quickstart.sh leaves it
UNTRAINED = ROOT / "pretrained" / "moving_shapes_clip.safetensors"
PAIRS, IN_FILM = 120, 30  # clips and their twins: all, and those of the long file
FRAMES, SIDE = 12, 112  # of a clip: frames, and pixels of a side
LEAD = 4  # frames of the long file before its first clip, so that windows do not begin where clips do
FILM = "film.mp4"
LENGTH = FRAMES / FRAMES_PER_SECOND  # seconds of a clip, and of a window
SHOWN = 3  # hits of a question


@dataclass(frozen=True)
class Moment:
    """What happens in [start, end) seconds of a file, and what would happen backwards."""

    file: str
    start: float
    end: float
    text: str
    backwards: str

    def overlap(self, start: float, end: float) -> float:
        """Return the seconds that it shares with [start, end)."""
        return min(self.end, end) - max(self.start, start)


@dataclass(frozen=True)
class Found:
    """Over all moments, shares from 0 to 1: `first`, those found first by their text; `right_way`, those that score
    above the same moment backwards."""

    first: float
    right_way: float


def run_demo(flags: Namespace) -> int:
    """Draw, index, ask and open the page; return the exit code."""
    folder = Path(flags.index)
    checkpoint = Path(flags.checkpoint or TRAINED)
    is_trained = bool(flags.checkpoint) or checkpoint.is_file()
    world = folder / "made_world"
    _check_own(folder, world)
    source = Source(str(checkpoint), window=LENGTH) if is_trained else Source("", str(UNTRAINED), window=LENGTH)
    encoder = load_encoder(source)  # says what is wrong with it before anything is drawn
    say(f"== videos: {PAIRS} clips of moving shapes and the same clips backwards, drawn into {shown(str(world))} ==")
    moments = draw_world(world)
    say(f"== indexing them with {shown(str(checkpoint)) if is_trained else f'{UNTRAINED.name}, untrained'} ==")
    name = _index(folder, world / "videos", source, encoder)
    with Index.open(folder, name) as index:
        for question in pick_questions(moments):
            _ask(index, question, moments)
        found = measure(index, moments)
    print(
        f"\nOf all {len(moments)} texts, {found.first:.0%} find their own moment first, and {found.right_way:.0%} "
        "score it above the same moment backwards (chance: 50%)."
    )
    if not is_trained:
        print(
            "This CLIP takes the mean of the pictures of a window: it does not know their order, so it finds colours "
            "and shapes, but not which way they move, nor what comes first. A model that knows: "
            "bash scripts/quickstart.sh, and then this command again."
        )
    return _go_on(flags, folder, name)


def draw_world(world: Path) -> list[Moment]:
    """Write the videos into the folder `videos` of `world`, with moments.csv beside it, unless they are there; return
    the moments. Raises ValueError if the folder has other files, OSError if it cannot be written."""
    settings = fingerprint({"pairs": PAIRS, "in_film": IN_FILM, "frames": FRAMES, "side": SIDE}, Path(__file__))
    if not is_made(world, settings):
        make_whole(world, settings, _draw)
    with open(world / "moments.csv", newline="", encoding="utf-8") as file:
        return [
            Moment(row["file"], float(row["start"]), float(row["end"]), row["text"], row["backwards"])
            for row in csv.DictReader(file)
        ]


def _draw(world: Path) -> None:
    videos = world / "videos"
    videos.mkdir()
    _, clips = plan(1, PAIRS, 1, seed=0)
    pairs = list(zip(clips[::2], clips[1::2], strict=True))
    twins = {one.video_id: other.captions[0] for pair in pairs for one, other in (pair, pair[::-1])}
    alone, joined = clips[: 2 * (PAIRS - IN_FILM)], clips[2 * (PAIRS - IN_FILM) :]
    joined = [joined[place] for place in np.random.default_rng(0).permutation(len(joined))]
    frames = {clip.video_id: stage(clip.story, np.random.default_rng(clip.seed), SIDE).frames(FRAMES) for clip in clips}
    rows: list[tuple[str, float, float, str, str]] = []
    for clip in alone:
        name = f"{clip.captions[0]}.mp4"
        write_video(videos / name, frames[clip.video_id])
        rows.append((name, 0.0, LENGTH, clip.captions[0], twins[clip.video_id]))
    lead = np.repeat(frames[joined[0].video_id][:1], LEAD, axis=0)
    write_video(videos / FILM, np.concatenate([lead, *(frames[clip.video_id] for clip in joined)]))
    for number, clip in enumerate(joined):
        start = LEAD / FRAMES_PER_SECOND + number * LENGTH
        rows.append((FILM, start, start + LENGTH, clip.captions[0], twins[clip.video_id]))
    write_csv(world / "moments.csv", ("file", "start", "end", "text", "backwards"), rows)


def _check_own(folder: Path, world: Path) -> None:
    """Raise ValueError if the folder has an index of other videos."""
    try:
        with Store(folder) as store:
            roots = [root.path for root in store.roots()]
    except FileNotFoundError:
        return
    if not all(is_below(root, str(world.absolute())) for root in roots):
        raise ValueError(f"--index {folder} is an index of your own videos: name another folder for the demo")


def _index(folder: Path, videos: Path, source: Source, encoder: Encoder) -> str:
    """Index the videos with a model, given by its source; return its name in the index."""
    if (folder / NAME).is_file():
        with Store(folder, write=True) as store:
            for old in store.models():
                if old.name == encoder.name and old.key != encoder.key:  # the quickstart has run again since
                    store.remove_model(old)
                    remove_derived(folder, old.key)
    places = ["--checkpoint", source.checkpoint, "--pretrained_clip_name", source.pretrained_clip_name]
    flags = make_parser().parse_args(["index", str(videos), "--index", str(folder), "--window", str(LENGTH), *places])
    flags.options = {}
    if code := index_folder(flags):
        raise RuntimeError(f"the demo's own videos in {videos} cannot be indexed (exit code {code})")
    with Store(folder) as store:
        return next(model.name for model in store.models() if model.key == encoder.key)


def pick_questions(moments: Sequence[Moment]) -> list[Moment]:
    """Return three moments whose texts are the questions: a thing that moves, the same backwards, and an order of
    events in the long file."""
    moves = next(moment for moment in moments if "moves" in moment.text and moment.file != FILM)
    backwards = next(moment for moment in moments if moment.text == moves.backwards)
    order = next(moment for moment in moments if "then" in moment.text and moment.file == FILM)
    return [moves, backwards, order]


def _ask(index: Index, question: Moment, moments: Sequence[Moment]) -> None:
    """Print the best hits for the text of a moment, each with what happens there."""
    print(f'\n"{question.text}"  (it is in {question.file} at {clock(question.start)})')
    for place, hit in enumerate(index.query(question.text, top=SHOWN), 1):
        there = what_happens(hit, moments)
        mark = {question.text: "  <- asked for", question.backwards: "  <- the same backwards"}.get(there, "")
        when = f"{Path(hit.file).name} {clock(hit.start)}-{clock(hit.end)}" if Path(hit.file).name == FILM else "a clip"
        print(f"  {place}. {hit.score:.3f}  {when}: {there}{mark}")


def what_happens(hit: Hit, moments: Sequence[Moment]) -> str:
    """Return the text of the moment that shares most seconds with a hit."""
    here = [moment for moment in moments if moment.file == Path(hit.file).name]
    return max(here, key=lambda moment: moment.overlap(hit.start, hit.end)).text


def measure(index: Index, moments: Sequence[Moment]) -> Found:
    """Ask for all moments. A window belongs to the moment that it shares at least half of its seconds with, and the
    score of a moment is that of its best window."""
    ids, vectors = index.vectors()
    windows = index.windows(ids)
    own = np.array(
        [
            [
                Path(window.file).name == moment.file
                and moment.overlap(window.start, window.end) >= (window.end - window.start) / 2
                for window in windows
            ]
            for moment in moments
        ]
    )  # bool [M, N]
    scores = index.encoder.encode_texts([moment.text for moment in moments]) @ vectors.astype(np.float32).T  # [M, N]
    of_moments = np.where(own[None], scores[:, None], -np.inf).max(axis=2)  # [M, M]
    places = {moment.text: place for place, moment in enumerate(moments)}
    twins = of_moments[np.arange(len(moments)), [places[moment.backwards] for moment in moments]]
    return Found(
        float(own[np.arange(len(moments)), scores.argmax(axis=1)].mean()),
        float((of_moments.diagonal() > twins).mean()),
    )


def _go_on(flags: Namespace, folder: Path, name: str) -> int:
    """Say what may be typed next, and open the page if it can be."""
    own = f"--index {shlex.quote(str(folder))} --model {name}"
    print(f'\nask it yourself:  python -m search query "a red heart turns clockwise" {own}')
    print("your own videos:  python -m search index FOLDER --checkpoint MODEL.safetensors")
    serve: Callable[[Namespace], int] | None = getattr(commands, "serve", None)
    if serve is None or flags.no_page:
        return 0
    if not (find_spec("fastapi") and find_spec("uvicorn")):
        print(f"a page for it:    {INSTALL}, and then python -m search serve {own}")
        return 0
    sys.stdout.flush()
    return serve(make_parser().parse_args(["serve", "--index", str(folder), "--model", name]))
