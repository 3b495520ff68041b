"""Runs `index` and `refresh`, alone or with its share of the files under torchrun."""

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from dataloaders.listed_videos import VIDEO_EXTENSIONS
from dataloaders.quoting import shorten
from engine.data import reader_processes
from engine.distributed import Process, process_group
from engine.flags import check_folder
from search.commands import FAILED, shown
from search.index import choose_model
from search.indexing import (
    Indexer,
    Options,
    Plan,
    Report,
    apply_plan,
    failed_in,
    forecast,
    make_plan,
    write_failures,
)
from search.model import Encoder, Source, check_method, load_encoder, source_of
from search.store import File, Model, Store
from search.walk import walk

LONGEST_NAME = 100  # characters
FOREVER = timedelta(days=365)  # processes end hours apart where their files differ


@contextmanager
def together() -> Iterator[tuple[Process, Callable[[Any], list[Any]]]]:
    """Join torchrun's processes. Yield this one, and a function that returns the values of all when the last one calls
    it, however much later."""
    with process_group() as process:
        group: Any = dist.new_group(backend="gloo", timeout=FOREVER) if process.world_size > 1 else None

        def gather(value: Any) -> list[Any]:
            values: list[Any] = [value] * process.world_size
            if group is not None:
                dist.all_gather_object(values, value, group=group)
            return values

        yield process, gather


def options_of(flags: Namespace, follow: bool) -> Options:
    """Return how to index, from the flags; raises ValueError for a number that makes no sense."""
    if flags.jobs < -1 or flags.jobs == 0:
        raise ValueError(f"--jobs {flags.jobs}: pass 1 or more processes, or -1")
    if flags.batch_size < 1 or flags.time_limit <= 0:
        raise ValueError("--batch_size and --time_limit must be above 0")
    jobs = reader_processes(flags.jobs)
    return Options(jobs, flags.time_limit, flags.batch_size, follow, flags.yes, flags.retry)


def index_folder(flags: Namespace) -> int:
    """Run `index`; return the exit code."""
    folder, options = os.path.abspath(flags.folder), options_of(flags, flags.follow)
    with together() as (process, gather):
        process.on_main(lambda: _check_places(folder, flags.index))
        source = _source(flags)
        encoder = load_encoder(source, process.device, probe=False)
        if not _is_known(flags.index, encoder):
            check_method(encoder.method, encoder.reader.max_frames, encoder.tokenizer.max_words)
        if process.is_main:
            _say_notes(encoder)
        if flags.dry_run:
            if process.is_main:
                _say_forecast(flags, folder, encoder, options)
            return 0

        def enter() -> int:
            with Store(Path(flags.index), write=True) as store:
                return enter_model(store, encoder, flags.model).id

        model = gather(process.on_main(enter))[0]
        return _update(flags, model, encoder, [(folder, options)], process, gather)


def _source(flags: Namespace) -> Source:
    """Return the model that `index` takes: the one that the flags name, else the one that the index has.

    Raises ValueError if the index has several and the flags do not say which.
    """
    given = Source(
        flags.checkpoint,
        flags.pretrained_clip_name,
        flags.pretrained_dir,
        flags.window,
        flags.stride,
        flags.options,
        flags.cut == "shots",
    )
    if given.checkpoint or given.pretrained_clip_name:
        return given
    with suppress(FileNotFoundError), Store(Path(flags.index)) as store:
        models = store.models()
        if models and (not flags.model or flags.model in {model.name for model in models}):
            known = source_of(choose_model(store, flags.model), "", "", given.pretrained_dir)
            lengths = (given.window, given.stride) if given.window else (known.window, given.stride or known.stride)
            options = {**known.options, **given.options}
            return replace(
                known, window=lengths[0], stride=lengths[1], options=options, shots=given.shots or known.shots
            )
    return given


