"""Stacks are kept of every time that somebody asked for them, but not without bound."""

from __future__ import annotations

from pathlib import Path

from workers.stacks import begin_anew_if_large


def test_a_file_of_stacks_that_has_exceeded_its_limit_begins_anew_for_all_who_append_to_it(tmp_path: Path) -> None:
    path = tmp_path / "policy_0.stacks"
    with path.open("a") as file:
        print("first", file=file, flush=True)
        begin_anew_if_large(path, limit=6)
        assert path.read_text() == "first\n"
        print("second", file=file, flush=True)
        begin_anew_if_large(path, limit=6)
        assert path.read_text() == ""
        print("third", file=file, flush=True)
    assert path.read_text() == "third\n"
