import contextlib
import io
import re
import threading
import time

import pytest

from otbr_jax.runs import hosts, progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(params=[io.StringIO, Terminal], ids=["file", "terminal"])
def stderr(request, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "0")
    monkeypatch.delenv("OTBR_JAX_BARS", raising=False)
    return request.param()


def once(count=3):
    """A bar, a clock and a line."""
    with progress.progress_bar("training", count, unit="epoch") as advance:
        for epoch in range(count):
            advance(loss=epoch / 2)
    with progress.step_progress("pruning", 1, unit="step") as report:
        assert report is None
    progress.say("class 1 is flagged")


def test_a_file_has_a_line_for_each_step_and_a_terminal_bars(stderr):
    with contextlib.redirect_stderr(stderr):
        once()
    said = stderr.getvalue()
    assert "clock" not in {thread.name for thread in threading.enumerate()}
    if isinstance(stderr, Terminal):
        assert all(part in said for part in ("\r", "3/3", "loss 1.000"))
        assert said.endswith("class 1 is flagged\n")
    else:
        assert re.fullmatch(r"training: loss 1.000, \d+ s\npruning: \d+ s\nclass 1 is flagged\n", said)


def test_a_file_has_a_line_a_minute(monkeypatch, capsys):
    monkeypatch.setenv("TQDM_DISABLE", "0")
    monkeypatch.setattr(progress, "MINUTE", 0.01)
    with progress.progress_bar("training", 2, unit="epoch") as advance:
        advance(loss=0.5)
        for _ in range(500):
            if "epoch 1" in (said := capsys.readouterr().err):
                break
            time.sleep(0.01)
    assert re.search(r"^training: epoch 1 of 2, loss 0.500, \d+ s$", said, re.MULTILINE)


def test_what_did_not_end_is_not_said_to_have_ended(stderr):
    with (
        contextlib.redirect_stderr(stderr),
        pytest.raises(KeyError),
        progress.progress_bar("training", 2, unit="epoch"),
    ):
        raise KeyError
    assert "2/2" not in stderr.getvalue()
    assert isinstance(stderr, Terminal) or not stderr.getvalue()


@pytest.mark.parametrize("silent", ["disabled", "another process"])
def test_nothing_is_said(silent, stderr, monkeypatch):
    if silent == "disabled":
        monkeypatch.setenv("TQDM_DISABLE", "1")
    else:
        monkeypatch.setattr(hosts, "is_first", lambda: False)
    with contextlib.redirect_stderr(stderr):
        once()
    assert not stderr.getvalue()
