"""Text-video retrieval from the command line, on real small mp4 files in MSR-VTT's formats."""

import csv
import functools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from dataloaders.samples import Sample
from engine.checkpoint import CheckpointHeader, load_checkpoint, read_header, save_checkpoint
from engine.optim import warmup_cosine
from engine.tasks.splits import draw_captions
from main_task_retrieval import main
from modules.clip_weights import backbone_sha256, load_clip
from modules.methods import build_method
from tests.processes import run_as_group
from tests.retrieval_runs import error_of, lines_of, scores
from tests.small_data import write_small_data
from tools.report import main as report


def test_describe_needs_no_files(capsys):
    assert main(["--describe", "--method", "clip4clip", "--pretrained_clip_name", "ViT-B/32"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["method"] == "clip4clip"
    assert counts["trainable_parameters"] == 123_540_993
    assert counts["total_parameters"] == 151_277_313
    assert sum(counts["trainable_by_part"].values()) == counts["trainable_parameters"]
    # By hand, 2 operations per multiply-add: patches, 11 blocks of 12 D^2 L + 2 L^2 D, projection; the same for text.
    # In the last block, only the class token or END has a query, an output and an MLP; END's key and value are computed
    # twice.
    last = 2 * 768**2 * 50 + 10 * 768**2 + 2 * 50 * 768
    frame = 49 * 3072 * 768 + 11 * (12 * 768**2 * 50 + 2 * 50**2 * 768) + last + 768 * 512
    end = 2 * 512**2 * 32 + 12 * 512**2 + 2 * 33 * 512
    words = 11 * (12 * 512**2 * 32 + 2 * 32**2 * 512) + end + 512 * 512
    assert counts["gflops_per_clip"] == pytest.approx(2 * (12 * frame + words) / 1e9, rel=1e-3)


def test_trains_evaluates_and_writes_its_files(small_data, tmp_path, capsys):
    out, results = tmp_path / "run", tmp_path / "results.csv"
    flags = [*small_data.flags(), "--output_dir", str(out), "--results_csv", str(results)]
    assert main(["--do_eval", *flags]) == 0
    training = ["--epochs", "2", "--batch_size", "4", "--lr", "1e-3", "--coef_lr", "1"]
    assert main(["--do_train", *flags, *training]) == 0

    rows = list(csv.DictReader(results.open()))
    assert [row["selection"] for row in rows] == ["zero-shot", "last epoch"]
    assert rows[1]["videos"] == "7"
    for column in ("seed", "commit", "command", "hardware", "versions", "t2v R@1", "v2t MnR"):
        assert rows[1][column], column
    kinds = [line["kind"] for line in lines_of(out / "metrics.jsonl")]
    assert kinds == ["test"] + ["train"] * 5 + ["test"]  # 20 pairs, 5 steps an epoch, every 2nd logged
    settings = json.loads((out / "config.json").read_text())
    assert settings["batch_size"] == 4
    assert settings["sim_header"] == "meanP"
    assert list((out / "tensorboard").iterdir())
    assert "selection: last epoch" in (out / "log.txt").read_text()
    weights = load_file(out / "last.safetensors")
    start = dict(load_clip(small_data.clip).named_parameters())
    assert not torch.equal(weights["clip.visual.proj"], start["visual.proj"])

    # The checkpoint alone gives the trained numbers again.
    trained = lines_of(out / "metrics.jsonl")[-1]
    assert main(["--do_eval", *flags, "--init_model", str(out / "last.safetensors")]) == 0
    again = lines_of(out / "metrics.jsonl")[-1]
    assert len(scores(again)) == 10
    assert scores(again) == scores(trained)
    # The checkpoint also has the settings of its run; flags on the command line take precedence.
    assert main(["--do_eval", "--init_model", str(out / "last.safetensors"), "--output_dir", str(tmp_path / "b")]) == 0
    assert scores(lines_of(tmp_path / "b" / "metrics.jsonl")[-1]) == scores(trained)
    settings = json.loads((tmp_path / "b" / "config.json").read_text())
    assert (settings["max_frames"], settings["do_train"]) == (3, False)
    assert settings["row_name"] == settings["results_csv"] == ""


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("clip4clip", {}),
        ("dgl", {"shared_latent_space": "linear"}),
        ("stop_released", {"shared_latent_space": "linear", "inter_frame_norm": "clip"}),
    ],
)
def test_checkpoints_of_released_codes(small_data, tmp_path, method, options, capsys):
    """Check full weights under the released key names: they can be evaluated, and trained further if the frozen CLIP
    is the same."""
    torch.manual_seed(5)
    source = build_method(method, load_clip(small_data.clip), **options)
    with torch.no_grad():
        for _, parameter in source.trainable_parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    state = {source.released_name(name): tensor for name, tensor in source.state_dict().items()}
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "pytorch_model.bin.4"
    clip = load_clip(small_data.clip)
    save_checkpoint(ours, source, CheckpointHeader({}, 0, backbone_sha256(clip)))
    torch.save(state if method == "clip4clip" else {"epoch": 4, "state_dict": state}, theirs)
    flags = [
        *small_data.flags(),
        "--method",
        method,
        "--output_dir",
        str(tmp_path / "run"),
        "--frame_sampling",
        "segment",
    ]
    flags += [flag for name, value in options.items() for flag in (f"--{name}", value)]
    for checkpoint in (ours, theirs):
        assert main(["--do_eval", *flags, "--init_model", str(checkpoint)]) == 0
    first, second = lines_of(tmp_path / "run" / "metrics.jsonl")
    assert scores(first) == scores(second)
    train = ["--do_train", *flags, "--epochs", "1", "--batch_size", "4", "--init_model", str(theirs)]
    assert main(train) == 0

    state["clip.visual.conv1.weight"] = state["clip.visual.conv1.weight"] + 1
    torch.save({"state_dict": state}, theirs)
    message = error_of(train, capsys)
    assert "was trained on another CLIP than --pretrained_clip_name (1 of its frozen tensors differ" in message
    del state["clip.visual.conv1.weight"]
    torch.save({"state_dict": state}, theirs)
    message = error_of(train, capsys)
    assert "pytorch_model.bin.4: the released weights do not fit" in message
    assert "1 key missing (clip.visual.conv1.weight)" in message


