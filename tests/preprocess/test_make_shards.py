"""Packing shards: webdataset reads them; whatever interrupts a run, the same bytes come out; damage is found."""

import hashlib
import io
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dataloaders.shard_index import INDEX, member_table, read_index
from preprocess import make_shards, shard_folder
from preprocess.make_shards import in_order, main
from preprocess.shard_folder import Deal, ShardWriter, shuffled
from tests.preprocess.packing import SMALL, VIDEOS, content, error_of, pack, packed, write_clips
from tests.videos import grey_ramp, write_video


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder of clips and their list; tests change none of it."""
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory) -> dict[str, bytes]:
    return packed(world, tmp_path_factory.mktemp("made") / "out")


# ---- what comes out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["h264", "jpeg", "original"])
def test_webdataset_reads_what_is_written(world, tmp_path, store):
    wds = pytest.importorskip("webdataset")
    flags = ("--samples_per_shard", "3") if store == "original" else SMALL[:-2]
    given = ("--train_csv", str(world / "list.csv"), "--features_path", str(world / "v"), "--output_dir", str(tmp_path))
    assert main([*given, "--store", store, *flags]) == 0
    tars = [str(tmp_path / shard.file) for shard in read_index(tmp_path).shards]
    samples = list(wds.WebDataset(tars, shardshuffle=False))
    assert len(tars) == 3
    assert [sample["__key__"] for sample in samples] == [f"{place:09d}" for place in range(VIDEOS)]
    texts = [json.loads(sample["json"]) for sample in samples]
    assert {text["video_id"]: text["captions"] for text in texts} == {
        f"{number}.mp4": [f"clip {number} é", *(["again"] if number == 0 else [])] for number in range(VIDEOS)
    }
    for sample, text in zip(samples, texts, strict=True):
        assert text["fps"] == 3
        frames = [name for name in sample if name.endswith(".jpg")]
        if store == "jpeg":
            assert frames == [f"{number:03d}.jpg" for number in range(2 + int(text["video_id"][0]))]
        else:
            assert not frames
            assert sample["mp4"][4:8] == b"ftyp"
        if store == "original":
            assert sample["mp4"] == (world / "v" / text["video_id"]).read_bytes()


def test_a_tar_is_that_of_webdataset(world, undisturbed, tmp_path):
    wds = pytest.importorskip("webdataset")
    ours = tmp_path / "000000.tar"
    ours.write_bytes(undisturbed["000000.tar"])
    with tarfile.open(ours) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    theirs = io.BytesIO()
    with wds.TarWriter(theirs, user="", group="", mode=0o644, mtime=0, encoder=False) as writer:
        for key in dict.fromkeys(name.partition(".")[0] for name in members):
            named = {name.partition(".")[2]: value for name, value in members.items() if name.startswith(key)}
            writer.write({"__key__": key, **named})
    assert theirs.getvalue() == undisturbed["000000.tar"]


def test_index_and_checksums(undisturbed):
    index = json.loads(undisturbed[INDEX])
    assert [(shard["file"], shard["samples"]) for shard in index["shards"]] == [
        ("000000.tar", 3), ("000001.tar", 3), ("000002.tar", 1),
    ]  # fmt: skip
    for shard in index["shards"]:
        assert shard["bytes"] == len(undisturbed[shard["file"]])
        assert shard["sha256"] == hashlib.sha256(undisturbed[shard["file"]]).hexdigest()
    assert index["settings"] == json.loads(undisturbed["settings.json"])
    assert {"store", "fps", "short_side", "seed", "decoder"} <= index["settings"].keys()


def test_the_order_depends_on_the_seed_and_the_count():
    assert shuffled(10, 0) == [1, 0, 4, 3, 5, 2, 8, 9, 7, 6]  # for all times: a job may go on with other libraries
    assert sorted(shuffled(1000, 3)) == list(range(1000))
    assert shuffled(1000, 3) != shuffled(1000, 4)
    deal = Deal(shuffled(10, 1), 4)
    assert [list(deal.of_shard(shard)) for shard in range(deal.shards)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


# ---- interruptions, processes, threads ------------------------------------------------------------------------------


def killed(world: Path, output: Path, arm: Callable[[pytest.MonkeyPatch], None]) -> None:
    """Pack in another process, which `arm` lets end itself by SIGKILL."""

    def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            arm(patch)
            pack(world, output)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def dies_at(owner: object, name: str, count: int, after: bool) -> Callable[[pytest.MonkeyPatch], None]:
    """Return what lets a process die before or after the `count`-th call of a function."""

    def arm(patch: pytest.MonkeyPatch) -> None:
        function, calls = getattr(owner, name), iter(range(1, 1000))

        def wrapped(*arguments, **named):
            last = next(calls) == count
            if last and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            found = function(*arguments, **named)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        patch.setattr(owner, name, wrapped)

    return arm


@pytest.mark.parametrize(
    ("owner", "name", "count", "after", "finished"),
    [
        (shard_folder, "write_whole", 1, True, 0),  # the settings are written
        (ShardWriter, "add", 5, False, 1),  # in the middle of the second shard
        (ShardWriter, "finish", 2, False, 1),
        (shard_folder, "write_whole", 3, False, 1),  # the second tar is there, its record is not
        (ShardWriter, "finish", 3, True, 3),  # everything is there but the index
        (make_shards, "finish", 1, False, 3),
    ],
)
def test_a_killed_run_goes_on(world, tmp_path, undisturbed, owner, name, count, after, finished):
    killed(world, tmp_path, dies_at(owner, name, count, after))
    records = list((tmp_path / ".done").glob("*.json"))
    assert len(records) == finished
    assert not (tmp_path / INDEX).exists()
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    assert pack(world, tmp_path) == 0
    assert content(tmp_path) == undisturbed
    for record in records:
        tar = f"{record.stem}.tar"
        assert (tmp_path / tar).stat().st_mtime_ns == before[tar]


@pytest.mark.slow
def test_killed_again_and_again(world, tmp_path):
    """End the command by SIGKILL after a time that grows, with several threads, until it comes to its end."""
    (tmp_path / "v").mkdir()
    lines = ["path,caption,start,end"]
    for number in range(40):
        write_video(tmp_path / "v" / f"{number}.mp4", grey_ramp(50, 64, 96), fps=5)
        lines += [f"{number}.mp4,clip {number},,", f"{number}.mp4,part {number},1,6.5"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    program = str(Path(make_shards.__file__))
    command = [
        sys.executable,
        program,
        "--train_csv",
        str(tmp_path / "list.csv"),
        "--features_path",
        str(tmp_path / "v"),
    ]
    command += ["--samples_per_shard", "4", "--jobs", "3", "--output_dir"]
    subprocess.run([*command, str(tmp_path / "undisturbed")], check=True)
    kills, wait = 0, 1.0
    while not (tmp_path / "killed" / INDEX).exists():
        process = subprocess.Popen([*command, str(tmp_path / "killed")])
        try:
            assert process.wait(wait) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills, wait = kills + 1, wait * 1.3
    assert kills > 2
    assert content(tmp_path / "killed") == content(tmp_path / "undisturbed")


def test_a_full_disk(world, tmp_path):
    """A limit on the size of files stands in for the disk."""

    def run() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        os._exit(pack(world, tmp_path / "out"))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["settings.json"]


def test_threads_and_shares_give_the_same_bytes(world, tmp_path, undisturbed):
    assert pack(world, tmp_path / "threads", "--jobs", "3") == 0
    assert content(tmp_path / "threads") == undisturbed
    assert pack(world, tmp_path / "shares", "--shard", "1/2") == 0
    assert not (tmp_path / "shares" / INDEX).exists()
    assert pack(world, tmp_path / "shares", "--shard", "0/2") == 0
    assert content(tmp_path / "shares") == undisturbed


def test_a_second_run_does_nothing(world, tmp_path, undisturbed, monkeypatch):
    assert pack(world, tmp_path) == 0
    monkeypatch.setattr(make_shards, "store_clip", None)
    assert pack(world, tmp_path) == 0
    (tmp_path / "000001.tar").unlink()
    monkeypatch.undo()
    assert pack(world, tmp_path) == 0  # a shard whose tar is gone is made again
    assert content(tmp_path) == undisturbed


def test_results_come_in_order_and_few_wait():
    begun: list[int] = []
    taken = []
    for item, result in in_order(lambda n: begun.append(n) or -n, iter(range(30)), 2):
        taken.append(item)
        assert result == -item
        assert len(begun) <= len(taken) + 4
    assert taken == list(range(30))


def test_shards_of_about_so_many_bytes(world, tmp_path):
    flags = [flag for flag in SMALL if flag not in ("--samples_per_shard", "3")]
    given = ["--train_csv", str(world / "list.csv"), "--features_path", str(world / "v"), "--output_dir", str(tmp_path)]
    assert main([*given, *flags, "--shard_bytes", "8e3"]) == 0
    per_shard = json.loads((tmp_path / "settings.json").read_text())["samples_per_shard"]
    shards = read_index(tmp_path).shards
    assert len(shards) > 1
    assert {shard.samples for shard in shards[:-1]} == {per_shard}
    assert main([*given, *flags, "--shard_bytes", "8e3"]) == 0


# ---- shards that are there ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["none", "byte", "cut", "missing", "swapped"])
def test_verify(tmp_path, undisturbed, capsys, damage):
    for name in ("000000.tar", "000001.tar", "000002.tar", INDEX):
        (tmp_path / name).write_bytes(undisturbed[name])
    tar, raw = tmp_path / "000001.tar", bytearray(undisturbed["000001.tar"])
    if damage == "byte":
        clip = member_table(tar)[0].video
        assert clip is not None
        raw[clip.offset + 100] ^= 1
        tar.write_bytes(raw)
    elif damage == "cut":
        tar.write_bytes(raw[:-3000])
    elif damage == "missing":
        tar.unlink()
    elif damage == "swapped":
        tar.write_bytes(undisturbed["000000.tar"])
    assert main(["--verify", str(tmp_path), "--jobs", "2"]) == int(damage != "none")
    told = capsys.readouterr()
    assert ("2 of 3 shards" if damage != "none" else "3 of 3 shards") in told.out
    assert ("000001.tar" in told.err) == (damage != "none")


def test_an_index_for_shards_of_others(tmp_path, undisturbed, capsys):
    folder = tmp_path / "theirs"
    (folder / "b").mkdir(parents=True)
    (folder / "b/x.tar").write_bytes(undisturbed["000000.tar"])
    (folder / "a.tar").write_bytes(undisturbed["000002.tar"])
    assert main(["--index", str(folder)]) == 0
    assert [(shard.file, shard.samples) for shard in read_index(folder).shards] == [("a.tar", 1), ("b/x.tar", 3)]
    assert main(["--verify", str(folder)]) == 0
    capsys.readouterr()
    assert main(["--index", str(folder)]) == 2
    error_of(capsys, "has an index")
    assert main(["--index", str(tmp_path / "none")]) == 2
    assert main(["--verify", str(tmp_path)]) == 2
