"""`--describe` counts parameters and operations without weights, and names the parts that cannot learn."""

import pytest

from benchmarks.operations import count_forward
from engine.describe import describe
from engine.describe.__main__ import main
from modules.clip import CLIP
from modules.clip_weights import architecture_of
from modules.methods import METHODS, build_method, method_options


def options_of(name: str) -> dict:
    fitting = {"prefix": 2, "postfix": 2} if name == "efficient_prompt" else {}  # the tiny CLIP reads 16 tokens
    with_frames = any(option.name == "max_frames" for option in method_options(METHODS[name]))
    return ({"max_frames": 3} if with_frames else {}) | fitting


def described(small_data, name: str, **options) -> dict:
    return describe(name, str(small_data.clip), "", options_of(name) | options, max_frames=3, max_words=8)


@pytest.mark.parametrize("name", METHODS)
def test_counts_are_those_of_a_real_method(small_data, name):
    counts = described(small_data, name)
    method = build_method(name, CLIP(architecture_of(str(small_data.clip))), **options_of(name))
    trainable = sum(parameter.numel() for _, parameter in method.trainable_parameters())
    assert counts["trainable_parameters"] == sum(counts["trainable_by_part"].values()) == trainable
    assert counts["total_parameters"] == sum(parameter.numel() for parameter in method.parameters())


def test_one_row_per_component(small_data):
    """Check that each child of the method is one row, and that a trained CLIP has a row for each part of a tower."""
    assert set(described(small_data, "stop")["trainable_by_part"]) == {"intra", "inter", "text_prompts"}
    parts = described(small_data, "clip4clip")["trainable_by_part"]
    assert {"clip.visual.blocks", "clip.text.blocks"} <= parts.keys()
    assert all(part.count(".") <= 2 for part in parts)


def test_operations_are_those_of_one_clip_and_one_caption(small_data):
    counts = described(small_data, "vpt")
    assert counts["gflops_per_clip"] == round(
        count_forward("vpt", architecture_of(str(small_data.clip)), 3, 8) / 1e9, 3
    )


def test_a_part_that_cannot_learn_has_its_reason(small_data):
    dead = described(small_data, "stop_released", hard_region_mask=True)["dead_parameters"]["pixel.scorer"]
    assert dead["parameters"] > 0
    assert dead["reason"]


def test_the_table_has_every_method(small_data, capsys):
    flags = ["--table", "--pretrained_clip_name", str(small_data.clip), "--max_frames", "3", "--max_words", "8"]
    assert main(flags) == 0
    title, _, header, *lines = capsys.readouterr().out.splitlines()
    assert title.startswith(f"{small_data.clip}, 3 frames, 8 words")
    assert header.split()[:2] == ["method", "trained"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[: lines.index("")]}
    left_out = {line.split()[0]: line for line in lines[lines.index("") + 1 :]}
    assert rows.keys() | left_out.keys() == METHODS.keys()
    assert list(left_out) == ["efficient_prompt"]
    assert "is left out: This CLIP reads at most 16 tokens" in left_out["efficient_prompt"]
    assert rows["clip4clip"][3] == "1.00"
    for name in ("stop", "dgl"):
        counts = described(small_data, name)
        dead = sum(part["parameters"] for part in counts.get("dead_parameters", {}).values())
        assert rows[name][0] == f"{counts['trainable_parameters']:,}"
        assert rows[name][2] == f"{counts['gflops_per_clip']:.1f}"
        assert rows[name][4] == f"{dead:,}"
    assert rows["dgl"][4] != "0"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "pass one of --table"),
        (["--table", "--backbones"], "pass one of --table"),
        (["--table", "--json"], "--json"),
        (["--table", "--max_words", "17"], "--max_words 17 is out of range"),
        (["--table", "--max_frames", "0"], "--max_frames"),
    ],
)
def test_bad_flags_of_the_table(small_data, capsys, flags, message):
    assert main([*flags, "--pretrained_clip_name", str(small_data.clip)]) == 2
    assert message in capsys.readouterr().err
