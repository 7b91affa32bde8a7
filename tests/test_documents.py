"""Every command that the documents show exists and composes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from engine import submit
from engine.config import load_config, load_config_for_cluster

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = [REPOSITORY / "README.md", *sorted(REPOSITORY.glob("examples/**/*.md"))]
COMMAND = re.compile(r"(?:^ {4}|`)(make [a-z][^`#\n]*|python [^`#\n]*)", re.MULTILINE)


def commands() -> list[tuple[str, str]]:
    return [
        (document.relative_to(REPOSITORY).as_posix(), command.strip())
        for document in DOCUMENTS
        for command in COMMAND.findall(document.read_text())
    ]


@pytest.fixture
def files_of_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the documents take for granted, in a folder of the reader's own."""
    (tmp_path / "my" / "model").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "my" / "model" / name).write_bytes((REPOSITORY / "examples/nano/policy" / name).read_bytes())
    (tmp_path / "my_rewards.py").write_text("def correct(response, answer, **row):\n    return 1.0\n")
    for name in ("train.jsonl", "rows.jsonl", "conversations.jsonl"):
        (tmp_path / name).write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("document", "command"), commands())
def test_a_documented_command_is_real(document: str, command: str, files_of_a_reader: Path) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
    elif words[1:3] == ["-m", "engine.main"]:
        if "--help" not in words:
            load_config(words[3:])
    elif words[1:3] == ["-m", "engine.submit"]:
        if words[3] not in submit.COMMANDS:
            load_config_for_cluster(words[3:])
    else:
        assert (REPOSITORY / words[1]).is_file()


def test_the_documents_show_commands() -> None:
    assert len(commands()) >= 10