def _say_notes(encoder: Encoder) -> None:
    """Say what a user may not expect of a model."""
    if encoder.untrained:
        say(
            "this CLIP was not trained on videos: it takes the mean of the pictures of a window, and does not know "
            "their order; left to right is the same to it as right to left (--checkpoint: a model that does know)"
        )
    if encoder.guessed:
        say(
            f"each file is searched in pieces of {encoder.window:g} s, because the model does not say how long the "
            "clips of its training were; if what you look for takes less time or more, pass its seconds as --window"
        )


def refresh_all(flags: Namespace) -> int:
    """Run `refresh`; return the exit code."""
    options_of(flags, False)
    with together() as (process, gather):
        with Store(Path(flags.index)) as store:
            models = [choose_model(store, flags.model)] if flags.model else store.models()
            folders = [(root.path, options_of(flags, root.follow)) for root in store.roots()]
        if not folders:
            raise ValueError(f"{flags.index} holds nothing yet: index a folder (python -m search index FOLDER)")
        if flags.checkpoint and len(models) > 1:
            raise ValueError("--checkpoint is that of one model: name it with --model")
        there = gather(process.on_main(lambda: _there(folders)))[0]
        code = 0 if len(there) == len(folders) else FAILED
        folders = there
        for model in models:
            source = source_of(model, flags.checkpoint, flags.pretrained_clip_name, flags.pretrained_dir)
            encoder = load_encoder(source, process.device, probe=False)
            encoder.check_same(model)
            code = max(code, _update(flags, model.id, encoder, folders, process, gather))
        return code


def _there(folders: list[tuple[str, Options]]) -> list[tuple[str, Options]]:
    """Return the folders that exist, and say which do not; OSError if none does."""
    there = [folder for folder in folders if os.path.isdir(folder[0])]
    if not there:
        walk(folders[0][0])  # says what is wrong
    for folder, _ in folders:
        if folder not in {path for path, _ in there}:
            say(f"{shown(folder)}: is no folder now, so that its files stay as they are: mount its disk, or forget it")
    return there


def _is_known(index: str, encoder: Encoder) -> bool:
    """Return whether an index has this model already, so that it need not be tried again."""
    with suppress(FileNotFoundError), Store(Path(index)) as store:
        return any(model.key == encoder.key for model in store.models())
    return False


def _check_places(folder: str, index: str) -> None:
    if not os.path.isdir(folder):
        walk(folder)  # says what is wrong
    check_folder("--index", Path(index))
    if os.path.realpath(folder) == os.path.realpath(index):
        raise ValueError(f"--index {index} is the folder of the videos itself: name another one, which may lie in it")


def enter_model(store: Store, encoder: Encoder, name: str = "") -> Model:
    """Return the model of the index that an encoder is; enter it if it is not there.

    Raises ModelMismatch if the name belongs to another one, ValueError if the index has it under another name.
    """
    models = store.models()
    for model in models:
        if model.key == encoder.key:
            if name and name != model.name:
                raise ValueError(f"--model {shorten(name)}: this model is in the index as {model.name}; leave it out")
            if different := encoder.differs_in(model):
                say(f"attention: {different}, so that the last digits of new vectors may differ from those there")
            facts = model.facts | {"source": encoder.facts["source"]}  # where it is now
            return store.add_model(model.key, model.name, facts)
    name = name or encoder.name
    if not name.isprintable() or len(name) > LONGEST_NAME:
        raise ValueError(f"--model {shorten(name)}: pass at most {LONGEST_NAME} characters that can be printed")
    for model in models:
        if model.name == name:
            encoder.check_same(model)
    return store.add_model(encoder.key, name, encoder.facts)


