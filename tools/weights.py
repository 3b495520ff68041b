"""Lists the backbones whose weights are on this machine, for scripts/zero_shot_table.sh; downloads nothing.

    python -m tools.weights --pretrained_dir pretrained
    python -m tools.weights --max_words 32 --names ViT-B/32 open_clip:PE-Core-B-16/meta mine.safetensors

Looks in the folder, in the cache of the Hugging Face Hub and in open_clip's, for files and folders that
--pretrained_clip_name takes. Prints "NAME|WORDS" for each: the name that is passed, and --max_words or the longest text
that the backbone reads, if that is shorter. What looks like weights and cannot be used is named on stderr, with the
reason. Weights that have several names are listed once.
"""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.errors import one_sentence
from engine.messages import print_error
from modules.clip_weights import RELEASES, backbone_of, find_weights
from modules.open_clip_names import ENDINGS, PREFIX, local_file, registered_names
from modules.weight_files import HUGGING_FACE_FILES, OPEN_CLIP_CONFIG, OPEN_CLIP_FILES, read_json

KINDS = {"clip", "siglip", "siglip2", "metaclip_2"}  # of Hugging Face's configurations that may be a backbone
Found = Iterator[tuple[str, Path]]  # names to pass, and their files or folders


def at_hand(folder: Path) -> Found:
    """Yield the names of all weights that are here, the shortest names first, with their files or folders."""
    for name in RELEASES:
        try:
            yield name, find_weights(name, folder)
        except FileNotFoundError:
            continue
    for model, tag in registered_names():
        name = f"{PREFIX}{model}/{tag}"
        if (found := local_file(name, folder)) is not None:
            yield name, found
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix in ENDINGS or _is_model(path):
            yield str(path), path
    for path in _snapshots():
        if _is_model(path):
            yield str(path), path


def _is_model(path: Path) -> bool:
    """Return whether a folder is one of open_clip, or one of Hugging Face of a kind that may be a backbone."""
    if (path / OPEN_CLIP_CONFIG).is_file():
        return True
    try:
        return (path / "config.json").is_file() and read_json(path / "config.json").get("model_type") in KINDS
    except ValueError:
        return False


def _snapshots() -> Iterator[Path]:
    """Yield the folders of the newest revisions of models in the Hub's cache."""
    import huggingface_hub

    try:
        cache = huggingface_hub.scan_cache_dir()
    except huggingface_hub.errors.CacheNotFound:
        return
    for repository in sorted(cache.repos, key=lambda repository: repository.repo_id):
        if repository.repo_type == "model" and repository.revisions:
            yield max(repository.revisions, key=lambda revision: revision.last_modified).snapshot_path


def _files(path: Path) -> set[Path]:
    """Return the files with the weights, without links."""
    inside = [path / name for name in (*OPEN_CLIP_FILES, *HUGGING_FACE_FILES)] if path.is_dir() else []
    return {file.resolve() for file in inside if file.exists()} or {path.resolve()}


def usable(found: Found, folder: Path, max_words: int) -> Iterator[str]:
    """Yield the line of each that can be used; say on stderr why others are left out. Files of a path are read."""
    seen: set[Path] = set()
    for name, path in found:
        if _files(path) & seen:
            continue
        try:
            context = backbone_of(name, folder).architecture.context_length
        except (ValueError, OSError) as error:
            print(f"left out: {name}: {one_sentence(error)}", file=sys.stderr)
        else:
            yield f"{name}|{min(max_words, context)}"
        seen |= _files(path)


def named(names: Sequence[str], folder: Path) -> Found:
    """Yield names with their files; say on stderr which are not on this machine."""
    for name in names:
        try:
            path = local_file(name, folder) if name.startswith(PREFIX) else find_weights(name, folder)
        except (ValueError, OSError) as error:
            print(f"left out: {name}: {one_sentence(error)}", file=sys.stderr)
            continue
        if path is None:
            print(f"left out: {name}: its weights are neither in {folder} nor in a cache", file=sys.stderr)
        else:
            yield name, path


def main(argv: Sequence[str] | None = None) -> int:
    """Print the lines; return 0, or 2 if there is none."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.weights", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pretrained_dir", type=Path, default=Path("pretrained"), help="folder with weights")
    parser.add_argument("--max_words", type=int, default=32, help="tokens of a text, at most")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="these alone (default: all that are found)")
    arguments = parser.parse_args(argv)
    logging.getLogger("stop").setLevel(logging.ERROR)
    folder = arguments.pretrained_dir
    found = named(arguments.names, folder) if arguments.names else at_hand(folder)
    lines = 0
    for line in usable(found, folder, arguments.max_words):
        print(line)
        lines += 1
    if not lines:
        print_error(f"there are no weights of a backbone in {folder} nor in the caches of the Hub and of open_clip")
    return 0 if lines else 2


if __name__ == "__main__":
    sys.exit(main())
