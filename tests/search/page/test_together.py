"""Questions of several threads are answered in one call, and nobody waits for a call that does not concern them."""

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from search.page.together import Together


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def begin(function, *arguments) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    return thread


def until(condition) -> None:
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    pytest.fail("it did not happen within 10 s")


class Doubler:
    """Doubles numbers, holds the first call until `go` is set, and notes what came together."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.answers: dict[int, object] = {}
        self.go = threading.Event()

    def __call__(self, numbers: list[int]) -> list[int]:
        self.calls.append(numbers)
        assert self.go.wait(10)
        if -1 in numbers:
            raise ValueError("negative")
        return [2 * number for number in numbers]


def test_who_waits_is_answered_together(executor):
    double = Doubler()
    together = Together(executor, double)

    def ask(number: int) -> None:
        try:
            double.answers[number] = together.ask(number)
        except ValueError as error:
            double.answers[number] = str(error)

    threads = [begin(ask, 1)]
    until(lambda: double.calls)
    threads += [begin(ask, number) for number in (2, 3, -1, 4)]
    until(lambda: len(together._waiting) == 4)
    double.go.set()
    for thread in threads:
        thread.join()
    assert double.calls[0] == [1]
    assert sorted(double.calls[1]) == [-1, 2, 3, 4]
    assert [len(call) for call in double.calls[2:]] == [1, 1, 1, 1]  # one of them cannot be answered
    assert double.answers == {1: 2, 2: 4, 3: 6, 4: 8, -1: "negative"}


def test_an_answer_does_not_wait_for_questions_that_came_later(executor):
    """Each caller has a turn of its own, which comes late if others answered its question before."""
    double = Doubler()
    together = Together(executor, double)
    got: list[int] = []
    first = begin(lambda: got.append(together.ask(1)))
    until(lambda: double.calls)
    others = [begin(lambda number=number: got.append(together.ask(number))) for number in (2, 3)]
    until(lambda: len(together._waiting) == 2)
    held = threading.Event()
    executor.submit(held.wait)  # stands before the turns of later questions, and after those of the first three
    double.go.set()
    for thread in (first, *others):
        thread.join(10)
        assert not thread.is_alive()
    held.set()
    assert sorted(got) == [2, 4, 6]


def test_a_turn_waits_for_those_who_are_about_to_ask(executor):
    double, ready, got = Doubler(), threading.Event(), []
    double.go.set()
    together = Together(executor, double)
    together._lasted = 10.0

    def ask_late() -> None:
        with together.expected():
            assert ready.wait(10)
            got.append(together.ask(2))

    late = begin(ask_late)
    until(lambda: together._expected)
    early = begin(lambda: got.append(together.ask(1)))
    until(lambda: together._waiting)
    assert not double.calls
    ready.set()
    for thread in (late, early):
        thread.join()
    assert double.calls == [[1, 2]]
    assert sorted(got) == [2, 4]


def test_it_does_not_wait_longer_than_answering_takes(executor):
    double = Doubler()
    double.go.set()
    together = Together(executor, double)
    with ThreadPoolExecutor(1) as other:
        ended = threading.Event()

        def think() -> None:
            with together.expected():
                ended.wait(10)

        thinking = other.submit(think)
        until(lambda: together._expected)
        assert together.ask(1) == 2  # the last answer took no time
        ended.set()
        thinking.result()
    with pytest.raises(RuntimeError), together.expected():
        raise RuntimeError
    assert not together._expected


def test_the_end_of_the_executor():
    double, errors = Doubler(), []
    executor = ThreadPoolExecutor(1)
    together = Together(executor, double)

    def ask(number: int) -> None:
        try:
            together.ask(number)
        except CancelledError:
            errors.append(number)

    threads = [begin(ask, 1)]
    until(lambda: double.calls)
    threads.append(begin(ask, 2))
    until(lambda: together._waiting)
    executor.shutdown(wait=False, cancel_futures=True)
    threads[1].join(10)
    double.go.set()
    threads[0].join(10)
    assert errors == [2]
    with pytest.raises(RuntimeError):
        together.ask(3)
