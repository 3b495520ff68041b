"""Packing shards: bad videos are counted and listed; bad flags and the folders of others are refused first."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from dataloaders.shard_index import INDEX, member_table, read_index
from preprocess.make_shards import main
from preprocess.shard_folder import ShardWriter, shuffled
from tests.preprocess.packing import SMALL, VIDEOS, content, error_of, pack, packed, write_clips
from tests.videos import grey_ramp, write_video


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder of clips and their list; tests change none of it."""
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory) -> dict[str, bytes]:
    return packed(world, tmp_path_factory.mktemp("made") / "out")


@pytest.fixture
def spoilt(world, tmp_path) -> Path:
    """Write the clips with one missing, and one that is no video."""
    folder = tmp_path / "spoilt"
    (folder / "v").mkdir(parents=True)
    for path in (world / "v").iterdir():
        (folder / "v" / path.name).write_bytes(path.read_bytes())
    (folder / "list.csv").write_bytes((world / "list.csv").read_bytes())
    (folder / "v/2.mp4").unlink()
    (folder / "v/5.mp4").write_text("no video")
    return folder


def test_videos_that_fail_are_bounded_and_listed(spoilt, tmp_path, capsys, undisturbed):
    output = tmp_path / "out"
    assert pack(spoilt, output) == 1
    error_of(capsys, "2.mp4 is missing", f"1 of {VIDEOS} videos cannot be used", "--allow_missing is 0", "failed.csv")
    assert [path.name for path in output.iterdir()] == ["failed.csv"]
    assert pack(spoilt, output, "--allow_missing", "1") == 1
    error_of(capsys, "2.mp4", f"2 of {VIDEOS} videos")
    assert not (output / INDEX).exists()
    assert pack(spoilt, output, "--allow_missing", "2") == 0
    rows = (output / "failed.csv").read_text().splitlines()
    assert rows[0] == "video_id,path,reason"
    assert [row.partition(",")[0] for row in rows[1:]] == ["2.mp4", "5.mp4"]
    index = read_index(output)
    assert index.samples == VIDEOS - 2
    keys = [sample.key for shard in index.shards for sample in member_table(output / shard.file, shard)]
    order = shuffled(VIDEOS, 0)  # the others stay where they were
    assert keys == [f"{place:09d}" for place in range(VIDEOS) if order[place] not in (2, 5)]
    assert pack(spoilt, output) == 1  # the limit holds for finished shards too
    assert not list(output.glob(".*.partial"))


def test_a_shard_without_samples_is_not_in_the_index(spoilt, tmp_path):
    order = shuffled(VIDEOS, 0)
    for row in order[3:6]:
        (spoilt / "v" / f"{row}.mp4").unlink(missing_ok=True)
    for row in (*order[:3], order[6]):
        write_video(spoilt / "v" / f"{row}.mp4", grey_ramp(2, 16, 24))
    assert pack(spoilt, tmp_path / "out", "--allow_missing", "3") == 0
    assert [shard.file for shard in read_index(tmp_path / "out").shards] == ["000000.tar", "000002.tar"]
    assert pack(spoilt, tmp_path / "out", "--allow_missing", "3") == 0


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (("--fps", "2"), "fps"),
        (("--store", "jpeg"), "store"),
        (("--seed", "1"), "seed"),
        (("--samples_per_shard", "4"), "samples_per_shard"),
        (("--crf", "30"), "crf"),
    ],
)
def test_other_settings_in_the_same_folder(world, tmp_path, undisturbed, capsys, flags, part):
    output = tmp_path / "out"
    output.mkdir()
    (output / "settings.json").write_bytes(undisturbed["settings.json"])
    usual = SMALL[:-2] if "jpeg" in flags else SMALL
    given = ("--train_csv", str(world / "list.csv"), "--features_path", str(world / "v"), "--output_dir", str(output))
    assert main([*given, *usual, *flags]) == 2
    error_of(capsys, "was begun with", part)
    assert len(content(output)) == 1


