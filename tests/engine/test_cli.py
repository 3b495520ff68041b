"""Flags come from the dataclasses and the methods; every mistake is one sentence that names the flag."""

from dataclasses import fields

import pytest

from engine.cli import parse_config
from engine.config import SECTIONS
from modules.methods import METHODS, method_options

FILES = ["--val_csv", "v.csv", "--features_path", "videos", "--train_csv", "t.csv", "--data_path", "d.json"]


def test_values_arrive_under_their_names():
    config = parse_config(["--do_train", *FILES, "--lr", "3e-4", "--max_frames", "8", "--freeze_layer_num", "1"])
    assert config.optim.lr == 3e-4
    assert config.data.max_frames == 8
    assert config.model.options["freeze_layer_num"] == 1
    flat = config.flat()
    assert flat["freeze_layer_num"] == 1
    assert flat["val_csv"] == "v.csv"
    assert "options" not in flat


def test_bool_flags_switch_on_and_off():
    assert parse_config(["--describe", "--expand_msrvtt_sentences"]).data.expand_msrvtt_sentences
    flags = ["--describe", "--expand_msrvtt_sentences", "--no-expand_msrvtt_sentences"]
    assert not parse_config(flags).data.expand_msrvtt_sentences


@pytest.mark.parametrize("method", METHODS)
def test_no_name_means_two_things(method):
    names = [item.name for cls in SECTIONS.values() for item in fields(cls) if item.name != "options"]
    assert len(names) == len(set(names))
    parse_config(["--describe", "--method", method])
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
        parse_config(flags)
    assert "\n" not in str(caught.value)
