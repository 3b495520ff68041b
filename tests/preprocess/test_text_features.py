"""Encoding the texts of classes: against CLIP itself, after a kill, and what is refused before anything is written."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

import preprocess.text_features as command
from modules.clip_weights import to_openai_keys
from modules.seal import DIGEST
from modules.text_features import read_text_features, text_sha256
from modules.tokenizer import Tokenizer
from preprocess.text_features import main
from tests.tiny import TINY, tiny_clip

ROOT = Path(__file__).parents[2]
LABELS = {"classes": ["peel orange", "jump rope"], "templates": ["a {}.", "the {}!", "{} seen"]}
CLAUSES = {
    "peel orange": {"xprompt_oo": ["by hand"], "xprompt_ao": ["with a knife"], "xprompt_aa": ["by hand"]},
    "jump rope": {"xprompt_oo": ["up"], "xprompt_ao": ["up"], "xprompt_aa": ["up"]},
}
PEEL = ["peel orange", "peel orange, by hand", "peel orange, with a knife"]
JUMP = ["jump rope", "jump rope, up", "jump rope"]


class Files:
    """The files of a small command, and its flags."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output = folder, folder / "texts.safetensors"
        state = {key: tensor.contiguous() for key, tensor in to_openai_keys(tiny_clip().state_dict()).items()}
        save_file(state, folder / "clip.safetensors", {"activation": TINY.activation})
        self.write("labels.yaml", LABELS)
        self.write("clauses.yaml", CLAUSES)

    def write(self, name: str, content) -> None:
        (self.folder / name).write_text(yaml.safe_dump(content, sort_keys=False))

    def flags(self, *more: str) -> list[str]:
        return [
            "--output", str(self.output), "--labels", str(self.folder / "labels.yaml"),
            "--clauses", str(self.folder / "clauses.yaml"), "--n_templates", "2",
            "--pretrained_clip_name", str(self.folder / "clip.safetensors"), "--clip_text_heads", "2",
            "--clip_vision_heads", "2", *more,
        ]  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def content_of(path: Path) -> str:
    """Return the digest in the header, whose entries have no fixed order."""
    with safe_open(path, framework="pt") as file:
        return file.metadata()[DIGEST]


def encoded(texts: list[str]) -> torch.Tensor:
    with torch.no_grad():
        return tiny_clip().text(Tokenizer(TINY.context_length)(texts))


def test_the_file_has_what_clip_gives(files, capsys):
    assert main(files.flags()) == 0
    assert "2 classes of 6 texts, 10 different ones; the longest has 10 tokens" in capsys.readouterr().out
    read = read_text_features(files.output, tiny_clip())
    assert read.names == ("peel orange", "jump rope")
    for row, phrases in zip(read.features, (PEEL, JUMP), strict=True):
        texts = [template.format(phrase) for template in ("a {}.", "the {}!") for phrase in phrases]
        torch.testing.assert_close(row, encoded(texts), atol=1e-5, rtol=1e-5)
    assert read.mask.tolist() == [[True] * 6, [True, True, False] * 2]
    assert read.about["templates"] == LABELS["templates"][:2]
    assert (read.about["mode"], read.about["clip"]) == ("xmix", text_sha256(tiny_clip()))
    assert [source["file"] for source in read.about["sources"]] == ["labels.yaml", "clauses.yaml"]
    assert not files.output.with_name("texts.safetensors.parts").exists()
    before = files.output.read_bytes()
    assert main(files.flags()) == 0
    assert "is there already" in capsys.readouterr().out
    assert files.output.read_bytes() == before
    assert main(files.flags("--n_templates", "1")) == 2
    assert "was made from other texts or with other flags" in capsys.readouterr().err
    assert files.output.read_bytes() == before


def test_names_and_templates_of_the_data_set(files):
    """Without --labels, as a run without clauses has them; labels as an index-to-name json."""
    (files.folder / "labels.json").write_text('{"1": "JumpRope", "0": "PeelOrange"}')
    flags = [*files.flags()[:2], *files.flags()[8:], "--mode", "name", "--datatype", "ucf101"]
    assert main([*flags, "--labels_csv", str(files.folder / "labels.json")]) == 0
    read = read_text_features(files.output, tiny_clip())
    assert read.names == ("PeelOrange", "JumpRope")
    texts = [f"a video of a person {name}." for name in ("peel orange", "jump rope")]
    torch.testing.assert_close(read.features[:, 0], encoded(texts), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        ('{"0": "JumpRope", "1": "PeelOrange"}', "gives the id 0 to 'PeelOrange'"),
        ('{"0": "PeelOrange"}', "has 2 classes and the data set 1"),
        ('{"0": "PeelOrange", "1": "Surf"}', "names jump rope"),
    ],
)
def test_files_of_another_data_set(files, classes, told, capsys):
    (files.folder / "labels.json").write_text(classes)
    assert main(files.flags("--labels_csv", str(files.folder / "labels.json"))) == 2
    error = capsys.readouterr().err
    assert "--labels" in error
    assert told in error
    assert not files.output.exists()


