"""Runs the tests of this folder in triton's interpreter on machines without a GPU.

Triton decides whether to interpret when it is first imported, for the whole process. So the other tests of this folder
run in a separate process, and are skipped in this one. An interpreter older than numpy may fail or read wrong
memory, whatever the kernel: triton 3.0 with numpy 2 does, and triton 3.6 with numpy 2.4.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.skipif(torch.cuda.is_available() or INTERPRETED, reason="the kernels' tests run in this process")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
@pytest.mark.timeout(1500)  # for all tests of the folder
@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_kernels_pass_their_tests_in_the_interpreter(which):
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", which, str(FOLDER)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=FOLDER.parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == 0, run.stdout
