"""Search your own videos: index a folder, then ask for moments by words, by a clip or by a picture.

    python -m search index FOLDER --checkpoint runs/mine/last.safetensors
    python -m search query "a dog jumps over a fence"
    python -m search serve

Without --checkpoint, a CLIP that was not trained on videos is used. The index is a folder (--index) with one SQLite
file. The same `index` command again reads only what has changed; stopped at any moment, it goes on.
`python -m search COMMAND --help` lists the flags of a command. Under torchrun, `index` and `refresh` share the files
among all processes.

Exit codes: 0; 2 for a mistake, told in one sentence; 3 if files could not be read (`index`, `refresh`) or something is
wrong (`verify`); 130 after an interrupt.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from engine.flags import finite_float

INDEX = "runs/search_index"  # --index
DEMO = "runs/search_demo"  # --index of the demo
INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """An argparse parser that reports a mistake as a ValueError of one sentence, without a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help lists the flags")


def _path(text: str) -> str:
    """Return a path; an empty one, as an unset variable of a shell gives, would mean the working folder."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return text


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; the name of the command is in `command`."""
    about = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="python -m search", description=__doc__, formatter_class=about, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, place: str = INDEX) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(parser=added)
        added.add_argument(
            "--index", type=_path, default=place, metavar="DIR", help=f"folder of the index (default: {place})"
        )
        return added

    index = command("index", "index the videos of a folder and those below it, or bring the index up to date")
    index.add_argument("folder", type=_path, metavar="FOLDER")
    index.add_argument(
        "--checkpoint", default="", help="model: a .safetensors file that training wrote; empty: CLIP alone, untrained"
    )
    _add_places(index)
    index.add_argument("--model", default="", metavar="NAME", help="name of the model in the index; empty: its method")
    index.add_argument(
        "--window", type=finite_float, default=0.0, help="seconds of a window; 0: as the clips it was trained on, or 10"
    )
    index.add_argument(
        "--stride", type=finite_float, default=0.0, help="seconds from one window to the next; 0: half a window"
    )
    index.add_argument(
        "--cut", choices=("windows", "shots"), default="windows",
        help="shots: borders of windows move onto cuts that are near (default: windows)",
    )  # fmt: skip
    index.add_argument("--follow", action="store_true", help="follow symbolic links")
    index.add_argument(
        "--dry_run", action="store_true", help="only say how many files, hours and minutes it takes; writes nothing"
    )
    _add_work(index)

    refresh = command("refresh", "bring the index up to date with all its folders, for all its models")
    refresh.add_argument("--model", default="", metavar="NAME", help="only this model")
    refresh.add_argument("--checkpoint", default="", help="where the model's checkpoint is now")
    _add_places(refresh)
    _add_work(refresh)

    query = command("query", "find moments")
    query.add_argument("text", nargs="?", default="", metavar="TEXT", help="what happens in the video")
    query.add_argument("--clip", default="", metavar="FILE", help="find moments like this video")
    query.add_argument("--from", dest="start", type=finite_float, help="--clip: only from this second on")
    query.add_argument("--to", dest="end", type=finite_float, help="--clip: only until this second")
    query.add_argument(
        "--image", default="", metavar="FILE", help="find moments like this picture, which does not move"
    )
    query.add_argument("--like", default="", metavar="HIT", help="find moments like a hit, such as 12:3")
    text_and_weight = {"nargs": "+", "action": "append", "default": [], "metavar": ("TEXT", "WEIGHT")}
    query.add_argument("--and", dest="also", help="also this text, with this weight (1)", **text_and_weight)  # type: ignore[arg-type]
    query.add_argument("--without", help="subtract this text, with this weight (1)", **text_and_weight)  # type: ignore[arg-type]
    query.add_argument(
        "--in", dest="patterns", action="append", default=[], metavar="PATTERN",
        help="only files whose path in the indexed folder, or whole path, fits, such as 'holiday/*'; may be repeated",
    )  # fmt: skip
    query.add_argument("--after", default="", metavar="DATE", help="only files modified then or later: 2026-01-31")
    query.add_argument("--before", default="", metavar="DATE", help="only files modified earlier")
    query.add_argument("--top", type=int, default=20, help="most hits (default: 20)")
    query.add_argument("--per_file", type=int, default=3, help="most hits of one file (default: 3)")
    query.add_argument(
        "--alike", type=finite_float, default=1.0,
        help="leave out hits whose cosine with a better one of their file is at least this (default: 1, none)",
    )  # fmt: skip
    query.add_argument("--model", default="", metavar="NAME", help="model of the index; empty: its only one")
    query.add_argument("--checkpoint", default="", help="where the model's checkpoint is now")
    _add_places(query)
    query.add_argument("--server", default="", help="search on a server that export sent the index to: qdrant://HOST")
    output = query.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print hits as JSON")
    output.add_argument(
        "--print0", action="store_true", help="print the files' paths with a zero byte after each, for xargs -0"
    )

    serve = command("serve", "open a page in the browser that searches the index")
    serve.add_argument("--model", default="", metavar="NAME", help="model to begin with; empty: the first")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: other machines may ask, too")
    serve.add_argument("--port", type=int, default=8765, help="port to listen at; 0: any free one (default: 8765)")
    serve.add_argument(
        "--token", default="",
        help="what a browser must know to be let in; empty: one is made if other machines can ask, else none is needed",
    )  # fmt: skip
    serve.add_argument("--checkpoint", default="", help="where the model's checkpoint is now")
    _add_places(serve)

    status = command("status", "say what the index holds")
    status.add_argument("--json", action="store_true", help="as JSON")

    forget = command("forget", "remove files, folders or a model from the index; the videos stay as they are")
    forget.add_argument("paths", type=_path, nargs="*", metavar="PATH")
    forget.add_argument("--model", default="", metavar="NAME", help="remove this model with all its vectors")

    verify = command("verify", "check the index, and whether its files are as they were")
    verify.add_argument("--full", action="store_true", help="also read each file's first, middle and last MiB again")

    export = command("export", "write the vectors with file, start and end of each")
    export.add_argument(
        "--to",
        type=_path,
        required=True,
        metavar="FILE",
        help="file that ends in .npz, .json or .parquet, or a server: qdrant://HOST[:PORT][/COLLECTION]",
    )
    export.add_argument("--model", default="", metavar="NAME", help="model of the index; empty: its only one")

    recall = command("recall", "measure how much of what exact search finds an approximate engine finds")
    recall.add_argument("--queries", default="", metavar="FILE", help="your texts, one a line; empty: 200 sentences")
    recall.add_argument("--model", default="", metavar="NAME", help="model of the index; empty: its only one")
    recall.add_argument("--checkpoint", default="", help="where the model's checkpoint is now")
    _add_places(recall)
    recall.add_argument("--server", default="", help="measure a server that export sent the index to: qdrant://HOST")
    recall.add_argument("--json", action="store_true", help="as JSON")

    demo = command("demo", "try it: draw short videos, index them and ask three questions", DEMO)
    demo.add_argument(
        "--checkpoint", default="", help="model; empty: what scripts/quickstart.sh trained, else CLIP alone, untrained"
    )
    demo.add_argument("--no_page", action="store_true", help="only print the answers, without opening the page")
    return parser


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pretrained_clip_name", default="", help="the CLIP: name or path, as in training; empty: as the model states"
    )
    parser.add_argument("--pretrained_dir", default="", help="folder to look up a CLIP that is given by name")


