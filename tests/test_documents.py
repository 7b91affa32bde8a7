"""Every command that the documents show exists and composes, and those that a CPU without a model hub can do, run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine import submit
from engine.config import load_config, load_config_for_cluster
from examples.algorithms import compare

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = [REPOSITORY / "README.md", *sorted(REPOSITORY.glob("examples/**/*.md")), *REPOSITORY.glob("tests/**/*.md")]
COMMAND = re.compile(r"(?:^ {4}|`)(make [a-z][^`#\n]*|python [^`#\n]*)", re.MULTILINE)
OPTIONS = re.compile(r"^\| `((?:algo|train|critic)\.[^`]*=[^`]*)` \|", re.MULTILINE)
"""Rows of a table that begin with keys and values."""
NEEDS_MORE = (
    "model=qwen",
    "model=smollm2",
    "experiment=smollm2",
    "smollm2_sums",
    "examples/smollm2",
    "algorithms/compare",
    "engine.submit",
    "tests.bench",
    "tests.gpu",
    "examples/offline",
    "--step",
)
"""Commands that need GPUs, a hub, a cluster, or minutes: they are composed, and their parts have tests of their own."""
SMALL = "run.steps=2 evaluation.prompts=2 evaluation.samples_per_prompt=1 data.held_out=2 rollout.prompts_per_step=2"


def commands_of(document: Path) -> list[str]:
    return [command.strip() for command in COMMAND.findall(document.read_text())]


def commands() -> list[tuple[str, str]]:
    return [
        (document.relative_to(REPOSITORY).as_posix(), command)
        for document in DOCUMENTS
        for command in commands_of(document)
    ]


@pytest.fixture
def files_of_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the documents take for granted, in a folder of the reader's own."""
    model = tmp_path / "my" / "model"
    shutil.copytree(REPOSITORY / "examples/nano/policy", model)
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 2048}))
    judge = tmp_path / "runs" / "judge" / "export"
    shutil.copytree(REPOSITORY / "examples/nano/policy", judge)
    as_judge = {"architectures": ["Qwen2ForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    (judge / "config.json").write_text(json.dumps(settings | as_judge))
    (tmp_path / "my_rewards.py").write_text("def correct(response, answer, **row):\n    return 1.0\n")
    solved = [{"question": f"{n}+1=", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(8)]
    turns = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]
    for name, rows in (
        ("train.jsonl", solved),
        ("rows.jsonl", solved),
        ("conversations.jsonl", [{"messages": turns}] * 8),
        ("pairs.jsonl", [{"prompt": "1+1=", "chosen": "2", "rejected": "3"}] * 8),
        ("alpaca.json", [{"instruction": "Add.", "input": "1+1=", "output": "2"}] * 8),
    ):
        (tmp_path / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    shutil.copytree(REPOSITORY / "examples/own_algorithm", tmp_path / "examples/own_algorithm")
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
        if words[3] not in (*submit.COMMANDS, "--help"):
            load_config_for_cluster(words[3:])
    elif words[1] == "examples/algorithms/compare.py":
        for run in compare.planned(compare.parsed(words[2:])):
            load_config(run.typed)
    elif words[1] == "-m":
        place = REPOSITORY / words[2].replace(".", "/")
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()
    else:
        assert (REPOSITORY / words[1]).is_file()


@pytest.mark.parametrize("options", OPTIONS.findall((REPOSITORY / "README.md").read_text()))
def test_documented_options_compose(options: str, files_of_a_reader: Path) -> None:
    load_config(["algo=ppo" if "critic" in options else "algo=grpo", *shlex.split(options)])


@pytest.mark.slow
@pytest.mark.parametrize(
    "document", [path for path in DOCUMENTS if commands_of(path)], ids=lambda path: path.parent.name
)
def test_what_a_cpu_can_do_of_the_documents_runs(document: Path, files_of_a_reader: Path) -> None:
    """In the order of the page, in a copy of the repository, each run cut down to two steps."""
    for name in ("engine", "workers", "rewards", "conf", "examples"):
        no_caches = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, files_of_a_reader / name, ignore=no_caches, dirs_exist_ok=True)
    shutil.copy(REPOSITORY / "pyproject.toml", files_of_a_reader)
    shutil.rmtree(files_of_a_reader / "runs")
    for command in commands_of(document):
        if command.startswith("make ") or any(word in command for word in NEEDS_MORE):
            continue
        is_run = "-m engine.main" in command and "--help" not in command
        words = [sys.executable, *shlex.split(command)[1:], *(small_settings(command) if is_run else [])]
        done = subprocess.run(words, cwd=files_of_a_reader, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def small_settings(command: str) -> list[str]:
    more = ["train.examples_per_step=2", "run.epochs=0"] if re.search(r"algo=(sft|rm|dpo)\b", command) else []
    return [*SMALL.split(), *more]


def test_the_documents_show_commands() -> None:
    assert len(commands()) >= 20
    assert len(OPTIONS.findall((REPOSITORY / "README.md").read_text())) >= 10