def test_a_checkpoint_without_a_newer_setting_gets_its_default(small_data, tmp_path):
    flags = [*small_data.flags(), "--epochs", "1", "--batch_size", "4", "--output_dir", str(tmp_path)]
    assert main(["--do_train", *flags]) == 0
    trained = lines_of(tmp_path / "metrics.jsonl")[-1]
    path = tmp_path / "last.safetensors"
    settings = read_header(path).settings
    del settings["same_video"], settings["prefetch_factor"]
    clip = load_clip(small_data.clip)
    method = build_method("clip4clip", clip)
    sha256 = backbone_sha256(clip)
    load_checkpoint(path, method, sha256)
    save_checkpoint(tmp_path / "old.safetensors", method, CheckpointHeader(settings, 1, sha256))
    assert main(["--do_eval", "--init_model", str(tmp_path / "old.safetensors"), "--output_dir", str(tmp_path)]) == 0
    assert scores(lines_of(tmp_path / "metrics.jsonl")[-1]) == scores(trained)


def test_workers_use_the_prefetch_factor(small_data, tmp_path, monkeypatch):
    """Check training and the videos of the test split; captions need no workers."""
    made = []

    class Noted(DataLoader):
        def __init__(self, dataset, **settings):
            made.append((type(dataset).__name__, settings["num_workers"], settings["prefetch_factor"]))
            assert settings["pin_memory"] == torch.cuda.is_available()
            super().__init__(dataset, **settings)

    monkeypatch.setattr("dataloaders.datasets.DataLoader", Noted)
    flags = [*small_data.flags(), "--epochs", "1", "--batch_size", "4", "--output_dir", str(tmp_path)]
    assert main(["--do_train", *flags, "--num_thread_reader", "1", "--prefetch_factor", "3"]) == 0
    assert made == [("TrainingPairs", 1, 3), ("GalleryVideos", 1, 3), ("QueryCaptions", 0, None)]


