"""What all data sets have in common."""

from dataclasses import fields

import pytest

from dataloaders import DATASETS, NEEDED_FLAGS
from engine.config import DataConfig


@pytest.mark.parametrize("name", DATASETS)
def test_a_data_set_needs_flags_that_exist(name):
    for_the_test, for_training = NEEDED_FLAGS[name]
    assert {*for_the_test, *for_training} <= {item.name for item in fields(DataConfig)}
    assert "features_path" in for_the_test


def test_no_needs_of_an_unknown_data_set():
    assert NEEDED_FLAGS.keys() == DATASETS.keys()
