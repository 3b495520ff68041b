"""Few shots, parts of the classes, groups held out, and lists that leak."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataloaders.classes import Classes
from dataloaders.protocols import check_protocol, chosen_classes, few_shot, half_draw, hold_out_groups
from dataloaders.samples import Sample
from tests.dataloaders.folders import assert_one_sentence, write_lines

KEYS = ("brush_hair", "kick", "kick_ball", "sword")
CLASSES = Classes(KEYS, KEYS, {"kick": "sword", "sword": "kick"}, {"kick": "kick_ball", "kick_ball": "kick"}, KEYS[1:3])


def sample(name: str, label: str, group: str = "") -> Sample:
    return Sample(name, Path(f"{name}.avi"), (), listed_in=Path("list.txt"), label=label, group=group)


def samples_of(per_class: int, clips_of_a_group: int = 1) -> list[Sample]:
    return [sample(f"{key}{n}", key, f"{key} g{n // clips_of_a_group}") for key in KEYS for n in range(per_class)]


# ---- few shots ----


@given(st.integers(1, 6), st.integers(0, 2**32 - 1), st.permutations(range(24)))
def test_shots_of_each_class_whatever_the_order_of_the_list(shots, seed, order):
    samples = samples_of(6)
    drawn = few_shot(samples, shots, seed)
    assert Counter(one.label for one in drawn) == dict.fromkeys(KEYS, shots)
    shuffled = [samples[row] for row in order]
    again = few_shot(shuffled, shots, seed)
    assert {one.video_id for one in again} == {one.video_id for one in drawn}
    assert again == [one for one in shuffled if one in again]
    if shots > 1:
        assert set(few_shot(samples, shots - 1, seed)) < set(drawn)
    # Other classes beside it change nothing of a class.
    alone = few_shot([one for one in samples if one.label == "kick"], shots, seed)
    assert alone == [one for one in drawn if one.label == "kick"]


def test_seeds_and_classes_draw_apart():
    samples = samples_of(40)
    draws = [few_shot(samples, 2, seed) for seed in range(50)]
    assert len({tuple(draw) for draw in draws}) == 50
    places = [[int(one.video_id.removeprefix(one.label)) for one in draws[0] if one.label == key] for key in KEYS]
    assert len({tuple(place) for place in places}) == len(KEYS)
    counts = Counter(one.video_id for seed in range(400) for one in few_shot(samples, 2, seed))
    assert len(counts) == len(samples)
    assert max(counts.values()) < 50  # each is drawn 20 times on average


def test_a_class_whose_folder_has_a_name_that_is_no_text():
    samples = [sample(f"{n}", "caf\udce9") for n in range(4)]
    assert len(few_shot(samples, 2, 0)) == 2


def test_parts_of_one_file_are_separate_shots():
    parts = [replace(sample("a", "kick"), start=float(n), end=n + 1.0) for n in range(5)]
    assert len(few_shot(parts, 2, 0)) == 2


def test_too_few_for_the_shots():
    samples = [*samples_of(3)[:-2], sample("x", "kick")]
    assert_one_sentence(lambda: few_shot(samples, 3, 0), ValueError, "--shots 3", "the class sword has 1 training")
    assert_one_sentence(lambda: few_shot(samples, 4, 0), ValueError, "2 others have too few")
    assert_one_sentence(lambda: few_shot(samples_of(3), 2, 0, (*KEYS, "juggle")), ValueError, "juggle has 0 training")


# ---- parts of the classes ----


def test_parts_begin_at_0_again(tmp_path):
    base, novel = chosen_classes(CLASSES, "base"), chosen_classes(CLASSES, "novel")
    assert (base.keys, novel.keys) == (("kick", "kick_ball"), ("brush_hair", "sword"))
    assert novel.ids([sample("a", "sword")]).tolist() == [1]
    assert base.reversed == CLASSES.reversed
    assert not novel.reversed
    # A mirrored "kick" is a "sword", which is not there any more.
    assert base.mirrored == {"kick": "sword"}
    assert chosen_classes(CLASSES, "all") is CLASSES
    write_lines(tmp_path / "some.txt", ["Sword", "kick ball", "sword"])
    assert chosen_classes(CLASSES, str(tmp_path / "some.txt")).keys == ("kick_ball", "sword")
    write_lines(tmp_path / "some.csv", ["id,name", "0,sword", "1,kick ball"])  # the ids do not count
    assert chosen_classes(CLASSES, str(tmp_path / "some.csv")).keys == ("kick_ball", "sword")
    assert chosen_classes(CLASSES, "half:0").keys == tuple(half_draw(KEYS, 0))


def test_parts_that_are_not_there(tmp_path):
    unknown = replace(CLASSES, base=())
    assert_one_sentence(lambda: chosen_classes(unknown, "novel"), ValueError, "--classes novel", "not published")
    write_lines(tmp_path / "some.txt", ["kick", "juggling"])
    assert_one_sentence(lambda: chosen_classes(CLASSES, str(tmp_path / "some.txt")), ValueError, "some.txt", "juggling")
    assert_one_sentence(lambda: chosen_classes(CLASSES, str(tmp_path / "no.txt")), FileNotFoundError, "no.txt")
    for part in ("", "half:", "x" * 300):
        assert_one_sentence(lambda part=part: chosen_classes(CLASSES, part), FileNotFoundError, "pass all, base, novel")


def test_half_draws_are_the_published_ones(reference):
    drawn = json.loads((reference / "data/recognition/zero_shot/half_class_draws.json").read_text())
    checked = 0
    for name, content in drawn.items():
        size = {"hmdb51": 51, "ucf101": 101}.get(name)
        if size is None:
            continue
        for number, ids in content.items() if isinstance(content, dict) else enumerate(content):
            assert half_draw([str(n) for n in range(size)], int(number)) == [str(n) for n in ids]
            checked += 1
    assert checked == 20


# ---- held-out groups ----


@pytest.mark.parametrize("count", [1, 5, 12])
def test_groups_stay_together(count):
    samples = samples_of(6, clips_of_a_group=2)
    training, held = hold_out_groups(samples, count, seed=3)
    assert count <= len(held) <= count + 1
    assert not {one.group for one in training} & {one.group for one in held}
    assert sorted([*training, *held], key=samples.index) == samples
    assert {one.label for one in training} == set(KEYS)
    again = hold_out_groups(samples[::-1], count, seed=3)
    assert set(again[1]) == set(held)


def test_a_class_keeps_a_group():
    samples = samples_of(6, clips_of_a_group=3)  # two groups a class
    assert len(hold_out_groups(samples, 12, 0)[1]) == 12
    assert_one_sentence(lambda: hold_out_groups(samples, 13, 0), ValueError, "--holdout_videos 13", "only 12")


def test_videos_without_a_group_are_drawn_one_by_one():
    samples = [replace(one, group="") for one in samples_of(5)]
    assert len(hold_out_groups(samples, 7, 0)[1]) == 7


# ---- checks ----


def test_lists_that_leak_or_do_not_fit(caplog):
    training = samples_of(4, clips_of_a_group=2)
    test = [sample(f"test{key}", key, f"{key} g9") for key in KEYS]
    check_protocol(training, test, CLASSES)
    for wrong, said in [
        ([*test, training[5]], "1 of the 5 test videos are also training videos"),
        ([*test, sample("new", "kick", "kick g1")], "are of a group with training videos"),
        ([*test, sample("new", "juggling")], "none of the 4 classes"),
    ]:
        assert_one_sentence(lambda: check_protocol(training, wrong, CLASSES), ValueError, said)  # noqa: B023
    assert_one_sentence(
        lambda: check_protocol(training, test, replace(CLASSES, names=KEYS[:3])), ValueError, "4 classes with 3 names"
    )
    with caplog.at_level("INFO", logger="stop"):
        check_protocol(training[4:], test, CLASSES)
    assert "1 of the 4 classes have no training video: brush_hair" in caplog.text
    # Groups of one number in two classes are two groups; no group is not a group.
    check_protocol([sample("a", "kick")], [sample("b", "kick")], replace(CLASSES))


def test_draws_have_nothing_to_do_with_numpys_global_state():
    np.random.seed(0)
    first = half_draw(KEYS, 1)
    np.random.seed(1)
    assert half_draw(KEYS, 1) == first
