"""OpenCV and pandas are imported only by what uses them: most runs need neither."""

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
print("after help:", sorted({"cv2", "pandas"} & sys.modules.keys()))
assert main_task_retrieval.main(sys.argv[1:]) == 0
print("after evaluation:", sorted({"cv2", "pandas"} & sys.modules.keys()))
"""


def test_help_and_an_evaluation_import_neither_library(small_data, tmp_path):
    command = [sys.executable, "-c", PROGRAM, "--do_eval", *small_data.flags(), "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "after help: []" in done.stdout
    assert "after evaluation: []" in done.stdout


def test_the_data_layer_imports_them_inside_functions():
    for folder in ("dataloaders", "preprocess/moving_shapes"):
        for path in sorted((ROOT / folder).glob("*.py")):
            imported = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import)]
            assert not {"cv2", "pandas"} & {alias.name for node in imported for alias in node.names}, path
