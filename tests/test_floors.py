"""The house has three floors, and an import never points up: engine -> workers -> rewards.

The checker reads source, imports nothing, and sees imports inside functions and under TYPE_CHECKING too.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ["engine", "workers", "rewards"]  # from the top down
ROOF = {"tests", "examples", "conf"}  # these import the floors, never the other way round
HEAVY = {"torch", "ray", "vllm", "deepspeed", "transformers"}
IMPORT_LIGHT = ["engine/main.py", "engine/submit.py", "engine/job_*.py", "engine/config.py"]
IMPORT_LIGHT += ["engine/fit.py", "engine/need.py", "engine/machine.py", "engine/sizes.py", "workers/places.py"]
IMPORT_LIGHT += ["engine/algorithms/**/*.py", "workers/config.py"]


# ----------------------------------------------------------------------------- the checker


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file, for every module of the three packages."""
    paths = [path for floor in FLOORS for path in sorted((root / floor).rglob("*.py"))]
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imports(path: Path, root: Path, *, at_import_time: bool = False) -> set[str]:
    """Dotted names that a file imports: all of them, or only those that run when the file itself is imported."""
    package = path.relative_to(root).parts[:-1]
    tree = ast.parse(path.read_text(), str(path))
    names = set()
    for node in statements(tree) if at_import_time else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join([*base, *([node.module] if node.module else [])])
            # `from workers import records` names a module, `from workers.records import Prompt` a thing inside one
            names |= {f"{source}.{alias.name}" for alias in node.names}
    return names


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below `node` that runs at import time: not in a function, not under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            child = ast.Module(body=child.orelse, type_ignores=[])
        yield child
        yield from statements(child)


def top(name: str) -> str:
    return name.split(".")[0]


def upward_imports(root: Path) -> list[str]:
    above = {floor: ROOF | set(FLOORS[:height]) for height, floor in enumerate(FLOORS)}
    return sorted(
        f"{module} imports {name}"
        for module, path in modules(root).items()
        for name in imports(path, root)
        if top(name) in above[top(module)]
    )


def cycle(root: Path) -> list[str]:
    """The modules of one import cycle, in order, or an empty list."""
    ours = modules(root)
    graph = {}
    for module, path in ours.items():
        named = imports(path, root, at_import_time=True)
        graph[module] = {name if name in ours else name.rpartition(".")[0] for name in named} & ours.keys()
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def heavy_imports(root: Path, pattern: str, *, at_import_time: bool) -> list[str]:
    return sorted(
        f"{path.relative_to(root)} imports {name}"
        for path in root.glob(pattern)
        for name in imports(path, root, at_import_time=at_import_time)
        if top(name) in HEAVY
    )


# ----------------------------------------------------------------------------- what holds here


@pytest.mark.parametrize("floor", FLOORS)
def test_every_floor_holds_modules_to_check(floor):
    assert any(module.startswith(f"{floor}.") for module in modules(ROOT))


def test_no_import_points_up():
    assert upward_imports(ROOT) == []


def test_no_import_cycle():
    assert cycle(ROOT) == []


def test_rewards_know_no_heavy_library():
    assert heavy_imports(ROOT, "rewards/**/*.py", at_import_time=False) == []


@pytest.mark.parametrize("pattern", IMPORT_LIGHT)
def test_the_files_a_config_check_needs_import_nothing_heavy(pattern):
    assert heavy_imports(ROOT, pattern, at_import_time=True) == []


# ----------------------------------------------------------------------------- the checker can fail


def house(root: Path, **files: str) -> Path:
    """A tree of sources: `workers__model="import rewards"` writes workers/model.py."""
    for name, source in files.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return root


@pytest.mark.parametrize(
    "source",
    [
        "import engine.loop",
        "from engine import loop",
        "def late():\n    from engine.loop import train",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from engine.loop import train",
        "from tests.support import helper",
    ],
)
def test_an_upward_import_is_caught_wherever_it_hides(tmp_path, source):
    house(tmp_path, engine__loop="", workers__model=source, rewards__score="")
    assert [line.split()[0] for line in upward_imports(tmp_path)] == ["workers.model"]


def test_imports_that_point_down_or_out_pass(tmp_path):
    house(tmp_path, engine__loop="import torch\nfrom workers import model", workers__model="import engineering")
    assert upward_imports(tmp_path) == []


def test_a_cycle_is_caught_and_named(tmp_path):
    house(tmp_path, workers__a="from workers.b import f", workers__b="from . import c", workers__c="import workers.a")
    assert set(cycle(tmp_path)) == {"workers.a", "workers.b", "workers.c"}


def test_a_cycle_of_types_or_of_late_imports_is_none(tmp_path):
    typed = "import typing\nif typing.TYPE_CHECKING:\n    import workers.a"
    house(tmp_path, workers__a="import workers.b\nimport workers.c", workers__b=typed)
    house(tmp_path, workers__c="def late():\n    import workers.a")
    assert cycle(tmp_path) == []


def test_a_heavy_import_is_caught_at_module_level_and_allowed_inside_a_function(tmp_path):
    house(tmp_path, engine__main="import torch.nn", engine__config="def late():\n    import ray")
    assert heavy_imports(tmp_path, "engine/*.py", at_import_time=True) == ["engine/main.py imports torch.nn"]
    assert len(heavy_imports(tmp_path, "engine/*.py", at_import_time=False)) == 2
