"""The commands of `python -m search`. Each takes the parsed flags, prints, and returns an exit code."""

import json
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataloaders.quoting import shorten
from search.database import NAME
from search.engines.base import INSTALL
from search.engines.derived import EXACT_UP_TO, engine_facts, is_exact_enough, place, remove_derived
from search.store import Model, Store, is_below

if TYPE_CHECKING:
    from search.index import Index

FAILED = 3  # exit code: files could not be read, or something is wrong


def index(flags: Namespace) -> int:
    """Index a folder, or say what that would take."""
    from search.updating import index_folder

    return index_folder(flags)


def refresh(flags: Namespace) -> int:
    """Bring the index up to date with all its folders."""
    from search.updating import refresh_all

    return refresh_all(flags)


def open_index(flags: Namespace) -> "Index":
    """Open the index that the flags of `query` and `recall` name; errors are those of `Index.open`."""
    from search.index import Index

    return Index.open(
        flags.index, flags.model, checkpoint=flags.checkpoint, pretrained_clip_name=flags.pretrained_clip_name,
        pretrained_dir=flags.pretrained_dir, server=flags.server,
    )  # fmt: skip


def query(flags: Namespace) -> int:
    """Print the moments that fit a query: a table for people, paths for pipes, or JSON."""
    from search.index import parse_hit, parse_moment

    with open_index(flags) as opened:
        if (flags.start is not None or flags.end is not None) and not flags.clip:
            raise ValueError("--from and --to are seconds of --clip: pass a clip")
        hits = opened.query(
            flags.text,
            clip=flags.clip,
            start=flags.start,
            end=flags.end,
            image=flags.image,
            like=parse_hit(flags.like) if flags.like else None,
            also=[_weighted("--and", words) for words in flags.also],
            without=[_weighted("--without", words) for words in flags.without],
            patterns=flags.patterns,
            after=parse_moment("--after", flags.after) if flags.after else None,
            before=parse_moment("--before", flags.before) if flags.before else None,
            top=flags.top,
            per_file=flags.per_file,
            alike=flags.alike,
        )
        is_text = not (flags.clip or flags.image or flags.like or flags.also or flags.without)
        fits = opened.fits_well(hits) if is_text else None
        if flags.image:
            print("note: nothing moves in a picture, unlike in the clips of training", file=sys.stderr)
        if fits is False:
            print("note: nothing fits well; these are the nearest moments", file=sys.stderr)
        if flags.json:
            print(
                json.dumps(
                    {"model": opened.model.name, "fits_well": fits, "hits": [hit._asdict() for hit in hits]}, indent=1
                )
            )
        elif sys.stdout.isatty() and not flags.print0:
            _print_table(hits)
        else:
            end = b"\0" if flags.print0 else b"\n"
            paths = dict.fromkeys(os.fsencode(hit.file) for hit in hits)
            sys.stdout.buffer.write(b"".join(path + end for path in paths))
            sys.stdout.flush()
    return 0


def _weighted(flag: str, words: Sequence[str]) -> tuple[str, float]:
    text, *weight = words
    try:
        (value,) = map(float, weight or ["1"])
        if not 0 < value < float("inf"):
            raise ValueError
    except ValueError as error:
        given = shorten(" ".join(weight))
        raise ValueError(f"{flag} takes a text and a weight above 0, not {given}: put the text in quotes") from error
    return text, value


def _print_table(hits: Sequence[Any]) -> None:
    from search.index import hit_name

    rows = [
        (
            str(place), f"{hit.score:.3f}", f"{hit.above:+.1f}", f"{clock(hit.start)}-{clock(hit.end)}",
            hit_name(hit.window_id), shown(hit.file),
        )
        for place, hit in enumerate(hits, 1)
    ]  # fmt: skip
    rows.insert(0, ("", "score", "above", "when", "hit", "file"))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for *columns, file in rows:
        print("  ".join(f"{text:>{width}}" for text, width in zip(columns, widths, strict=True)), file, sep="  ")


def clock(seconds: float) -> str:
    """Return seconds as people read them: 0:07.5, 1:02:03.0."""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"


def shown(path: str) -> str:
    """Return a path for people: from the working folder on where it lies inside, unprintable characters escaped."""
    here = os.getcwd()
    return shorten(os.path.relpath(path, here) if is_below(path, here) else path, 500)


def serve(flags: Namespace) -> int:
    """Serve the page until it is interrupted."""
    from search.page.server import serve as serve_page

    return serve_page(flags)


