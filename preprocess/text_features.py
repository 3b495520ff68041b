"""Encode the texts of classes once, into a file for --text_features: the bag of prompts of STDD (AAAI 2025, arXiv
2412.09895).

    python preprocess/text_features.py --output data/ucf101_xmix.safetensors --pretrained_clip_name ViT-B/16 \
        --datatype ucf101 --data_path data/ucfTrainTestlist \
        --labels dataloaders/class_lists/ucf101_labels.yaml --clauses dataloaders/class_lists/ucf101_clauses.yaml

Its flags are those of main_task_recognition.py, which choose the CLIP and the data set, and

    --output        file to write, .safetensors
    --labels        YAML file with the names of the classes and templates; without it, names are those of the data set
                    (--class_names), and templates those of --templates or of the data set
    --clauses       YAML file with the clauses of each class; needed by all modes but name
    --graph         YAML file with the triples of each class: check that each has its clause
    --mode          which clauses: xmix (all, the default), xoo, xao, xaa, or name (none)
    --n_templates   how many templates, the first ones (default: 8); all if there are fewer
    --allow_faults  so many faults of each file, and so many texts that the CLIP cuts, are only logged (default: 0)

Positions and names of the files are checked against the data set, if flags name its files; --labels_csv is enough.
Different texts are encoded once, in blocks, and each block is kept in OUTPUT.parts until the file is complete. So the
command can be interrupted or killed at any moment; when run again, it goes on.
Exit code: 0 if the file is there, 2 for a wrong command or file, 130 if interrupted.
"""

import argparse
import hashlib
import json
import logging
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataloaders.class_clauses import CLAUSES, GRAPH, LABELS, Faults, Labels, read_clauses, read_graph, read_label_file
from dataloaders.classes import Classes, check_order, match_keys
from dataloaders.prompt_lists import MODES, PromptLists, prompt_lists
from dataloaders.quoting import quoted
from engine.cli import parse_config
from engine.config import Config
from engine.flags import check_file
from engine.preflight import check_finite
from engine.tasks.class_texts import class_texts
from engine.tasks.recognition import RecognitionSettings
from engine.writing import write_atomically
from modules.clip import CLIP
from modules.clip_weights import load_clip
from modules.seal import read_sealed, seal
from modules.text_features import TextFeatures, read_text_features, text_sha256, write_text_features
from modules.tokenizer import find_tokenizer, tokenizer_of
from preprocess.shards import exit_code

log = logging.getLogger("stop")

BLOCK = 2048  # texts of a file in OUTPUT.parts
AT_ONCE = 256  # texts