def test_a_killed_command_goes_on(files, capsys, monkeypatch):
    """The blocks that are there are not encoded again; a damaged one and one of other texts are."""
    monkeypatch.setattr(command, "BLOCK", 3)
    encode, calls = type(tiny_clip().text).forward, []

    def killed(tower, token_ids):
        calls.append(len(token_ids))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(tower, token_ids)

    monkeypatch.setattr("modules.clip.TextTransformer.forward", killed)
    assert main(files.flags()) == 130
    assert not files.output.exists()
    assert main(files.flags()) == 0
    assert calls == [3, 3, 3, 3, 1]  # the third block was lost
    whole = content_of(files.output)

    files.output.unlink()
    calls[:] = []
    assert main(files.flags("--mode", "name")) == 2  # with clauses
    assert main(files.flags()[:4] + files.flags()[6:] + ["--mode", "name"]) == 0
    assert calls == [3, 1]
    files.output.unlink()

    calls[:] = []
    assert main(files.flags()) == 130
    part = files.output.with_name("texts.safetensors.parts") / "00001.safetensors"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    calls[:] = [0] * 3
    assert main(files.flags()) == 0
    assert calls[3:] == [3, 3, 1]
    assert content_of(files.output) == whole


@pytest.mark.slow
def test_a_process_that_is_killed(files):
    """What it has encoded is there, and the next run ends with the same file as one without a kill."""
    files.write("labels.yaml", LABELS | {"templates": [f"{n} {{}}" for n in range(1500)]})
    program = [sys.executable, str(ROOT / "preprocess/text_features.py"), *files.flags("--n_templates", "1500")]
    parts = files.output.with_name("texts.safetensors.parts")
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (parts / "00000.safetensors").exists():
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not files.output.exists()
    found_there = []
    read_part = command.read_part

    def noted(path, digest):
        found = read_part(path, digest)
        found_there.append(found is not None)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "read_part", noted)
        assert main(files.flags("--n_templates", "1500")) == 0
    assert found_there[0]
    after_the_kill = content_of(files.output)
    files.output.unlink()
    assert main(files.flags("--n_templates", "1500")) == 0
    assert content_of(files.output) == after_the_kill


def test_texts_that_the_clip_cuts(files, capsys):
    clauses = CLAUSES | {"jump rope": CLAUSES["jump rope"] | {"xprompt_oo": ["up " * 14]}}
    files.write("clauses.yaml", clauses)
    assert main(files.flags()) == 2
    error = capsys.readouterr().err
    assert "the list of texts has 2 faults (class 'jump rope': 'a jump rope, up up" in error
    assert "tokens and this CLIP reads 16" in error
    assert "pass --allow_faults 2; then they are cut" in error
    assert not files.output.exists()
    assert main(files.flags("--allow_faults", "2")) == 0
    assert capsys.readouterr().out.count("this is cut") == 2
    assert len(read_text_features(files.output, tiny_clip())) == 2


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--mode", "all"], "--mode 'all' is not one of"),
        (["--mode", "name"], "--mode name takes no --clauses"),
        (["--clauses", ""], "--mode xmix needs --clauses"),
        (["--labels", ""], "pass --labels with the names of the classes"),
        (["--output", ""], "--output is not given"),
        (["--output", "a.pt"], "ends in .safetensors"),
        (["--n_templates", "0"], "--n_templates '0' is out of range"),
        (["--n_templates", "9" * 5000], "is out of range"),
        (["--allow_faults", "-1"], "--allow_faults"),
        (["--init_model", "x.bin"], "--init_model does not matter here"),
        (["--tempaltes", "x"], "unknown argument --tempaltes; did you mean --templates?"),
        (["--templates", "a {} {}"], "2 times {}"),
        (["--clauses", "none.yaml"], "--clauses none.yaml is not a file"),
        (["--graph", "none.yaml"], "--graph none.yaml is not a file"),
        (["--pretrained_clip_name", "none.safetensors"], "none.safetensors"),
    ],
)
def test_mistakes(files, more, told, capsys):
    before = sorted(files.folder.iterdir())
    assert main(files.flags(*more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert told in error
    assert sorted(files.folder.iterdir()) == before


def test_files_of_others_stay(files, capsys):
    """What lies in the folder of blocks, in its place, or in that of the output, is neither removed nor replaced."""
    parts = files.folder / "texts.safetensors.parts"
    parts.write_text("a file")
    assert main(files.flags()) == 2
    assert f"{parts}: is a file where the blocks of --output are kept; remove it" in capsys.readouterr().err
    assert parts.read_text() == "a file"

    parts.unlink()
    parts.mkdir()
    (parts / "mine.txt").write_text("notes")
    assert main(files.flags()) == 0
    assert [path.name for path in parts.iterdir()] == ["mine.txt"]

    capsys.readouterr()
    for content in (b"something else", (files.folder / "clip.safetensors").read_bytes()):
        files.output.write_bytes(content)
        assert main(files.flags()) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: --output {files.output}: ")
        assert error.endswith(": remove it, or name another file\n")
        assert files.output.read_bytes() == content


def test_another_process_may_remove_the_blocks(files, monkeypatch):
    """Two commands with one output both end well."""
    encode = command.encode

    def encode_while_another_ends(clip, token_ids, parts):
        rows = encode(clip, token_ids, parts)
        command.remove_parts(parts)
        return rows

    monkeypatch.setattr(command, "encode", encode_while_another_ends)
    assert main(files.flags()) == 0
    assert files.output.is_file()
