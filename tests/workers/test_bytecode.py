"""An installation that keeps no bytecode costs one run's compiling, not every process's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from workers.processes import ROOT

LOOK = """
import sys, json
from workers import bytecode
bytecode.HEAVY = "heavy_one"
print(bytecode.keep_bytecode())
import heavy_one, subprocess
print(heavy_one.__cached__)
subprocess.run([sys.executable, "-c", "import heavy_two; print(heavy_two.__cached__)"], check=True)
"""


def look(folder: Path, *, writes: bool) -> list[str]:
    """What is kept where, by a process and by one that it starts."""
    packages = folder / "packages"
    packages.mkdir(exist_ok=True)
    for name in ("heavy_one", "heavy_two"):
        (packages / f"{name}.py").write_text("A = 1\n")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    told = clean | {"XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": f"{ROOT}{os.pathsep}{packages}"}
    told |= {} if writes else {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-u", "-c", LOOK], env=told, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()


def test_where_nothing_is_kept_a_folder_of_the_persons_own_keeps_it_for_all_processes(tmp_path: Path) -> None:
    kept, own, of_child = look(tmp_path, writes=False)
    assert kept == str(tmp_path / "cache" / "heliostat" / "bytecode")
    assert Path(own).is_file() and Path(of_child).is_file()
    assert own.startswith(kept) and of_child.startswith(kept)
    assert not (tmp_path / "packages" / "__pycache__").exists()


def test_an_installation_that_keeps_its_own_is_left_alone(tmp_path: Path) -> None:
    kept, own, _ = look(tmp_path, writes=True)
    assert kept == "None"
    assert Path(own).parent == tmp_path / "packages" / "__pycache__"
    # Kept by somebody else, in a process that writes none.
    assert look(tmp_path, writes=False)[0] == "None"


def test_a_folder_that_others_may_write_to_is_not_read_from(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "heliostat" / "bytecode"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert look(tmp_path, writes=False)[0] == "None"
