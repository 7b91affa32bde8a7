"""A terminal is given back whole; a pipe, a log file and a dumb terminal get plain lines."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest
from runs import REPOSITORY

SCRIPT = """
import sys, time
from engine.history import History
from engine.live_view import Shown
from engine.screen import Screen

done = History()
def look():
    return Shown(name="mine", steps=4, elapsed_s=1.0, since_step_s=0.0, doing="learn", doing_s=0.0,
                 done=done.until_now(), held_out=History())
screen = Screen(look)
screen.say(1.0, "before " + "long " * 40 + "[line]")
if sys.argv[1] != "no steps":
    done.add(1, {"reward/mean": 0.5, "time/step_s": 1.0})
time.sleep(0.6)
screen.say(2.0, "during")
print("a library's own words")
try:
    if sys.argv[1] == "fails":
        raise KeyboardInterrupt
finally:
    screen.close()
"""


def in_pipe(ending: str, **environment: str) -> str:
    command = [sys.executable, "-c", SCRIPT, ending]
    return subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def in_terminal(ending: str, *, script: str = SCRIPT, **environment: str) -> str:
    """All that the program writes to a terminal of 80 columns and 24 lines."""
    driver, terminal = pty.openpty()
    settings = {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24", "NO_COLOR": ""} | environment
    process = subprocess.Popen(
        [sys.executable, "-c", script, ending], cwd=REPOSITORY, env=os.environ | settings, stdout=terminal,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(terminal)
    written = bytearray()
    try:
        while part := os.read(driver, 65536):
            written += part
    except OSError:  # how Linux says that the other side of a terminal is closed
        pass
    os.close(driver)
    process.wait()
    return written.decode()


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_pipe_gets_one_line_each_and_no_picture(environment: dict[str, str]) -> None:
    lines = in_pipe("ends", **environment).splitlines()
    assert len(lines) == 3
    assert "before" in lines[0] and "long [line]" in lines[0] and "during" in lines[1]
    assert not any("step 1/4" in line or "\x1b[?25" in line for line in lines)


@pytest.mark.parametrize("ending", ["ends", "fails"])
def test_a_terminal_is_given_back_with_the_last_picture_on_it(ending: str) -> None:
    written = in_terminal(ending)
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1  # the cursor
    assert "\x1b[?1049" not in written  # no second screen, which would take the earlier lines away
    said, last = written.rsplit("a library's own words", 1)
    assert "before" in said and "during" in said
    assert "step 1/4" in last and last.rindex("step 1/4") < last.rindex("\x1b[?25h")
    after_picture = last[last.rindex("╯") :]
    assert "\x1b[2K" not in after_picture and "\x1b[1A" not in after_picture  # it is not wiped out


def test_what_stood_for_the_first_step_is_gone_when_there_was_none() -> None:
    assert in_terminal("no steps").rstrip().endswith("\x1b[2K")


def test_a_dumb_terminal_gets_no_control_codes() -> None:
    assert "\x1b" not in in_terminal("ends", TERM="dumb")


BLOCK = """
import sys
from engine.live_view import Shown
from engine.screen import Screen
look = lambda: Shown(name="m", steps=1, elapsed_s=0, since_step_s=0, doing="", doing_s=0, done=(), held_out=())
screen = Screen(look)
screen.block(["[red]one[/red] :smile:", "gr\u00f6\u00dfer \u65e5 " + "x" * 300])
screen.close()
"""


@pytest.mark.parametrize(("encoding", "shown"), [("utf-8", "größer 日 "), ("ascii", "gr\\xf6\\xdfer \\u65e5 ")])
def test_a_block_is_no_markup_and_is_printed_in_every_encoding(encoding: str, shown: str) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(
        [sys.executable, "-c", BLOCK], cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, check=True
    )
    assert done.stdout.decode(encoding).splitlines() == ["[red]one[/red] :smile:", shown + "x" * 300]


def test_a_block_stands_above_the_picture_of_a_terminal_and_is_folded() -> None:
    written = in_terminal("ends", script=BLOCK)
    assert "[red]one[/red] :smile:" in written and "größer 日" in written
    folded = [line for line in written.replace("\r", "").split("\n") if "xxx" in line]
    assert len(folded) >= 4 and sum(line.count("x") for line in folded) == 300


def test_no_color_is_honoured() -> None:
    assert "\x1b[38;" in in_terminal("ends")
    assert "\x1b[38;" not in in_terminal("ends", NO_COLOR="1")
