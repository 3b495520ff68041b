"""Flags come from the dataclasses and the methods; every mistake is one sentence that names the flag."""

import os
from dataclasses import fields

import pytest

from engine.cli import parse_config, parse_flags
from engine.config import sections_with
from engine.data import reader_processes
from engine.tasks.recognition_settings import RecognitionSettings
from engine.tasks.retrieval import RetrievalSettings
from modules.methods import METHODS, build_method, method_options
from preprocess import compress_video, train_small_clip
from tests.tiny import tiny_clip

SECTIONS = sections_with(RetrievalSettings)
FILES = ["--val_csv", "v.csv", "--features_path", "videos", "--train_csv", "t.csv", "--data_path", "d.json"]


def test_flags_set_the_settings_of_the_same_names():
    config = parse_config(
        ["--do_train", *FILES, "--lr", "3e-4", "--max_frames", "8", "--freeze_layer_num", "1"], RetrievalSettings
    )
    assert config.optim.lr == 3e-4
    assert config.data.max_frames == 8
    assert config.model.options["freeze_layer_num"] == 1
    flat = config.flat()
    assert flat["freeze_layer_num"] == 1
    assert flat["val_csv"] == "v.csv"
    assert "options" not in flat


def test_bool_flags_can_be_set_and_unset():
    assert parse_config(["--describe", "--expand_msrvtt_sentences"], RetrievalSettings).task.expand_msrvtt_sentences
    flags = ["--describe", "--expand_msrvtt_sentences", "--no-expand_msrvtt_sentences"]
    assert not parse_config(flags, RetrievalSettings).task.expand_msrvtt_sentences


@pytest.mark.parametrize("method", METHODS)
def test_no_flag_has_two_meanings(method):
    names = [item.name for cls in SECTIONS.values() for item in fields(cls) if item.name != "options"]
    assert len(names) == len(set(names))
    parse_config(["--describe", "--method", method], RetrievalSettings)
    for option in method_options(METHODS[method]):
        assert option.help


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to do"),
        (["--describe", "--lrr", "1"], "unknown argument --lrr; did you mean --lr"),
        (["--describe", "--method", "clap"], "'clap' is not one of: .*clip4clip"),
        (["--describe", "--max_frames", "0"], "--max_frames 0 is out of range: it takes a number at least 1"),
        (["--describe", "--max_frames", "many"], "argument --max_frames: invalid int value: 'many'"),
        (["--describe", "--max_words", "78"], "--max_words 78 is out of range: it takes a number from 3 to 77"),
        (["--describe", "--batch_size", "1"], "--batch_size 1 is out of range"),
        (["--describe", "--warmup_proportion", "1.5"], "from 0 to 1"),
        (["--describe", "--max_grad_norm", "0"], "above 0"),
        (["--describe", "--frame_sampling", "random"], "frame_sampling"),
        (["--describe", "--frame_transform", "pad"], "frame_transform"),
        (["--describe", "--schedule", "linear"], "schedule"),
        (["--describe", "--gather_gradient", "none"], "gather_gradient"),
        (["--describe", "--same_video", "positive"], "same_video"),
        (["--describe", "--prefetch_factor", "0"], "--prefetch_factor 0 is out of range: it takes a number at least 1"),
        (["--describe", "--precision", "fp8"], "precision"),
        (["--describe", "--precision_val", "fp16"], "precision_val"),
        (["--describe", "--datatype", "kinetics"], "'kinetics' is not one of: msrvtt"),
        (["--describe", "--select_on", "holdout"], "--holdout_videos"),
        (["--describe", "--seed", "-1"], "--seed -1 is out of range"),
        (["--do_train"], "needs --val_csv, --features_path, --train_csv, --data_path"),
        (["--do_eval"], "needs --val_csv, --features_path"),
        (["--do_train", "--datatype", "vatex"], "vatex needs --data_path, --features_path:"),
        (["--do_train", "--datatype", "custom"], "custom needs --val_csv, --features_path, --train_csv:"),
        (["--describe", "--lr", "-1"], "--lr -1 is out of range"),
        (["--describe", "--num_thread_reader", "-2"], "--num_thread_reader -2 is out of range"),
    ],
)
def test_mistakes_are_one_sentence(flags, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_config(flags, RetrievalSettings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--cosine_epochs 3",
            "--cosine_epochs 3.0 has no effect with --schedule warmup_cosine: pass --schedule periodic_",
        ),
        ("--frame_stride 4", "with --frame_sampling uniform: pass --frame_sampling dense or slowfast, or leave it out"),
        (
            "--slice_framepos 0 --frame_sampling segment",
            "--slice_framepos 0 has no effect with --frame_sampling segment",
        ),
        ("--frame_cache_format jpeg", "--frame_cache_format jpeg has no effect without --frame_cache: pass"),
        ("--shard_cache /fast --train_shards data/x", "--shard_cache /fast .* data/x: pass --train_shards an http"),
        ("--shard_cache_gb 5", "--shard_cache_gb 5.0 has no effect without --train_shards"),
        ("--shard_patience 5 --train_shards x", "--shard_patience 5.0 has no effect with --train_shards x"),
        ("--shard_streams 4", "--shard_streams 4 has no effect without --train_shards: pass --train_shards, or leave"),
        ("--allow_pipe --train_shards https://a/b", "--allow_pipe has no effect with .* pass --train_shards 'pipe:COM"),
        ("--dsl_temperature 2", "--dsl_temperature 2.0 has no effect without --dsl: pass --dsl, or leave it out"),
        ("--querybank_size 9", "--querybank_size 9 has no effect without --qb_norm"),
        ("--resume auto", "--resume auto has no effect without --do_train: pass --do_train, or leave it out"),
        ("--save_full", "--save_full has no effect without --do_train"),
        (
            "--datatype msvd --val_csv mine.csv",
            "--val_csv is not for --datatype msvd, which has its own lists",
        ),
        ("--datatype lsmdc --train_csv mine.csv", "--train_csv is not for --datatype lsmdc"),
        ("--same_video apart", "--same_video apart has no effect without --expand_msrvtt_sentences"),
        ("--cross_num_hidden_layers 2", "with --sim_header meanP: pass --sim_header seqTransf, or leave it out"),
        (
            "--method stop --no-use_inter --eta 2",
            "--eta 2 has no effect without --use_inter: pass --use_inter, or leave",
        ),
        ("--method stop --alpha 0.2 --random_regions", "--alpha 0.2 has .* --random_regions: leave one of them out$"),
        (
            "--method mug_stan --mug wti --gamma 50",
            "--gamma 50.0 has no effect with --mug wti: pass --mug simple or full",
        ),
        (
            "--method stdd --temporal none --no-shuffle_train",
            "--no-shuffle_train has no effect with --temporal none: pass --temporal stcross_attend",
        ),
    ],
)
def test_flags_without_effect_are_refused(flags, message):
    with pytest.raises(ValueError, match=message) as caught:
        assert parse_config(["--describe", *flags.split()], RetrievalSettings).run.describe
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "flags",
    [
        "--cosine_epochs 3 --schedule periodic_cosine",
        "--cosine_epochs 4.5 --slice_framepos 2 --shard_cache_gb 100 --shard_cache=",  # defaults, as of scripts
        "--frame_stride 4 --frame_sampling slowfast",
        "--shard_cache /fast --shard_cache_gb 5 --train_shards https://a/b --shard_streams 4",
        "--shard_cache /fast --train_shards pipe:x --allow_pipe",
        "--dsl --dsl_temperature 2",
        "--method stop --no-use_inter --intra_width 32 --inter_width 32",  # sizes, as of an ablation
        "--method stop --beta 2 --eta 2 --alpha 0.2",
    ],
)
def test_flags_with_effect_and_defaults_pass(flags):
    assert parse_config(["--describe", *flags.split()], RetrievalSettings).run.describe


