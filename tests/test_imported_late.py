"""OpenCV, pandas and torchvision are imported only by what uses them. Evaluation gets the last from open_clip's
tokenizer."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROGRAM = """
import sys
from contextlib import suppress

import main_task_retrieval

with suppress(SystemExit):
    main_task_retrieval.main(["--help"])
print("after help:", sorted({"cv2", "pandas", "torchvision"} & sys.modules.keys()))
assert main_task_retrieval.main(sys.argv[1:]) == 0
print("after evaluation:", sorted({"cv2", "pandas"} & sys.modules.keys()))
"""


def test_help_and_an_evaluation_import_none_of_them(small_data, tmp_path):
    command = [sys.executable, "-c", PROGRAM, "--do_eval", *small_data.flags(), "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "after help: []" in done.stdout
    assert "after evaluation: []" in done.stdout


def test_the_data_layer_imports_them_inside_functions():
    for folder in ("dataloaders", "preprocess/moving_shapes"):
        for path in sorted((ROOT / folder).glob("*.py")):
            body = ast.parse(path.read_text()).body
            imported = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
            imported |= {(node.module or "").split(".")[0] for node in body if isinstance(node, ast.ImportFrom)}
            assert not {"cv2", "pandas", "torchvision"} & imported, path
