"""DiscoVLA is trained with a file of frame captions, in one part and in two, and evaluated without."""

import json

import pytest

from dataloaders.msrvtt import read_split
from main_task_retrieval import main
from tests.training_runs import assert_same_weights, lines_of, run, training


@pytest.fixture(scope="module")
def captions(small_data, tmp_path_factory):
    """Write two frame captions for every training pair; return the file and its content."""
    folder = small_data.folder
    train, test = folder / "MSRVTT_train.9k.csv", folder / "MSRVTT_JSFUSION_test.csv"
    lists = {"data_path": folder / "MSRVTT_data.json", "train_csv": train, "val_csv": test}
    samples = read_split("train", features_path=small_data.videos, **lists)
    content = {
        f"{sample.video_id}_{caption}": [f"{caption} at first", f"{caption} {sample.video_id} later"]
        for sample in samples
        for caption in sample.captions
    }
    path = tmp_path_factory.mktemp("captions") / "frames.json"
    path.write_text(json.dumps(content))
    return path, content


def disco(small_data, output, *flags):
    return training(
        small_data, output, "--method", "discovla", "--lr", "1e-3", "--max_frames", "2", "--epochs", "1", *flags
    )


def test_training_in_parts_equals_training_at_once(small_data, captions, tmp_path):
    flags = ("--frame_captions", str(captions[0]))
    run(disco(small_data, tmp_path / "whole", *flags))
    run(disco(small_data, tmp_path / "parts", *flags, "--gradient_accumulation_steps", "2"))
    whole, parts = (lines_of(tmp_path / name, "train") for name in ("whole", "parts"))
    assert [line["loss"] for line in whole] == pytest.approx([line["loss"] for line in parts], rel=1e-3)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts", atol=2e-4, rtol=1e-3)
    evaluation = [*small_data.flags(), "--method", "discovla", "--max_frames", "2", "--do_eval"]
    run(
        [*evaluation, "--init_model", str(tmp_path / "whole/last.safetensors"), "--output_dir", str(tmp_path / "again")]
    )
    assert lines_of(tmp_path / "again", "test")[0]["t2v R@1"] == lines_of(tmp_path / "whole", "test")[0]["t2v R@1"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--method", "discovla"],
            "--method discovla with these options trains on captions of frames: pass --frame_captions",
        ),
        (["--method", "lora", "--frame_captions", "FILE"], "--frame_captions is not for --method lora"),
        (
            ["--method", "discovla", "--frame_captions", "FILE", "--frame_sampling", "segment"],
            "--frame_captions is of the frames that --frame_sampling uniform takes, not segment",
        ),
        (["--method", "discovla", "--frame_captions", "FILE", "--max_frames", "3"], "has 2 captions for the 3 frames"),
        (
            ["--method", "discovla", "--frame_captions", "FEW", "--max_frames", "2"],
            "has no entry for 1 of the 20 training pairs",
        ),
        (["--method", "lora", "--drop_uncaptioned_pairs"], "--drop_uncaptioned_pairs goes with --frame_captions"),
    ],
)
def test_what_does_not_fit_is_refused(small_data, captions, tmp_path, capsys, flags, message):
    path, content = captions
    few = tmp_path / "few.json"
    few.write_text(json.dumps(dict(list(content.items())[1:])))
    flags = [{"FILE": str(path), "FEW": str(few)}.get(flag, flag) for flag in flags]
    assert main([*training(small_data, tmp_path / "run"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
