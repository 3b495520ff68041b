"""Class texts: names in templates, and classes that read alike."""

import logging

import pytest

from engine.config import Config
from engine.tasks.class_texts import check_texts, read_templates
from engine.tasks.recognition import RecognitionSettings, class_texts
from modules.tokenizer import Tokenizer

DEFAULT = ("a video of a person {}.",)


def test_names_in_templates():
    found = class_texts(["brush hair", "kick ball"], ["a video of a person {}.", "{}"])
    assert found == [
        ["a video of a person brush hair.", "brush hair"],
        ["a video of a person kick ball.", "kick ball"],
    ]


@pytest.mark.parametrize("name", ["{0}", "{}", "%s", "50% {off}", "a\\b", "[x] # ; & -y"])
def test_a_name_is_taken_as_it_is(name):
    assert class_texts([name], ["<{}>"]) == [[f"<{name}>"]]


@pytest.mark.parametrize("template", ["no place", "{} and {}", "{name}", ""])
def test_a_template_has_one_place(template):
    with pytest.raises(ValueError, match=r"has \d times \{\}: write \{\} once"):
        class_texts(["run"], [template])


@pytest.mark.parametrize(("names", "templates"), [([], DEFAULT), (["run"], [])])
def test_nothing_to_write(names, templates):
    with pytest.raises(ValueError, match="class texts need a name and a template"):
        class_texts(names, templates)


def test_templates_from_a_text_or_a_file(tmp_path):
    path = tmp_path / "templates.txt"
    path.write_bytes(b"\xef\xbb\xbfa photo of {}.\r\n\r\n  {}: the action  \n")
    assert read_templates("", DEFAULT) == DEFAULT
    assert read_templates("someone {}", DEFAULT) == ("someone {}",)
    assert read_templates(str(path), DEFAULT) == ("a photo of {}.", "{}: the action")


def test_templates_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match=r"--templates 'a person' is no file, and has no \{\}"):
        read_templates("a person", DEFAULT)
    with pytest.raises(ValueError, match=r"is no file, and has no \{\}"):
        read_templates("a person " * 40, DEFAULT)  # longer than a file's name can be
    for name, content, message in (
        ("empty.txt", b"\n \n", "has no line"),
        ("odd.txt", b"\xff\xfe{}\n", "is no text file"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_templates(str(tmp_path / name), DEFAULT)


def check(names: list[str], templates: list[str], max_words: int) -> None:
    check_texts(names, class_texts(names, templates), Tokenizer(max_words), max_words)


def test_classes_that_read_alike_are_refused():
    check(["pull to the left", "pull to the right"], ["a video of a person {}."], 16)
    with pytest.raises(ValueError, match="classes read alike at --max_words 8") as error:
        check(["pull to the left", "pull to the right", "run"], ["a video of {}"], 8)
    assert "pull to the left = pull to the right" in str(error.value)
    check(["pull to the left", "pull to the right"], ["a video of a person {}", "{}"], 8)  # the second tells them apart
    with pytest.raises(ValueError, match="Run = run"):
        check(["Run", "run"], ["{}"], 16)  # CLIP reads small letters


def test_numbers_are_no_names():
    """As in a list with numbers as labels; 4 and 50 are names beside others."""
    with pytest.raises(ValueError, match="only called 0, 1, which"):
        check(["0", "1"], ["{}"], 16)
    check(["4", "50", "run"], ["{}"], 16)


def test_cut_texts_are_counted_in_the_log(caplog):
    with caplog.at_level(logging.INFO, "stop"):
        logging.getLogger("stop").propagate = True
        check(["run", "a b c d e f g h"], ["{}"], 6)
    assert "2 texts of 2 classes, such as 'run'; 1 lose words at --max_words 6 (the longest has 10)" in caplog.text


REAL = {
    "hmdb51": ({"labels_csv": "hmdb51/label_map.txt"}, 51, "a video of a person brush hair."),
    "ucf101": ({"data_path": "ucf101"}, 101, "a video of a person apply eye makeup."),
    "ssv2": ({"data_path": "ssv2"}, 174, "Approaching something with your camera"),
    "kinetics400": ({"labels_csv": "kinetics/label_map_400.txt"}, 400, "a video of a person abseiling."),
    "kinetics600": ({"labels_csv": "kinetics/label_map_600.txt"}, 600, "abseiling"),
}


@pytest.mark.parametrize("datatype", REAL)
def test_the_texts_of_real_classes_differ_at_the_default_length(reference, datatype):
    """Check also the sizes of the published halves."""
    files, count, first = REAL[datatype]
    folder = reference / "data" / "recognition"
    settings = {"describe": True, "datatype": datatype} | {name: str(folder / file) for name, file in files.items()}
    config = Config.from_flat(settings, RecognitionSettings)
    classes = config.task.chosen_classes(config.data)
    texts = class_texts(classes.names, config.task.class_templates())
    assert (len(texts), texts[0][0]) == (count, first)
    check_texts(classes.names, texts, Tokenizer(32), 32)
    if datatype != "kinetics600":
        halves = [len(config.task.chosen_classes(config.data, part)) for part in ("base", "novel")]
        assert halves == [(count + 1) // 2, count // 2]
