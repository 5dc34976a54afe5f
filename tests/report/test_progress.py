import io
import sys

import pytest

from kdjax.report.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock of ten seconds a step, moved by hand."""
    now = [0.0]
    monkeypatch.setattr("kdjax.report.progress.time.monotonic", lambda: now[0])
    return now


def test_a_pipe_gets_one_line_per_epoch_with_that_epochs_dice(capsys, clock):
    bar = Progress("student", 6, epochs=3)
    for step in range(1, 7):
        clock[0] += 10
        bar.update(step, {"loss": 1 / step}, 120.4, 0.012)
        if step in (2, 6):
            bar.update(step, {"dice": step / 10})
    bar.line("saved")
    bar.close()
    bar.close()
    assert capsys.readouterr().out.splitlines() == [
        "student  epoch 1/3  loss 0.5  Dice 0.2  120 img/s  wait 1%  left 00:40",
        "student  epoch 2/3  loss 0.25  Dice 0.2  120 img/s  wait 1%  left 00:20",
        "student  epoch 3/3  loss 0.167  Dice 0.6  120 img/s  wait 1%  done",
        "saved",
    ]


def test_a_resumed_bar_does_not_repeat_epochs(capsys):
    bar = Progress("student", 6, start=4, epochs=3)
    bar.update(5, {"loss": 1.0})
    bar.update(6, {"loss": 1.0, "dice": 0.5})
    bar.close()
    assert capsys.readouterr().out.splitlines() == ["student  epoch 3/3  loss 1  Dice 0.5  done"]


def test_switched_off_it_is_silent(capsys):
    bar = Progress("student", 2, enabled=False)
    bar.update(2, {"loss": 1.0})
    bar.line("saved")
    bar.close()
    assert capsys.readouterr().out == ""


def test_a_terminal_keeps_one_line_in_place(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    bar = Progress("student", 4, epochs=2)
    for step in range(1, 5):
        bar.update(step, {"loss": 0.25, "dice": 0.5})
    bar.line("saved best")
    bar.close()
    text = screen.getvalue()
    assert text.count("\n") == 2  # of the line and of the end
    assert "saved best\n" in text
    assert "student 2/2 loss 0.25 Dice 0.5 done|" in text.rsplit("\r", 1)[-1]
