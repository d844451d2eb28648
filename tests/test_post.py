"""Reports are sent one at a time, in their order, by a thread that nobody waits for."""

from __future__ import annotations

import threading

from hotpair.actors.post import InTurn

LIMIT_S = 10.0


def test_the_next_report_is_not_sent_before_the_last_one_was_heard() -> None:
    sending, may_end = threading.Semaphore(0), threading.Semaphore(0)
    sent: list[int] = []

    def send(report: int) -> None:
        sent.append(report)
        sending.release()
        assert may_end.acquire(timeout=LIMIT_S)

    post = InTurn(send)
    for number in range(5):
        post(number)  # returns at once
    for number in range(5):
        assert sending.acquire(timeout=LIMIT_S)
        assert sent == list(range(number + 1))
        assert not post.is_heard(0.01)
        may_end.release()
    assert post.is_heard(LIMIT_S)
    assert sent == [0, 1, 2, 3, 4]


def test_heard_is_what_was_said_before_the_question() -> None:
    heard: list[str] = []
    post = InTurn(heard.append)
    post("a")
    post("b")
    assert post.is_heard(LIMIT_S)
    assert heard == ["a", "b"]