def _add_work(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, default=-1, help="decoding processes; -1: as the cores allow, at most 8")
    parser.add_argument("--batch_size", type=int, default=16, help="windows encoded at once (default: 16)")
    parser.add_argument(
        "--time_limit", type=finite_float, default=120.0, help="seconds that a decoder may stand still (default: 120)"
    )
    parser.add_argument("--retry", action="store_true", help="try files again that could not be read before")
    parser.add_argument("--yes", action="store_true", help="accept that more than half of the known files are gone")


def _near(name: str, parser: argparse.ArgumentParser) -> str:
    """Return the flag of a command that a name resembles, or an empty text."""
    known = [string for action in parser._actions for string in action.option_strings]
    return "".join(difflib.get_close_matches(name, known, n=1, cutoff=0.8))


def _refuse(word: str, parser: argparse.ArgumentParser) -> NoReturn:
    """Refuse a word that a command does not know, and say what may have been meant."""
    name = word.partition("=")[0]
    if not name.startswith("-"):
        parser.error(f"unknown argument {word}: put a text or a path that has spaces in quotes")
    if near := _near(name, parser):
        parser.error(f"unknown argument {name}, did you mean {near}")
    parser.error(f"unknown argument {name}")


def method_options(words: Sequence[str], parser: argparse.ArgumentParser) -> dict[str, str]:
    """Return the settings of a method among the words that the parser does not know: --name value or --name=value.

    No method has a setting that resembles a flag of the command, so such a word is a slip.
    """
    options: dict[str, str] = {}
    rest = list(words)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--") or not (equals or rest) or _near(name, parser):
            _refuse(name, parser)
        options[name[2:]] = value if equals else rest.pop(0)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; print a user's mistake as one sentence on stderr and return exit code 2."""
    parser = make_parser()
    try:
        arguments, unknown = parser.parse_known_args(argv)
        if unknown and arguments.command != "index":
            _refuse(unknown[0], arguments.parser)
        arguments.options = method_options(unknown, arguments.parser)
        from search import commands

        return int(getattr(commands, arguments.command)(arguments))
    except KeyboardInterrupt:
        print("interrupted: what is in the index stays, and the same command goes on", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        from engine.messages import close_stdout

        close_stdout()
        return 0
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        from engine.errors import explained, one_sentence
        from engine.messages import print_error

        known = explained(error)
        if known is None or os.environ.get("STOP_TRACEBACK"):
            raise
        print_error(one_sentence(known))
        return 2


if __name__ == "__main__":
    # By default OpenMP's threads wait in a busy loop, and take the cores from the processes that decode.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(main())
