"""A SigLIP with a tokenizer of its own, from its folder: trained, evaluated, indexed and searched, on small clips."""

import csv
import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("timm", reason="makes SigLIP's vision tower")
pytest.importorskip("transformers", reason="reads the files of tokenizers")

from engine.checkpoint import read_header
from main_task_retrieval import main
from modules.hub_tokenizer import files_sha256
from search import Index
from search.__main__ import main as search
from tests.modules.small_siglip import know_small_siglip, write_siglip
from tests.small_data import SmallData


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("siglip")
    with pytest.MonkeyPatch.context() as patch:
        know_small_siglip(patch.setitem)
        write_siglip(folder, context=32)
    return folder


@pytest.fixture
def flags(small_data: SmallData, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags of a run in `tmp_path / "run"`, on a copy of the folder that a test may change."""
    know_small_siglip(monkeypatch.setitem)
    shutil.copytree(folder, tmp_path / "siglip")
    return [
        *small_data.flags(), "--pretrained_clip_name", str(tmp_path / "siglip"), "--method", "stop",
        "--batch_size", "10", "--max_words", "30", "--output_dir", str(tmp_path / "run"),
    ]  # fmt: skip


def test_trained_evaluated_and_searched(
    flags: list[str], small_data: SmallData, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, checkpoint = tmp_path / "run", tmp_path / "run" / "last.safetensors"
    assert main(["--do_train", "--epochs", "1", "--loss", "sigmoid", "--lr", "0.01", *flags]) == 0
    log = (run / "log.txt").read_text()
    assert "somebody/small-siglip, canonicalize, sha256 " in log
    assert "0 of 7 captions lose words at --max_words 30 (the longest has 29)" in log
    tokens = read_header(checkpoint).backbone["tokens"]
    assert tokens["sha256"] == files_sha256(tmp_path / "siglip")

    assert main(["--do_eval", "--init_model", str(checkpoint), *flags]) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained, again = (line for line in lines if line["kind"] == "test")
    metrics = {name for name in trained if name[:4] in ("t2v ", "v2t ")}
    assert metrics
    assert {name: trained[name] for name in metrics} == {name: again[name] for name in metrics}

    index = ["--index", str(tmp_path / "index")]
    clips = tmp_path / "clips"
    clips.mkdir()
    for number in range(10, 17):
        shutil.copy(small_data.videos / f"video{number}.mp4", clips)
    assert search(["index", str(clips), *index, "--checkpoint", str(checkpoint), "--jobs", "1"]) == 0
    with open(small_data.folder / "MSRVTT_JSFUSION_test.csv", newline="") as file:
        texts = {row["video_id"]: row["sentence"] for row in csv.DictReader(file)}
    with Index.open(tmp_path / "index") as opened:
        found = {video_id: opened.query(text, top=7) for video_id, text in texts.items()}
    ranks = [[Path(hit.file).stem for hit in hits].index(video_id) + 1 for video_id, hits in found.items()]
    assert round(sum(ranks) / len(ranks), 3) == trained["t2v MnR"]
    capfd.readouterr()
    assert search(["query", "a RED half!", *index, "--top", "3"]) == 0
    assert capfd.readouterr().out.count(".mp4") == 3
    assert search(["query", "?!", *index]) == 2
    assert "the query '?!' has no words" in capfd.readouterr().err

    settings = tmp_path / "siglip" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "padding_side": "left"}))
    for call in (
        lambda: main(["--do_eval", "--init_model", str(checkpoint), *flags]),
        lambda: search(["query", "a red half", *index]),
    ):
        assert call() == 2
        assert f"tokens sha256 is {tokens['sha256'][:12]} there and " in capfd.readouterr().err


def test_a_missing_tokenizer_stops_the_run_before_it_writes(
    flags: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    (tmp_path / "siglip" / "tokenizer.json").unlink()
    assert main(["--do_train", "--epochs", "1", *flags]) == 2
    told = capfd.readouterr().err
    assert "the Hugging Face repository somebody/small-siglip" in told
    assert f"put them into {tmp_path / 'siglip'}" in told
    assert not (tmp_path / "run" / "log.txt").exists()


def test_texts_longer_than_the_tower_reads(flags: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--do_train", *flags, "--max_words", "33"]) == 2
    assert "--max_words 33 exceeds the 32 tokens that this CLIP reads: pass --max_words 32" in capfd.readouterr().err
    assert not (tmp_path / "run" / "log.txt").exists()
