"""The modules that lie beside a person's reward file and that it imports: found here, and served where they are not.

They travel as texts, so that a worker on another node, or one that starts after the files were edited, runs what the
driver read.
"""

from __future__ import annotations

import ast
import importlib.machinery
import linecache
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from pathlib import Path
from types import ModuleType

PACKAGES = ("engine", "workers", "rewards", "conf")
"""Ours, which are everywhere already."""


def imported_files(file: Path, *, root: Path) -> tuple[Path, ...]:
    """`file`, and those below `root` that it imports, directly or not. An import by a computed name is not seen."""
    found: set[Path] = set()
    waiting = [file]
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        names = _imported_names(path, root)
        # `import a.b` runs the __init__.py of every folder on the way.
        parts = [name.split(".") for name in names if name.split(".")[0] not in PACKAGES]
        modules = {root.joinpath(*own[:end]) for own in parts for end in range(1, len(own) + 1)}
        waiting += [at for module in modules for at in (module.with_suffix(".py"), module / "__init__.py")]
    packages = {folder / "__init__.py" for folder in file.parents if folder.is_relative_to(root) and folder != root}
    return tuple(sorted(found | {init for init in packages if init.exists()}))


def _imported_names(file: Path, root: Path) -> set[str]:
    """Dotted, also of what may be a thing in a module rather than a module. None where the file is no Python."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return set()  # whoever imports it is told
    package = file.relative_to(root).parts[:-1]
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            source = [*base, *([node.module] if node.module else [])]
            names |= {".".join([*source, alias.name]) for alias in node.names} | {".".join(source)}
    return names - {""}


def texts_beside(file: Path) -> dict[str, str]:
    """The texts of the modules in the file's folder that it imports, by their path from there."""
    others = [path for path in imported_files(file, root=file.parent) if path != file]
    return {path.relative_to(file.parent).as_posix(): path.read_text(encoding="utf-8") for path in others}


class Beside(MetaPathFinder, InspectLoader):
    """Serves modules from texts, after everybody else: none of them hides one of the engine's or of a library's."""

    def __init__(self, folder: Path, texts: Mapping[str, str]) -> None:
        self.folder = folder
        """Where the files lay on the driver; what has no text is looked for there, too."""
        self.texts = texts

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        place = name.replace(".", "/")
        is_package = any(text.startswith(f"{place}/") for text in self.texts)
        if not is_package and f"{place}.py" not in self.texts:
            return importlib.machinery.PathFinder.find_spec(name, [str(self.folder)] if path is None else path)
        spec = importlib.machinery.ModuleSpec(name, self, origin=self._file(name), is_package=is_package)
        spec.has_location = True
        if is_package:
            spec.submodule_search_locations = [str(self.folder / place)]
        return spec

    def get_source(self, fullname: str) -> str:
        """Empty for a folder without an `__init__.py`."""
        text = self.texts.get(self._place(fullname), "")
        # Tracebacks show the lines that run.
        name = self._file(fullname)
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        return text

    def get_code(self, fullname: str) -> object:
        return compile(self.get_source(fullname), self._file(fullname), "exec", dont_inherit=True)

    def is_package(self, fullname: str) -> bool:
        return self._place(fullname).endswith("/__init__.py")

    def _place(self, name: str) -> str:
        module = f"{name.replace('.', '/')}.py"
        return module if module in self.texts else f"{name.replace('.', '/')}/__init__.py"

    def _file(self, name: str) -> str:
        return str(self.folder / self._place(name))


def serve_beside(folder: Path, texts: Mapping[str, str]) -> str:
    """Serve `texts` to this process. The name of one that another reward brings, too, with another text; else empty."""
    for served in sys.meta_path:
        if isinstance(served, Beside):
            for place in served.texts.keys() & texts.keys():
                if served.texts[place] != texts[place]:
                    return place
    sys.meta_path.append(Beside(folder, texts))
    return ""
