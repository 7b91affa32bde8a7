"""Stacks are kept of every time that somebody asked for them, but not without bound."""

from __future__ import annotations

from pathlib import Path

from workers.stacks import size_within


def test_a_file_of_stacks_that_has_exceeded_its_limit_begins_anew_for_all_who_append_to_it(tmp_path: Path) -> None:
    path = tmp_path / "policy_0.stacks"
    with path.open("a") as file:
        for expected in (6, 12, 0):
            if expected:
                print("stack", file=file, flush=True)
            assert size_within(path, limit=11 if expected == 0 else 12) == expected
        print("again", file=file, flush=True)
    assert path.read_text() == "again\n"