def test_another_list_in_the_same_folder(world, tmp_path, undisturbed, capsys):
    (tmp_path / "settings.json").write_bytes(undisturbed["settings.json"])
    changed = (world / "list.csv").read_text(encoding="utf-8").replace("again", "another text")
    (tmp_path / "list.csv").write_text(changed, encoding="utf-8")
    assert pack(world, tmp_path, "--train_csv", str(tmp_path / "list.csv")) == 2
    error_of(capsys, "list_sha256")


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (("--jpeg_quality", "90"), "--jpeg_quality has no effect with --store h264"),
        (("--jobs", "0"), "--jobs"),
        (("--allow_missing", "-1"), "--allow_missing"),
        (("--shard_bytes", "1e6"), "exclude each other"),
        (("--shard_bytes", "nan"), "--shard_bytes must be a finite number, not nan"),
        (("--shard_bytes", "inf"), "--shard_bytes must be a finite number, not inf"),
        (("--shard", "2/2"), "--shard"),
        (("--datatype", "webvid2"), "--datatype"),
        (("--datatype", "msrvtt"), "--data_path"),
        (("--fps", "0"), "--fps"),
        (("--features_path", "/none"), "--features_path"),
    ],
)
def test_wrong_flags(world, tmp_path, capsys, flags, part):
    assert pack(world, tmp_path / "out", *flags) == 2
    error_of(capsys, part)
    assert not (tmp_path / "out").exists()


def test_folders_of_others(world, tmp_path, capsys):
    (tmp_path / "a.tar").touch()
    assert pack(world, tmp_path) == 2
    error_of(capsys, "has not made")
    assert pack(world, tmp_path / "a.tar") == 2
    error_of(capsys, "is a file")
    assert pack(world, tmp_path / "a.tar" / "out") == 2
    error_of(capsys, "a.tar is a file and not a folder")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.json").write_text('{"frames": 12}')
    assert pack(world, tmp_path / "run") == 2
    error_of(capsys, "run/settings.json is not what this command writes")


@pytest.mark.parametrize("what", ["verify", "index"])
def test_flags_of_making_are_refused_elsewhere(tmp_path, capsys, what):
    assert main([f"--{what}", str(tmp_path), "--jobs", "2", "--crf", "20"]) == 2
    error_of(capsys, f"--crf has no effect with --{what}")


def test_a_failed_csv_of_others_stays(world, tmp_path, capsys):
    """This command removes its own when nothing fails."""
    theirs = tmp_path / "failed.csv"
    theirs.write_text("job,host\n1,a\n")
    assert pack(world, tmp_path) == 2
    error_of(capsys, "failed.csv that this command has not written", "move it")
    assert theirs.read_text() == "job,host\n1,a\n"
    assert [path.name for path in tmp_path.iterdir()] == ["failed.csv"]
    theirs.write_text("video_id,path,reason\n1,a,b\n")
    assert pack(world, tmp_path) == 0
    assert not theirs.exists()


def test_a_second_run_beside_the_first_is_refused(world, tmp_path, capsys, undisturbed, monkeypatch):
    """It starts while the first one writes its second shard, and leaves that alone."""
    add, codes = ShardWriter.add, []

    def add_and_start_another(self, place, clip):
        if len(list(tmp_path.glob("*.tar"))) == 1 and not codes:
            monkeypatch.setattr(ShardWriter, "add", add)
            codes.append(pack(world, tmp_path))
            error_of(capsys, "another process is writing 000001.tar", "wait for it to end", "--shard 0/2")
        add(self, place, clip)

    monkeypatch.setattr(ShardWriter, "add", add_and_start_another)
    assert pack(world, tmp_path) == 0
    assert codes == [2]
    assert content(tmp_path) == undisturbed


def test_no_room(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("preprocess.make_shards.shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    assert pack(world, tmp_path / "out") == 2
    error_of(capsys, "no room")
    assert not (tmp_path / "out").exists()


def test_whole_files_cannot_be_cut(world, tmp_path, capsys):
    (tmp_path / "list.csv").write_text("path,caption,start,end\n6.mp4,a,0.5,2\n")
    given = ["--train_csv", str(tmp_path / "list.csv"), "--features_path", str(world / "v"), "--output_dir"]
    assert main([*given, str(tmp_path / "out"), "--store", "original"]) == 2
    error_of(capsys, "--store original", "0.5 s")
    assert main([*given, str(tmp_path / "out"), "--store", "jpeg"]) == 0
    (sample,) = member_table(tmp_path / "out/000000.tar")
    assert len(sample.frames) == 4
