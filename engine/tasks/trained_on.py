"""What the weights of a run were trained on: this run's settings, or those in the header of --init_model."""

from pathlib import Path
from typing import Any

from engine.checkpoint import CheckpointHeader, known_header
from engine.config import Config
from engine.logger import log
from engine.tasks.classifiers import left_as_in_clip
from modules.methods import Method


def training_of(config: Config) -> dict[str, Any]:
    """Return the settings that the evaluated weights were trained with: this run's, or those of the checkpoint.

    It is {} for an untrained method. Of a file of released code only its path, "init_model", is known.
    """
    source = config.model.init_model
    if config.run.do_train:
        return config.flat()
    if header := header_of(source):
        return header.settings
    return {"init_model": source} if source else {}


def header_of(init_model: str) -> CheckpointHeader | None:
    """Return the header of --init_model; None for an empty path and for a file of released code."""
    path = Path(init_model)
    return known_header(path) if path.suffix == ".safetensors" else None


def trained_with(config: Config) -> str:
    """Return the --classifier that --init_model was trained with; "" of another task and if that is not known."""
    header = header_of(config.model.init_model)
    return str(header.settings.get("classifier", "")) if header is not None else ""


def left_out_of_start(config: Config, method: Method) -> frozenset[str]:
    """Return the names of CLIP's own parameters that --init_model lacks because its training used a bag of prompts.

    Such a training leaves the text side as it is in CLIP, so CLIP's own is right beside the checkpoint's tensors.
    """
    if config.run.describe or trained_with(config) != "bag":
        return frozenset()
    names = left_as_in_clip(method, config.data.max_frames, config.data.max_words)
    if names:
        log.info(
            "--init_model %s was trained with --classifier bag, which trains no text side: CLIP's own is used",
            config.model.init_model,
        )
    return names


def check_start(config: Config) -> None:
    """Check that the recognition training of --init_model, if it was on this data set, left out what is tested here.

    Raises:
        ValueError: it was on another split than the test list is of (a list that --val_csv names is of none), or on all
            classes although novel ones are tested.
    """
    source, header, here = config.model.init_model, header_of(config.model.init_model), config.task
    if header is None or header.task != here.task:
        return
    datatype, split, classes = (header.settings.get(name) for name in ("datatype", "split", "classes"))
    if datatype != here.datatype:
        return
    if here.test_videos == "all":
        raise ValueError(
            f"--init_model {source}: was trained on videos of {datatype}, which --test_videos all tests too: pass "
            "--test_videos test, or --allow_overlap to test on training videos nevertheless"
        )
    if split != here.split and not config.data.val_csv:
        raise ValueError(
            f"--init_model {source}: was trained on --split {split} of {datatype}, whose training list has test "
            f"videos of --split {here.split}: pass --split {split}, or --allow_overlap to test on training videos "
            "nevertheless"
        )
    if here.classes in ("base", "novel") and classes != "base":
        raise ValueError(
            f"--init_model {source}: was trained with --classes {classes}, so the novel classes of {datatype} are not "
            "new to it: pass a checkpoint of --classes base, or --allow_overlap to test it nevertheless"
        )
