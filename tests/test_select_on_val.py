"""--select_on val: a broken validation video is found before training starts."""

import csv

from main_task_retrieval import main
from tests.small_data import write_small_data


def test_a_broken_validation_video_is_refused_before_anything_is_written(tmp_path, capsys):
    data = write_small_data(tmp_path / "data", n_train=4, n_test=4)
    broken = data.videos / "video5.mp4"
    broken.write_bytes(broken.read_bytes()[:900])
    listed = tmp_path / "list.csv"
    with open(listed, "w", newline="") as file:
        rows = [[f"video{n}.mp4", f"film {n}", split] for n, split in enumerate(["train"] * 4 + ["val"] * 2 + ["test"])]
        csv.writer(file).writerows([["path", "caption", "split"], *rows])
    flags = ["--datatype", "custom", "--train_csv", str(listed), "--val_csv", str(listed), "--select_on", "val"]
    output = tmp_path / "run"
    small = ["--epochs", "1", "--batch_size", "2", "--method", "vpt", "--output_dir", str(output)]
    assert main(["--do_train", *data.flags(), *flags, *small]) == 2
    assert f"error: {broken}" in capsys.readouterr().err
    assert not output.exists()