def own_flags() -> argparse.ArgumentParser:
    """Return the parser of the flags that main_task_recognition.py lacks."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in ("--output", LABELS, CLAUSES, GRAPH):
        parser.add_argument(flag, default="")
    parser.add_argument("--mode", default="xmix")
    parser.add_argument("--n_templates", default="8")
    parser.add_argument("--allow_faults", default="0")
    return parser


def listed_classes(config: Config) -> Classes | None:
    """Return the classes of the data set; None if no flag names its files."""
    data, task = config.data, config.task
    of_folders = data.features_path if task.datatype == "custom" else ""
    if not (data.data_path or data.train_csv or data.val_csv or task.labels_csv or of_folders):
        return None
    classes: Classes = task.all_classes(data)
    return classes


def read_names(config: Config, labels: Path | None, classes: Classes | None) -> tuple[Labels, tuple[str, ...]]:
    """Return what texts call the classes with the templates, and the classes' keys.

    Raises ValueError if --labels names or numbers the classes otherwise than the data set, or if there is neither.
    """
    templates = config.task.class_templates()
    if labels is None:
        if classes is None:
            raise ValueError(
                f"pass {LABELS} with the names of the classes, or --data_path or --labels_csv with those of "
                f"--datatype {config.task.datatype}"
            )
        return Labels(classes.names, templates), classes.keys
    found = read_label_file(labels)
    if config.task.templates:
        found = found._replace(templates=templates)
    if classes is None:
        log.info("the order of the classes is that of %s, which no data set has checked", labels)
        return found, found.classes
    if config.task.class_names != "split":
        raise ValueError(f"{LABELS} and --class_names both say what texts call the classes: leave out one of them")
    if len(found.classes) != len(classes):
        raise ValueError(
            f"{LABELS} {labels} has {len(found.classes)} classes and the data set {len(classes)}: pass the file that "
            "belongs to it"
        )
    check_order(match_keys(found.classes, classes.keys, labels, LABELS), classes.keys, labels, LABELS)
    return found, classes.keys


def check_lengths(lists: PromptLists, keys: Sequence[str], clip: CLIP, allowed: int) -> Tensor:
    """Return the token ids of the different texts, int64 `[N,L]`; more than `allowed` that the CLIP cuts are refused.

    L is that of the longest text, or the CLIP's number of positions if its texts are always as long.
    """
    longest = clip.text.context_length
    tokenizer, faults, most = tokenizer_of(clip.backbone, longest), Faults(), 0
    for key, own in zip(keys, lists.texts, strict=True):
        for text in dict.fromkeys(own):
            words = len(tokenizer.words(text)) + tokenizer.ends
            most = max(most, words)
            if words > longest:
                faults.add(f"class {quoted(key)}: {quoted(text)} has {words} tokens and this CLIP reads {longest}")
    faults.check("the list of texts", allowed, "cut")
    token_ids = tokenizer_of(clip.backbone, min(max(most, 3), longest))(different(lists))
    log.info(
        "%d classes of %d texts, %d different ones; the longest has %d tokens", len(lists), len(lists.texts[0]),
        len(token_ids), most,
    )  # fmt: skip
    return token_ids


def different(lists: PromptLists) -> list[str]:
    """Return all N different texts, in order."""
    return list(dict.fromkeys(text for own in lists.texts for text in own))


@torch.no_grad()
def encode(clip: CLIP, token_ids: Tensor, parts: Path) -> Tensor:
    """Return the embeddings of texts, int64 `[N,L]` -> float32 `[N,d]`; finished blocks are read from `parts`."""
    device = next(clip.parameters()).device
    tower, rows = text_sha256(clip), []
    for number, block in enumerate(tqdm(token_ids.split(BLOCK), "texts", unit="block")):
        path, digest = parts / f"{number:05}.safetensors", f"{tower} {hashlib.sha256(block.numpy()).hexdigest()}"
        row = read_part(path, digest)
        if row is None:
            row = torch.cat([clip.text(ids.to(device)).float().cpu() for ids in block.split(AT_ONCE)])
            tensors, header = {"features": row}, {"of": digest}
            write_atomically(path, lambda to, t=tensors, h=header: save_file(t, to, seal(t, h)))  # type: ignore[misc]
        rows.append(row)
    return torch.cat(rows)


def read_part(path: Path, digest: str) -> Tensor | None:
    """Return the embeddings of a block, if an earlier run has written them for the same texts and CLIP."""
    if not path.is_file():
        return None
    try:
        tensors, header, whole = read_sealed(path)
    except ValueError:  # cut short or damaged
        return None
    return tensors.get("features") if whole and header.get("of") == digest else None


def about_files(paths: Sequence[Path | None]) -> list[dict[str, str]]:
    """Return name and sha256 of each file."""
    return [
        {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in paths
        if path is not None
    ]


def is_made(output: Path, about: dict[str, Any], keys: Sequence[str], clip: CLIP) -> bool:
    """Return whether the file is there already; ValueError if there is another one."""
    if not output.exists():
        return False
    fix = "remove it, or name another file"
    try:
        there = read_text_features(output, clip)
    except ValueError as error:
        raise ValueError(f"--output {str(error).partition('; ')[0]}: {fix}") from error
    if there.about == json.loads(json.dumps(about)) and there.names == tuple(keys):
        return True
    raise ValueError(f"--output {output} was made from other texts or with other flags: {fix}")


def remove_parts(parts: Path) -> None:
    """Remove the blocks, which another process may do at the same time, and their folder if nothing else is in it."""
    for path in parts.glob("[0-9]*.safetensors*"):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        parts.rmdir()


def run(argv: Sequence[str] | None) -> int:
    """Run the command; returns the exit code 0. ValueError or OSError if it cannot start or continue."""
    own, flags = own_flags().parse_known_args(argv)
    if "--help" in flags or "-h" in flags:
        print(__doc__)
        return 0
    log.handlers, log.propagate = [logging.StreamHandler(sys.stdout)], False
    log.setLevel(logging.INFO)
    if not own.output:
        raise ValueError("--output is not given: name the file to write, ending in .safetensors")
    output = Path(own.output)
    check_file("--output", output, (".safetensors",))
    if own.mode not in MODES:
        raise ValueError(f"--mode {quoted(own.mode)} is not one of: {', '.join(MODES)}")
    if (own.mode == "name") != (not own.clauses):
        raise ValueError(f"--mode {own.mode} {'takes no' if own.clauses else 'needs'} {CLAUSES}")
    for flag, value, least in (("n_templates", own.n_templates, 1), ("allow_faults", own.allow_faults, 0)):
        if not value.isdecimal() or len(value) > 9 or int(value) < least:
            raise ValueError(f"--{flag} {quoted(value)} is out of range: it takes a number at least {least}")
    # Of a run that only describes its method, no file is asked for.
    config = parse_config([*flags, "--describe"], RecognitionSettings)
    if config.model.init_model:
        raise ValueError("--init_model does not matter here: the texts are encoded by --pretrained_clip_name itself")
    return make(config, own, output)


def make(config: Config, own: argparse.Namespace, output: Path) -> int:
    """Read and check all files, then encode what is not there yet, and write the file."""
    allowed, model = int(own.allow_faults), config.model
    labels_file, clauses_file, graph_file = (
        Path(name) if name else None for name in (own.labels, own.clauses, own.graph)
    )
    labels, keys = read_names(config, labels_file, listed_classes(config))
    templates = labels.templates[: int(own.n_templates)]
    class_texts(labels.classes, templates)  # checks the templates
    graphs = read_graph(graph_file, keys, allowed)[1] if graph_file else None
    clauses = read_clauses(clauses_file, keys, allowed, graphs)[1] if clauses_file else [{} for _ in keys]
    lists = prompt_lists(labels.classes, clauses, templates, own.mode)

    clip = load_clip(model.pretrained_clip_name, model.pretrained_dir, asked=model.asked_of_clip())
    find_tokenizer(clip, model.pretrained_clip_name)
    check_finite(clip, model.pretrained_clip_name)
    token_ids = check_lengths(lists, keys, clip, allowed)
    about = {
        "templates": list(templates), "mode": own.mode, "texts_of": list(labels.classes),
        "sources": about_files([labels_file, clauses_file]), "clip_name": model.pretrained_clip_name,
        "clip": text_sha256(clip),
    }  # fmt: skip
    if is_made(output, about, keys, clip):
        print(f"{output} is there already.")
        return 0
    parts = output.with_name(output.name + ".parts")
    if parts.exists() and not parts.is_dir():
        raise ValueError(
            f"{parts}: is a file where the blocks of --output are kept; remove it, or name another --output"
        )
    rows = encode(clip.to("cuda" if torch.cuda.is_available() else "cpu"), token_ids, parts)
    place = {text: number for number, text in enumerate(different(lists))}
    features = rows[torch.tensor([[place[text] for text in own] for own in lists.texts])]
    texts = TextFeatures(features, torch.tensor(lists.mask), tuple(keys), about)
    write_atomically(output, lambda partial: write_text_features(partial, texts))
    remove_parts(parts)
    print(f"{output}: {len(texts)} classes, {features.shape[1]} texts of each, {features.shape[2]} numbers a text.")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return exit_code(lambda: run(argv), "run the same command again to go on.")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: schedulers end jobs with it
    raise SystemExit(main())
