"""Answers questions of many threads together, in one thread of its own.

A model or a large index answers ten questions in little more time than one; and while a batch is answered, the next one
gathers. Each thread that computes would also take memory of its own.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class Together(Generic[Question, Answer]):
    """Calls of `answer`, which takes questions and returns their answers in order, in the thread of `executor`."""

    def __init__(self, executor: ThreadPoolExecutor, answer: Callable[[list[Question]], Sequence[Answer]]) -> None:
        self._executor, self._answer = executor, answer
        self._changed, self._waiting = threading.Condition(), list[tuple[Question, Future[Answer]]]()
        self._expected = set[int]()  # threads that are about to ask
        self._lasted = 0.0  # seconds of the last call of `answer`

    @contextmanager
    def expected(self) -> Iterator[None]:
        """Say that this thread is about to ask, until it has. Those who ask before wait for it, but no longer than
        answering took the last time: a question that comes too late would have to wait as long."""
        with self._changed:
            self._expected.add(threading.get_ident())
        try:
            yield
        finally:
            self._arrive()

    def _arrive(self) -> None:
        with self._changed:
            self._expected.discard(threading.get_ident())
            self._changed.notify_all()

    def ask(self, question: Question) -> Answer:
        """Return the answer to a question; raises what `answer` raises of this question alone, and CancelledError if
        the executor is shut down before its turn."""
        answer = Future[Answer]()
        with self._changed:
            self._waiting.append((question, answer))
        self._arrive()
        turn = self._executor.submit(self._answer_waiting)
        turn.add_done_callback(lambda turn: turn.cancelled() and answer.cancel())
        return answer.result()  # not that of `turn`, which may come after the turns of others

    def _answer_waiting(self) -> None:
        """Answer all who wait by now; nothing if that was done in somebody else's turn."""
        with self._changed:
            if self._waiting:
                self._changed.wait_for(lambda: not self._expected, self._lasted)
            waiting, self._waiting = self._waiting, []
        if together := [asked for asked in waiting if asked[1].set_running_or_notify_cancel()]:
            begun = time.perf_counter()
            self._answer_all(together)
            self._lasted = time.perf_counter() - begun

    def _answer_all(self, together: list[tuple[Question, Future[Answer]]]) -> None:
        """Answer several questions; one that cannot be answered does not stop the others."""
        try:
            answers = self._answer([question for question, _ in together])
        except Exception as error:
            if len(together) == 1:
                together[0][1].set_exception(error)
            else:
                for asked in together:
                    self._answer_all([asked])
        else:
            for (_, future), answer in zip(together, answers, strict=True):
                future.set_result(answer)
