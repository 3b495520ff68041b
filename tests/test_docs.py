"""What the documentation names is there: files, anchors, scripts, variables, flags and Python names."""

import argparse
import csv
import importlib
import re
import shlex
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

from modules.methods import METHODS
from tests.markdown import DOCS, ROOT, anchors, code_blocks, command, commands, inline_code, links

# Everything that takes flags; they are found by having a `main`.
PROGRAMS = [
    str(path.relative_to(ROOT))
    for folder in (".", "engine", "search", "preprocess", "benchmarks", "tools")
    for path in sorted([*(ROOT / folder).glob("*.py"), *(ROOT / folder).glob("*/__main__.py")])
    if re.search(r"^def main\(argv", path.read_text(), re.MULTILINE)
]
OF_OTHERS = {"--max_restarts", "--nproc_per_node", "--check"}  # flags of torchrun and ruff that are named
TAKES_FLAGS_OF = {
    "preprocess/cache_frames.py": ("main_task_retrieval.py",),
    "preprocess/text_features.py": ("main_task_recognition.py",),
}
READ_BY_LIBRARIES = {"OMP_NUM_THREADS", "GLIBC_TUNABLES"}
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")} - {"data", "runs"}
ENDINGS = {".py", ".sh", ".md", ".toml", ".yaml", ".log", ".csv", ".json", ".png", ".safetensors"}
docs = pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)


@cache
def flags_of(program: str) -> frozenset[str]:
    """Every flag of a Python program, the options of all methods included, or of the programs that a script runs."""
    if program.endswith(".txt"):  # requirements
        return frozenset()
    if program.endswith(".sh"):
        return frozenset().union(*map(flags_of, run_by(program)), own_flags(program))
    main = importlib.import_module(program.removesuffix(".py").replace("/", ".")).main
    found: set[str] = set()
    add_argument = argparse._ActionsContainer.add_argument

    def noted(self, *arguments, **more):
        action = add_argument(self, *arguments, **more)
        found.update(action.option_strings)
        return action

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse._ActionsContainer, "add_argument", noted)
        for method in METHODS:
            with suppress(SystemExit):
                main(["--help", "--method", method])  # stops at --help where there is no --method
    return frozenset(found).union(*map(flags_of, TAKES_FLAGS_OF.get(program, ())))


def run_by(script: str) -> set[str]:
    """The programs that a shell script passes its own arguments to."""
    text = (ROOT / script).read_text()
    found = set(re.findall(r"\blaunch (\w+\.py)", text))
    found |= {f"main_task_{task}.py" for task in ("retrieval", "recognition") if f"train_{task} " in text}
    found |= {
        module.replace(".", "/") + ".py" for module in re.findall(r'-m ((?:benchmarks|engine)\.\w+) .*"\$@"', text)
    }
    return found | set(re.findall(r'\bbash (scripts/\w+\.sh).*"\$@"', text))


def own_flags(script: str) -> set[str]:
    """The flags that a shell script compares its arguments with."""
    return set(re.findall(r'"\$argument" = (--\w+)', (ROOT / script).read_text()))


@cache
def all_flags() -> frozenset[str]:
    scripts = [str(path.relative_to(ROOT)) for path in (ROOT / "preprocess").glob("*.sh")]
    return frozenset(OF_OTHERS).union(*map(flags_of, [*PROGRAMS, *scripts]))


def reads(program: str, variable: str) -> bool:
    """Whether a shell script, one that it sources, or the code reads an environment variable."""
    texts = [path.read_text() for path in (ROOT / "scripts").glob("_*.sh")]
    if program.endswith(".sh"):
        texts.append((ROOT / program).read_text())
    return any(re.search(rf"\$\{{?{variable}\b", text) for text in texts)


def files_named(text: str) -> set[str]:
    """What looks like a file or folder of the repository among the inline code."""
    found = set()
    for code in inline_code(text):
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", code):
            first, ending = code.split("/")[0], Path(code).suffix
            if ("/" in code and first in FOLDERS and (code.endswith("/") or ending in ENDINGS)) or (
                ending in {".py", ".sh", ".md", ".toml"} and "/" not in code
            ):
                found.add(code)
    return found


