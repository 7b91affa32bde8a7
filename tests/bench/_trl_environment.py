"""The environment that TRL runs in: made once, of the pins beside this file."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("trl-requirements.txt")
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""Asked where pip finds no CPU build of torch, as requirements/install.sh does."""


def environment(folder: Path) -> Path:
    """Its Python. Makes it where it is missing or its pins have changed; takes a minute or two. Raises
    CalledProcessError where pip fails."""
    python, stamp = folder / "bin" / "python", folder / "installed"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"making {folder}, which TRL runs in", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    install = [python, "-m", "pip", "-qq", "--disable-pip-version-check", "install", "--no-deps", "--no-compile"]
    torch = next(line for line in REQUIREMENTS.read_text().splitlines() if line.startswith("torch="))
    if subprocess.run([*install, torch], stderr=subprocess.DEVNULL).returncode:
        subprocess.run([*install, "--extra-index-url", PYTORCH_CPU_INDEX, torch], check=True)
    subprocess.run([*install, "-r", REQUIREMENTS], check=True)
    stamp.write_text(wanted)
    return python
