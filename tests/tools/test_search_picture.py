"""The command that draws the search page says what it lacks before it draws anything."""

from importlib.util import find_spec

import pytest

from tools import search_picture

CASES = {
    "picture.jpg": (["--output", "picture.jpg"], "--output picture.jpg could not be written: give a name that ends in"),
    "film.mp4": (["--output", "a.png", "--film", "film.mp4"], "--film film.mp4 could not be written"),
    "no checkpoint": (["--output", "a.png"], "nothing.safetensors is no file: pass a checkpoint"),
}


@pytest.mark.parametrize(("flags", "message"), CASES.values(), ids=CASES)
def test_flags_are_checked_first(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert search_picture.main(["nothing.safetensors", *flags]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["playwright", "pillow"])
def test_a_missing_package_is_named(package, tmp_path, monkeypatch, capsys):
    (tmp_path / "model.safetensors").touch()
    missing = {"playwright": "playwright", "pillow": "PIL"}[package]
    monkeypatch.setattr(search_picture, "find_spec", lambda name: None if name == missing else find_spec("json"))
    flags = [str(tmp_path / "model.safetensors"), "--output", f"{tmp_path}/a.png", "--film", f"{tmp_path}/a.webp"]
    assert search_picture.main(flags) == 2
    assert capsys.readouterr().err == f"error: the picture needs {package}: pip install {package}\n"


def test_a_missing_chromium_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setattr(search_picture, "find_spec", lambda name: find_spec("json"))
    monkeypatch.setattr(search_picture, "find_chromium", lambda: None)
    assert search_picture.main([str(tmp_path / "model.safetensors"), "--output", f"{tmp_path}/a.png"]) == 2
    assert "needs a chromium" in capsys.readouterr().err
