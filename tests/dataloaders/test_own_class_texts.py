"""The YAML files of this project: they read, have the official classes in their order, and fit CLIP."""

import csv
from pathlib import Path

import pytest

from dataloaders.action_classes import CLASS_LISTS
from dataloaders.class_clauses import read_clauses, read_graph, read_label_file
from dataloaders.classes import check_order, match_keys
from dataloaders.prompt_lists import prompt_lists
from modules.clip_weights import load_clip
from modules.tokenizer import LONGEST_TEXT, Tokenizer
from preprocess.make_moving_actions import KEYS

ROOT = Path(__file__).parents[2]
DATA_SETS = ("ucf101", "hmdb51", "moving_actions")


def texts_of(data_set: str):
    """Return the texts of all classes, read as preprocess/text_features.py does."""
    labels = read_label_file(CLASS_LISTS / f"{data_set}_labels.yaml")
    graph = CLASS_LISTS / f"{data_set}_graph.yaml"
    graphs = read_graph(graph, labels.classes)[1] if graph.exists() else None
    _, clauses = read_clauses(CLASS_LISTS / f"{data_set}_clauses.yaml", labels.classes, graphs=graphs)
    for name, own in zip(labels.classes, clauses, strict=True):
        count = len({clause for clauses_of in own.values() for clause in clauses_of})
        assert 3 <= count <= 5, name
    return prompt_lists(labels.classes, clauses, labels.templates)


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_they_read_and_fit(data_set):
    tokenizer = Tokenizer()
    texts = texts_of(data_set).texts
    assert max(len(tokenizer.words(text)) for own in texts for text in own) + 2 <= LONGEST_TEXT
    assert len(set(texts)) == len(texts)
    assert len(texts[0]) % 8 == 0


def test_the_small_clip_knows_every_word_of_its_world():
    """It has zeros for the tokens that no caption of its training had."""
    clip = load_clip(ROOT / "pretrained" / "moving_shapes_clip.safetensors")
    tokenizer = Tokenizer(clip.text.context_length)
    known = clip.text.token_embedding.weight.abs().sum(dim=1) > 0
    for own in texts_of("moving_actions").texts:
        for text in own:
            words = tokenizer.words(text)
            assert len(words) + 2 <= clip.text.context_length, text
            assert known[words].all(), text


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_the_official_classes(data_set, request):
    path = CLASS_LISTS / f"{data_set}_labels.yaml"
    names = read_label_file(path).classes
    if data_set == "moving_actions":
        keys = KEYS
    elif data_set == "ucf101":
        lists = request.getfixturevalue("reference") / "data" / "recognition" / "ucf101"
        keys = tuple(line.split()[1] for line in (lists / "classInd.txt").read_text().splitlines() if line)
    else:
        lists = request.getfixturevalue("reference") / "data" / "recognition" / "hmdb51"
        with open(lists / "hmdb51_labels_right.csv", newline="") as file:
            keys = tuple(row["name"] for row in csv.DictReader(file))
    assert len(keys) == len(names)
    check_order(match_keys(names, keys, path), keys, path)
