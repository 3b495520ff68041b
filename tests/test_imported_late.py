"""Libraries that take long to import are imported only by what uses them."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.test_docs import PROGRAMS

ROOT = Path(__file__).parent.parent
HEAVY = {
    "cv2", "huggingface_hub", "matplotlib", "open_clip", "pandas", "sympy", "tensorboard", "timm", "torch._dynamo",
    "torch._inductor", "torchvision", "transformers", "triton", "wandb",
}  # fmt: skip
DRAWS, TABULATES = "tools/visualize.py", "tools/report.py"
PROGRAM = f"""
import runpy
import sys

program, sys.argv = sys.argv[1], sys.argv[1:]
try:
    runpy.run_module(program.removesuffix(".py").replace("/", "."), run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print("imported:", *{HEAVY} & sys.modules.keys())
"""


def heavy(program: str, *arguments: str) -> set[str]:
    """Return the libraries of HEAVY that a program has imported when it ends."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].removeprefix("imported:").split())


@cache
def of_torch() -> set[str]:
    """Return what a bare torch imports, which some of its versions do."""
    return heavy(f"import sys, torch; print(*{HEAVY} & sys.modules.keys())")


def test_help_imports_none():
    assert heavy(PROGRAM, "main_task_retrieval.py", "--help") <= of_torch()


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_help_of_other_programs_imports_none(program):
    assert heavy(PROGRAM, program, "--help") <= of_torch() | {DRAWS: {"cv2"}, TABULATES: {"pandas"}}.get(program, set())


def test_a_description_imports_no_tokenizer():
    """It counts operations on the device "meta", where torch itself imports its compiler, and Triton to count."""
    described = heavy(PROGRAM, "main_task_retrieval.py", "--describe", "--pretrained_clip_name", "ViT-B/32")
    assert described <= of_torch() | {"sympy", "torch._dynamo", "torch._inductor", "triton"}


def test_an_evaluation_imports_what_writes_its_log(small_data, tmp_path):
    flags = [*small_data.flags(), "--num_thread_reader", "0", "--output_dir", str(tmp_path / "run")]
    assert heavy(PROGRAM, "main_task_retrieval.py", "--do_eval", *flags) <= of_torch() | {"tensorboard"}


def test_the_data_layer_imports_opencv_and_pandas_inside_functions():
    for folder in ("dataloaders", "preprocess/moving_shapes"):
        for path in sorted((ROOT / folder).glob("*.py")):
            body = ast.parse(path.read_text()).body
            imported = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
            imported |= {(node.module or "").split(".")[0] for node in body if isinstance(node, ast.ImportFrom)}
            assert not {"cv2", "pandas", "torchvision"} & imported, path