def test_a_setting_of_a_checkpoint_may_have_no_effect():
    """An evaluation takes over `shard_streams` of a training from shards, but not where they are."""
    assert parse_flags(SECTIONS, "clip4clip", ["--do_eval"], {"shard_streams": 4})["shard_streams"] == 4
    with pytest.raises(ValueError, match="--shard_streams 2 has no effect"):
        parse_flags(SECTIONS, "clip4clip", ["--do_eval", "--shard_streams", "2"], {"shard_streams": 4})


@pytest.mark.parametrize("flag", ["--flip_probability 0.1", "--rand_augment_magnitude 3", "--view_fusion softmax"])
def test_recognition_refuses_them_too(flag):
    with pytest.raises(ValueError, match=f"{flag} has no effect with"):
        parse_config(["--describe", *flag.split()], RecognitionSettings)


FLOATS = [
    (name, item.name) for name, cls in SECTIONS.items() for item in fields(cls) if isinstance(item.default, float)
] + [(name, option.name) for name, cls in METHODS.items() for option in method_options(cls) if option.type is float]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_infinite_and_nan_settings_are_refused(value):
    """Check every section and every method, by flag and from Python."""
    assert {flag for _, flag in FLOATS} >= {"lr", "max_grad_norm", "dsl_temperature", "beta", "noise_floor"}
    for owner, flag in FLOATS:
        method = ["--method", owner] if owner in METHODS else []
        with pytest.raises(ValueError, match=f"argument --{flag}: {value} is not a finite number"):
            parse_config(["--describe", *method, f"--{flag}={value}"], RetrievalSettings)
        if owner in METHODS:
            with pytest.raises(ValueError, match=f"--{flag} {float(value):g} is out of range"):
                build_method(owner, tiny_clip(), **{flag: float(value)})
        else:
            with pytest.raises(ValueError, match=f"--{flag} {float(value):g} is out of range"):
                SECTIONS[owner](**({"describe": True} if owner == "run" else {}), **{flag: float(value)})


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_other_commands_refuse_them_too(value, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    folders = ["--input_root", str(tmp_path / "in"), "--output_root", str(tmp_path / "out")]
    for flag in ("--fps", "--max_shortfall"):
        assert compress_video.main([*folders, flag, value]) == 2
        assert f"error: {flag} must be" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        train_small_clip.main(["--lr", value])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("cores", "processes", "expected"),
    [(1, 1, 1), (2, 1, 1), (4, 1, 3), (64, 1, 8), (64, 8, 7), (64, 16, 3), (2, 4, 1)],
)
def test_worker_processes_follow_the_cores(monkeypatch, cores, processes, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert reader_processes(parse_config(["--describe"], RetrievalSettings).data.num_thread_reader) == expected
    assert [reader_processes(given) for given in (0, 1, 30)] == [0, 1, 30]