def test_same_seed_same_weights(small_data, tmp_path):
    for name in ("a", "b"):
        flags = [*small_data.flags(), "--epochs", "1", "--batch_size", "4", "--output_dir", str(tmp_path / name)]
        assert main(["--do_train", *flags, "--frame_sampling", "dense", "--frame_stride", "2"]) == 0
    first, second = (load_file(tmp_path / name / "last.safetensors") for name in ("a", "b"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_worker_processes_change_nothing(small_data, tmp_path):
    """Check that the random frames and the dropout of a run stay the same."""
    for workers in ("0", "2"):
        flags = ["--do_train", *small_data.flags(), "--method", "stop", "--frame_sampling", "segment", "--prompt_depth"]
        flags += ["1", "--epochs", "1", "--batch_size", "4", "--num_thread_reader", workers]
        assert main([*flags, "--output_dir", str(tmp_path / workers)]) == 0
    first, second = (load_file(tmp_path / workers / "last.safetensors") for workers in ("0", "2"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("select_on", ["holdout", "test"])
def test_selection_is_named_and_best_is_kept(small_data, tmp_path, select_on, capsys):
    flags = [*small_data.flags(), "--epochs", "2", "--batch_size", "4", "--output_dir", str(tmp_path)]
    flags += ["--select_on", select_on] + (["--holdout_videos", "3"] if select_on == "holdout" else [])
    assert main(["--do_train", *flags]) == 0
    lines = lines_of(tmp_path / "metrics.jsonl")
    selected = [line for line in lines if line["kind"] == select_on and "selection" not in line]
    assert len(selected) == 2
    best = max(selected, key=lambda line: (line["t2v R@1"], line["step"]))
    assert (tmp_path / "best.safetensors").is_file()
    assert lines[-1]["step"] == best["step"]
    assert (
        lines[-1]["selection"]
        == {
            "holdout": "best epoch on held-out training videos",
            "test": "best epoch ON THE TEST SPLIT",
        }[select_on]
    )


def test_the_later_of_equal_epochs_is_kept(small_data, tmp_path):
    flags = [*small_data.flags(), "--epochs", "2", "--batch_size", "4", "--output_dir", str(tmp_path)]
    assert main(["--do_train", *flags, "--select_on", "test", "--lr", "0"]) == 0
    assert lines_of(tmp_path / "metrics.jsonl")[-1]["step"] == 2


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")  # the first step is often skipped
def test_fp16_trains_and_evaluates_in_the_precision_asked_for(small_data, tmp_path):
    flags = [*small_data.flags(), "--epochs", "1", "--batch_size", "4", "--coef_lr", "1", "--output_dir", str(tmp_path)]
    assert main(["--do_train", *flags, "--precision", "fp16", "--precision_val", "fp32"]) == 0
    training = [line for line in lines_of(tmp_path / "metrics.jsonl") if line["kind"] == "train"]
    assert training[-1]["skipped_steps"] < 5
    assert training[-1]["loss_scale"] > 0
    assert "steps skipped" in (tmp_path / "log.txt").read_text()

    trained = lines_of(tmp_path / "metrics.jsonl")[-1]
    assert main(["--do_eval", *flags, "--init_model", str(tmp_path / "last.safetensors")]) == 0
    assert scores(lines_of(tmp_path / "metrics.jsonl")[-1]) == scores(trained)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
def test_steps_that_overflow_in_fp16_are_left_out_and_counted(small_data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=2.0**60))
    flags = [*small_data.flags(), "--epochs", "1", "--batch_size", "4", "--coef_lr", "1", "--output_dir", str(tmp_path)]
    assert main(["--do_train", *flags, "--precision", "fp16"]) == 0
    last = [line for line in lines_of(tmp_path / "metrics.jsonl") if line["kind"] == "train"][-1]
    assert (last["skipped_steps"], last["loss_scale"]) == (5, 2.0**55)
    assert last["lr"] == pytest.approx(1e-4 * warmup_cosine(4, 5, 0.1))  # the schedule went on
    weights, start = load_file(tmp_path / "last.safetensors"), dict(load_clip(small_data.clip).named_parameters())
    assert torch.equal(weights["clip.visual.proj"], start["visual.proj"])


def run(arguments: list[str]) -> None:
    assert main(arguments) == 0


def test_three_processes_evaluate_as_one(tmp_path):
    """Check seven videos, which three does not divide; none is counted twice. All leave out a broken eighth video."""
    data = write_small_data(tmp_path / "data", n_train=2, n_test=8)
    (data.videos / "video6.mp4").write_bytes(b"this is no video")
    evaluation = ["--do_eval", *data.flags(), "--allow_missing", "1"]
    assert main([*evaluation, "--output_dir", str(tmp_path / "one")]) == 0
    more = ["--frame_cache", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "three")]
    run_as_group(3, run, [*evaluation, *more])
    one, three = (lines_of(tmp_path / name / "metrics.jsonl")[-1] for name in ("one", "three"))
    assert scores(one) == scores(three)
    assert one["videos"] == three["videos"] == "7 of 8"
    assert len(list(tmp_path.glob("cache/*/*.safetensors"))) == 7


def test_two_processes_give_the_numbers_of_one(small_data, tmp_path):
    """Train on the same global batches and evaluate an odd number of videos, also with post-processing."""
    training = [
        "--do_train",
        *small_data.flags(),
        "--epochs",
        "1",
        "--batch_size",
        "4",
        "--lr",
        "1e-3",
        "--coef_lr",
        "1",
        "--dsl",
        "--qb_norm",
        "--querybank_size",
        "9",
    ]
    assert main([*training, "--output_dir", str(tmp_path / "one")]) == 0
    run_as_group(2, run, [*training, "--output_dir", str(tmp_path / "two")])
    one, two = (lines_of(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert len(one) == len(two)
    for ours, theirs in zip(one, two, strict=True):
        for name in ours.keys() - {"time", "clips_per_second", "selection", "videos", "kind"}:
            assert name.endswith("_share") or ours[name] == pytest.approx(theirs[name], rel=1e-4), name
    first, second = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-5, rtol=1e-4)


def test_post_processing_adds_columns_and_changes_none(small_data, tmp_path, capsys):
    flags = ["--do_eval", *small_data.flags(), "--output_dir", str(tmp_path / "run"), "--results_csv"]
    plain_csv, extra_csv = tmp_path / "plain.csv", tmp_path / "extra.csv"
    asked = ["--dsl", "--qb_norm", "--querybank_size", "9"]
    assert main([*flags, str(plain_csv)]) == 0
    assert main([*flags, str(extra_csv), *asked]) == 0
    plain, extra = (scores(line) for line in lines_of(tmp_path / "run" / "metrics.jsonl"))
    assert {name: extra[name] for name in plain} == plain
    suffixes = [("t2v", "(DSL)"), ("v2t", "(DSL)"), ("t2v", "(QB-Norm)")]
    names = {f"{way} {name} {suffix}" for way, suffix in suffixes for name in ("R@1", "R@5", "R@10", "MdR", "MnR")}
    assert extra.keys() - plain.keys() == names
    assert "text-to-video (QB-Norm):  R@1" in (tmp_path / "run" / "log.txt").read_text()
    assert "query bank of QB-Norm: 9 captions" in (tmp_path / "run" / "log.txt").read_text()

    capsys.readouterr()
    assert report([str(extra_csv)]) == 0
    assert "T2V R@1 (DSL)" in capsys.readouterr().out
    assert "pass another --results_csv" in error_of([*flags, str(plain_csv), *asked], capsys)
    assert "needs --train_csv" in error_of(["--do_eval", "--qb_norm", "--val_csv", "a", "--features_path", "b"], capsys)
    assert "--dsl_temperature 0" in error_of(["--do_eval", "--dsl_temperature", "0"], capsys)


def test_a_query_bank_is_drawn_without_repetition():
    samples = [Sample("a", Path("a.mp4"), ("one", "two")), Sample("b", Path("b.mp4"), ("three",))]
    drawn = draw_captions(samples, 2, seed=0)
    assert [s.captions for s in drawn] == [s.captions for s in draw_captions(samples, 2, seed=0)]
    assert len({s.captions for s in drawn}) == 2
    assert {s.captions for s in draw_captions(samples, 5000, seed=0)} == {("one",), ("two",), ("three",)}


def test_a_frame_cache_saves_decoding_and_changes_no_number(small_data, tmp_path, monkeypatch, capsys):
    training = ["--do_train", *small_data.flags(), "--epochs", "2", "--batch_size", "4", "--lr", "1e-3"]
    training += ["--frame_sampling", "segment", "--coef_lr", "1"]
    weights = []
    for name, more in (("plain", []), ("cached", ["--frame_cache", str(tmp_path / "cache")])):
        assert main([*training, "--output_dir", str(tmp_path / name), *more]) == 0
        weights.append(load_file(tmp_path / name / "last.safetensors"))
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name
    logged = (tmp_path / "cached" / "log.txt").read_text()
    assert f"frame cache {tmp_path / 'cache'} (raw), train split: 10 videos of about 0." in logged
    assert "0 are there, 0.0" in logged

    monkeypatch.setattr("dataloaders.frames.read_frames", None)
    assert main([*training, "--output_dir", str(tmp_path / "again"), "--frame_cache", str(tmp_path / "cache")]) == 0
    assert "10 are there, 0 MB to be written" in (tmp_path / "again" / "log.txt").read_text()