def status(flags: Namespace) -> int:
    """Say what the index holds."""
    with Store(Path(flags.index)) as store:
        models = [_status_of(store, model) for model in store.models()]
        files = store.files()
        size = sum(path.stat().st_size for path in store.folder.glob(f"{NAME}*"))
        roots = [root.path for root in store.roots()]
    if flags.json:
        print(json.dumps({"index": flags.index, "bytes": size, "roots": roots, "files": len(files), "models": models}))
        return 0
    print(f"{shorten(flags.index, 500)}: {len(files)} files, {size / 1e6:,.1f} MB")
    for root in roots:
        print(f"  folder {shown(root)}")
    for model in models:
        cut = ", moved onto cuts" if model["cut"] == "shots" else ""
        print(
            f"  model {model['name']} ({model['key'][:12]}): {model['windows']} windows of {model['window']:g} s every "
            f"{model['stride']:g} s{cut}, {model['files']} files, {model['hours']:.2f} h; "
            f"{shorten(model['source'], 500)}"
        )
        print(f"    search: {_said(model['engine'], model['windows'])}")
        if model["failed"]:
            print(f"    {model['failed']} files could not be read, or not all of: --retry tries them again")
    return 0


def _status_of(store: Store, model: Model) -> dict[str, Any]:
    files, windows, seconds = store.totals(model)
    content, source = model.facts["content"], model.facts["source"]
    return {
        "name": model.name,
        "key": model.key,
        "method": content["method"],
        "source": source["checkpoint"] or f"{source['pretrained_clip_name']}, untrained",
        "window": content["window"],
        "stride": content["stride"],
        "cut": content.get("cut", "windows"),
        "files": files,
        "windows": windows,
        "hours": seconds / 3600,
        "failed": len(store.failures(model)),
        "engine": engine_facts(
            place(store.folder, "ivf", model.key), windows, model.dimension, lambda: store.ids(model)
        ),
    }


def _said(engine: dict[str, Any], windows: int) -> str:
    """Return one line about an engine: what `engine_facts` says."""
    if engine["name"] == "exact":
        line = f"exact, with {engine['library']}, {engine['bytes'] / 1e6:,.1f} MB in memory"
        return (
            line if is_exact_enough(windows) else f"{line}; beyond {EXACT_UP_TO:,} windows faiss is quicker: {INSTALL}"
        )
    if not engine["fits"]:
        return f"approximate, {engine['lists']} lists, which the next query makes"
    return (
        f"approximate, {engine['effort']} of {engine['lists']} lists, {engine['bytes'] / 1e6:,.1f} MB; recall@10 "
        f"{engine['recall']:.3f} on {engine['texts']} texts (recall measures it on yours)"
    )


def forget(flags: Namespace) -> int:
    """Remove files, folders or a model from the index."""
    from search.index import choose_model
    from search.page.kept import sweep_pictures

    if not (flags.paths or flags.model):
        raise ValueError("nothing to forget: name files or folders, or a model with --model")
    Store(Path(flags.index)).close()  # refuses a folder without an index, which opening to write would make
    with Store(Path(flags.index), write=True) as store:
        if flags.model and not flags.paths:
            model = choose_model(store, flags.model)
            store.remove_model(model)
            remove_derived(store.folder, model.key)
            print(f"forgot the model {model.name}", file=sys.stderr)
            return 0
        if flags.model:
            raise ValueError("forget takes either paths or --model: leave one out")
        paths = [os.path.abspath(path) for path in flags.paths]
        known = [store.files(path) for path in paths]
        for path, files in zip(paths, known, strict=True):
            if not files and path not in {root.path for root in store.roots()}:
                raise ValueError(f"{shown(path)}: the index holds nothing there; status lists its folders")
        gone = {file.id: file for files in known for file in files}
        store.remove(gone.values())
        sweep_pictures(store)
        for path in paths:
            store.remove_roots(path)
        counted = "1 file" if len(gone) == 1 else f"{len(gone)} files"
        print(f"forgot {counted}; what still lies in an indexed folder returns with refresh", file=sys.stderr)
    return 0


def verify(flags: Namespace) -> int:
    """Check the index and its files; print what is wrong."""
    from search.walk import content_key

    with Store(Path(flags.index)) as store:
        problems = store.check()
        files = [] if problems else store.files()
    for file in files:
        try:
            status = os.stat(file.path)
            same = (status.st_size, status.st_mtime_ns) == (file.size, file.mtime_ns)
            if flags.full and file.content_key and content_key(file.path) != file.content_key:
                problems.append(f"{shown(file.path)}: has other content than was indexed: refresh reads it again")
            elif not same and not flags.full:
                problems.append(f"{shown(file.path)}: has changed since it was indexed: refresh reads it again")
        except OSError as error:
            problems.append(f"{shown(file.path)}: cannot be read ({error.strerror}): refresh removes what is gone")
    for problem in problems:
        print(problem)
    print(f"{len(files)} files, {len(problems)} problems", file=sys.stderr)
    return FAILED if problems else 0


def export(flags: Namespace) -> int:
    """Write the vectors of a model to a file."""
    from search.exporting import export_to
    from search.index import choose_model

    with Store(Path(flags.index)) as store:
        count = export_to(store, choose_model(store, flags.model), flags.to)
    print(f"{shorten(flags.to, 500)}: {count:,} windows", file=sys.stderr)
    return 0


def recall(flags: Namespace) -> int:
    """Measure what an approximate engine loses."""
    from search.measuring import run_recall

    return run_recall(flags)


def demo(flags: Namespace) -> int:
    """Draw videos, index them, and ask three questions."""
    from search.demo import run_demo

    return run_demo(flags)