def _update(
    flags: Namespace,
    model_id: int,
    encoder: Encoder,
    folders: list[tuple[str, Options]],
    process: Process,
    gather: Callable[[Any], list[Any]],
) -> int:
    """Bring one model up to date with some folders; return the exit code, which is the same on all processes."""
    code = 0
    with Store(Path(flags.index), write=True) as store:
        model = next(model for model in store.models() if model.id == model_id)

        def plan() -> list[Plan]:
            plans = []
            for folder, options in folders:
                plans.append(make_plan(folder, store.files(folder), store.tried(model), flags.index, options))
            for (folder, options), made in zip(folders, plans, strict=True):
                apply_plan(store, made, folder, options)
            return plans

        plans = gather(process.on_main(plan))[0]
        for (folder, options), made in zip(folders, plans, strict=True):
            if process.is_main:
                _say_plan(folder, made, model, encoder)
            share = made.tasks[process.rank :: process.world_size]
            done = Indexer(store, model, encoder, options).run(share, quiet=not process.is_main)
            total = Report()
            for part in gather(done):
                total = total.plus(part)
            failed = failed_in(store, model, folder)
            code = FAILED if failed else code
            if process.is_main:
                _say_report(total, made, failed)
        if process.is_main:
            path = write_failures(store)
            files, windows, seconds = store.totals(model)
            say(
                f"{shorten(flags.index, 500)}: {files} files, {windows} windows, {seconds / 3600:.2f} h"
                + f"; see {shorten(str(path), 500)}" * bool(path)
            )
    return code


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def say(text: str) -> None:
    """Print a line for people; stdout is for results."""
    print(text, file=sys.stderr)


def _say_walked(folder: str, plan: Plan) -> None:
    say(f"{shown(folder)}: {plan.walked}")
    if not plan.walked.files:
        say(f"  nothing to index: files count by their endings, such as {', '.join(VIDEO_EXTENSIONS[:6])}")


def _say_plan(folder: str, plan: Plan, model: Model, encoder: Encoder) -> None:
    _say_walked(folder, plan)
    for unread, reason in plan.walked.unreadable.items():
        say(f"  {shown(unread)}: cannot be read ({reason})")
    cut = ", moved onto cuts" if encoder.shots else ""
    say(
        f"model {model.name} ({model.key[:12]}), windows of {encoder.window:g} s every {encoder.stride:g} s{cut}: "
        f"{len(plan.tasks)} files to read, {len(plan.changes.moved)} moved, {len(plan.changes.gone)} gone"
    )


def _say_report(report: Report, plan: Plan, failed: list[tuple[str, str]]) -> None:
    say(f"{report.files} files read, {report.windows} windows, {report.seconds / 3600:.2f} h of video")
    if report.changed:
        say(f"{report.changed} files changed while they were read: the next call reads them")
    if failed:
        tried = {task.found.path for task in plan.tasks}
        new = [reason for path, reason in failed if path in tried]
        if new:
            say(f"{len(new)} of {len(plan.walked.files)} files could not be read, or not all of:")
        for reason in new[:5]:
            say(f"  {shorten(reason, 300)}")
        if len(new) > 5:
            say(f"  and {len(new) - 5} more")
        if known := len(failed) - len(new):
            say(f"{_files(known)} could not be read before, or not all of (--retry tries again)")


def _say_forecast(flags: Namespace, folder: str, encoder: Encoder, options: Options) -> None:
    known: list[File] = []
    tried: dict[int, str] = {}
    with suppress(FileNotFoundError), Store(Path(flags.index)) as store:
        known = store.files(folder)
        tried = next((store.tried(model) for model in store.models() if model.key == encoder.key), {})
    plan = make_plan(folder, known, tried, flags.index, options)
    expected = forecast(encoder, plan.tasks, options)
    size = sum(task.found.size for task in plan.tasks)
    _say_walked(folder, plan)
    say(
        f"to read: {len(plan.tasks)} files, {size / 1e6:,.1f} MB, {expected.seconds / 3600:.2f} h, {expected.windows} "
        f"windows of {encoder.window:g} s every {encoder.stride:g} s"
    )
    if expected.failed:
        say(f"{expected.failed} files cannot be read")
    if expected.measured:
        say(f"about {expected.computing / 60:.1f} minutes, measured on {shown(expected.measured)}")