def new_files(text: str) -> set[str]:
    """The files that a recipe's blocks create, named in their first line: `# modules/methods/lora.py`."""
    return {found[1] for _, code in code_blocks(text) if (found := re.match(r"# ([\w/]+\.\w+)\n", code))}


@docs
def test_links_lead_somewhere(path):
    for target in links(path.read_text()):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked.read_text()), target


@docs
def test_commands_exist_with_their_flags(path):
    for found in commands(path.read_text()):
        assert (ROOT / found.program).is_file(), found
        programs = {found.program, found.variables.get("PROGRAM", found.program)}
        known = frozenset().union(*map(flags_of, programs))
        unknown = [word for word in found.arguments if word.startswith("--") and word.split("=")[0] not in known]
        assert not unknown, found
        for name in found.variables.keys() - READ_BY_LIBRARIES:
            assert reads(found.program, name), f"{found.program} does not read {name}"


@docs
def test_flags_exist(path):
    text = re.sub(r"\]\(\S+\)", "]", path.read_text())
    unknown = set(re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", text)) - all_flags()
    assert not unknown


@docs
def test_files_exist(path):
    text = path.read_text()
    missing = {name for name in files_named(text) if not (ROOT / name).exists()} - new_files(text)
    assert not missing


@docs
def test_python_names_exist(path):
    """Dotted names of inline code that begin with a package of ours, such as `modules.methods.METHODS`."""
    for code in inline_code(path.read_text()):
        if not re.fullmatch(r"(modules|dataloaders|engine|search|benchmarks|tools|preprocess)(\.\w+)+", code):
            continue
        owner, _, name = code.rpartition(".")
        try:
            importlib.import_module(code)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(owner), name), code


@docs
def test_python_blocks_import_what_is_there(path):
    """All but the new files of recipes, which tests/test_contributing.py makes and runs."""
    for language, code in code_blocks(path.read_text()):
        if language == "python" and not new_files(f"```\n{code}```\n"):
            compile(code, path.name, "exec")
            for line in re.findall(
                r"^(?:from (?:modules|dataloaders|engine|search)\S* )?import .+$", code, re.MULTILINE
            ):
                exec(line, {})


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.csv")), ids=lambda path: path.name)
def test_commands_of_results_name_no_path_of_one_machine(path):
    words = [word for row in csv.DictReader(path.read_text().splitlines()) for word in shlex.split(row["command"])]
    assert words
    assert not [word for word in words if word.startswith(("/", "~"))]


def test_the_programs_that_take_flags():
    some = {"main_task_retrieval.py", "preprocess/compress_video.py", "benchmarks/methods.py", "tools/report.py"}
    assert some <= set(PROGRAMS)
    assert "--select_on" in flags_of("scripts/msrvtt.sh")
    assert {"--shots", "--select_on"} <= flags_of("scripts/ucf101.sh")
    assert "--no-memory_search" in flags_of("scripts/benchmark.sh")
    assert {"--jobs", "--frame_cache", "--attention"} <= flags_of("preprocess/cache_frames.py")
    assert "--only" not in flags_of("scripts/msrvtt.sh")
    assert "--yes" in flags_of("preprocess/download_msrvtt.sh")


def test_the_checks_see_what_is_wrong():
    assert "no-such-part" not in anchors(DOCS[0].read_text())
    assert files_named("`modules/nothing.py` `scripts/` `a.b` `runs/x.py`") == {"modules/nothing.py", "scripts/"}
    found = command("lr=1e-4 python -m benchmarks.methods --onyl stop  # a slip")
    assert found.arguments[0] not in flags_of(found.program)
    assert not reads("scripts/msrvtt.sh", "no_such_variable")
    with pytest.raises(ValueError, match="neither"):
        command("ls -l")
