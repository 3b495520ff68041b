"""Reads the reference numbers in `STOP_REFERENCE/oracles`. A recipe there generates their weights and inputs."""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch


@dataclass
class Oracle:
    """One reference run: its setting, its weights by name, its inputs and its outputs."""

    setting: dict[str, Any]
    weights: dict[str, torch.Tensor]
    video: torch.Tensor
    token_ids: torch.Tensor
    outputs: dict[str, np.ndarray]


def recipe_of(folder: Path) -> ModuleType:
    """Return the module that makes the weights and inputs of the reference runs in a folder."""
    spec = importlib.util.spec_from_file_location("recipe", folder / "recipe.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_oracle(reference: Path, name: str) -> Oracle:
    """Load the reference run `name`."""
    folder = reference / "oracles"
    recipe = recipe_of(folder)
    setting = json.loads((folder / f"{name}.json").read_text())
    seed = setting["seed"]
    weights = {key: torch.from_numpy(recipe.tensor(seed, key, shape)) for key, shape in setting["shapes"].items()}
    video = recipe.video(seed, setting["video_name"], setting["batch"], setting["frames"], setting["size"])
    token_ids = recipe.token_ids(seed, setting["text_name"], setting["batch"], setting["words"])
    outputs = dict(np.load(folder / f"{name}.npz"))
    return Oracle(setting, weights, torch.from_numpy(video), torch.from_numpy(token_ids), outputs)


def token_ids_of(reference: Path, seed: int, name: str, batch: int, length: int) -> torch.Tensor:
    """Return the captions that the recipe draws for a name, for a reference run with another number of them."""
    return torch.from_numpy(recipe_of(reference / "oracles").token_ids(seed, name, batch, length))


def largest_relative_difference(got: torch.Tensor, expected: np.ndarray) -> float:
    """Return the largest absolute difference, divided by the largest absolute value of the expected array."""
    expected = torch.from_numpy(expected)
    assert got.shape == expected.shape
    return float((got.detach() - expected).abs().max() / expected.abs().max())
