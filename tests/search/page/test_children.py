"""A child that hangs, crashes or takes all memory costs one call."""

import os
import signal
import threading
import time

import pytest

from dataloaders.video_file import VideoError
from search.page.children import Children


def double(number):
    return 2 * number, os.getpid()


def hang():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)


def fill_memory():
    return len(bytearray(1 << 36))


def fail():
    raise VideoError("a.mp4 is no video")


def break_down():
    raise RuntimeError("x" * 1000)


@pytest.fixture(scope="module")
def children():
    with Children(1, 4.0) as made:
        made.run(double, 1)  # the first child waits until the fork server has imported what it needs
        yield made


def test_a_call_returns_and_children_are_used_again(children):
    (four, pid), (six, same) = children.run(double, 2), children.run(double, number=3)
    assert (four, six) == (4, 6)
    assert pid == same != os.getpid()


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (hang, "took more than 4 s"),
        (crash, "crashed its decoder .SIGSEGV"),
        (fill_memory, "more memory"),
        (fail, "a.mp4 is no video"),
        (break_down, "cannot be read .RuntimeError: x+"),
    ],
)
def test_what_goes_wrong_is_one_sentence(children, function, said):
    with pytest.raises(ValueError, match=said) as raised:
        children.run(function)
    assert len(str(raised.value)) < 400
    assert children.run(double, 4)[0] == 8


def test_closing_ends_a_call():
    children = Children(1, 100.0)
    errors = []

    def call():
        try:
            children.run(hang)
        except ValueError as error:
            errors.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    while not children._busy:
        time.sleep(0.01)
    children.close()
    thread.join(20)
    assert errors
    with pytest.raises(ValueError, match="ending"):
        children.run(double, 1)
