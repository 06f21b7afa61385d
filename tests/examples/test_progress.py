"""Progress: a bar on a terminal, lines in a log."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from training.progress import Progress, duration, track


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("training.progress.time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


@pytest.fixture(params=[False, True], ids=["log", "terminal"])
def terminal(request, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: request.param)
    return request.param


def test_a_log_has_a_line_now_and_then_and_one_at_the_end(clock, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    with Progress("learning", 100, initial=20) as progress:
        for step in range(80):
            clock.now += 1
            progress.update(f"loss {step // 10}" if step % 10 == 0 else None)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "learning: 25 of 100, loss 0, 5 s, 75 s left",
        "learning: 55 of 100, loss 3, 35 s, 45 s left",
        "learning: 85 of 100, loss 6, 65 s, 15 s left",
        "learning: 100 of 100, loss 7, 80 s",
    ]


def test_long_times_are_minutes_and_hours():
    assert [duration(x) for x in (7.2, 99, 238, 5400, 41_400)] == [
        "7 s",
        "99 s",
        "4 min",
        "90 min",
        "11.5 h",
    ]


def test_a_short_loop_leaves_no_line_in_a_log(clock, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert list(track("abc", "reading", 3)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar_with_the_note(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress("learning", 2) as progress:
        progress.update("loss 0.250")
        progress.update()
    shown = capsys.readouterr().err
    assert "learning: 100%" in shown and "2/2" in shown and "loss 0.250" in shown


def test_a_loop_that_fails_writes_no_last_line(clock, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    with pytest.raises(KeyError), Progress("learning", 3) as progress:
        progress.update()
        clock.now = 60
        raise KeyError
    assert capsys.readouterr().err == ""


def test_other_processes_write_nothing(clock, terminal, monkeypatch, capsys):
    monkeypatch.setattr("training.distributed.rank", lambda: 1)
    for _ in track(range(3), "learning", 3):
        clock.now += 60
    assert capsys.readouterr().err == ""
