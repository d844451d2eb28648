"""The table of dependencies in the architecture: who may import whom, read from the source and not from the wish."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("hotpair", "actors", "cluster", "replication", "hyperv")
INNER = ("cluster", "replication", "hyperv")  # standard library and msgpack only

PACKAGE_NAMES = {"hotpair", "tests", *(f"hotpair.{package}" for package in PACKAGES)}

# Of another inner package, only value types: no behaviour that could pull it in.
SHARED = {
    "replication": {"hotpair.cluster.record", "hotpair.cluster.record_io"},
    "hyperv": {"hotpair.cluster.configuration_keys"},
}
OUTSIDE = {"replication": {"msgpack"}, "cluster": {"msgpack"}, "hyperv": {"msgpack", "psutil", "qemu", "winrm"}}


def modules(package: str) -> Iterator[Path]:
    return (ROOT / package).rglob("*.py")


def imports_of(path: Path, name: str) -> set[str]:
    """Full names of all modules that a file imports, wherever in it; ``name`` is its own, for relative imports."""
    found: set[str] = set()
    for item in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(item, ast.Import):
            found.update(alias.name for alias in item.names)
        elif isinstance(item, ast.ImportFrom):
            base = item.module or ""
            if item.level:
                base = ".".join([*name.split(".")[: -item.level], *([base] if base else [])])
            if base in PACKAGE_NAMES:  # what is imported from a package is a module
                found.update(f"{base}.{alias.name}" for alias in item.names)
            else:
                found.add(base)
        elif isinstance(item, ast.Call) and _called(item) in ("__import__", "import_module"):
            argument = item.args[0] if item.args else None
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                found.add(argument.value)
    return found


def _called(item: ast.Call) -> str:
    return item.func.attr if isinstance(item.func, ast.Attribute) else getattr(item.func, "id", "")


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] in ("hotpair", "tests", "examples", "bench") else ("hotpair", *parts))


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def objections(package: str, name: str, imported: str) -> str | None:
    """Why a module of ``package`` may not import this; None when it may."""
    top = imported.partition(".")[0]
    if top in PACKAGES and top != "hotpair":
        return f"import hotpair.{imported}: the folder's name is not the name of the package"
    if top == "ray" and package != "actors":
        return "ray is imported in actors only"
    if top == "tests" and package not in ("tests", "examples", "bench"):
        return "the product does not import its tests"
    if package in INNER:
        if top == "hotpair":
            if within(imported, f"hotpair.{package}") or imported in SHARED.get(package, ()):
                return None
            return f"{package} imports itself, and of the others only {sorted(SHARED.get(package, ()))}"
        if top not in sys.stdlib_module_names and top not in OUTSIDE[package]:
            return "only the standard library and msgpack"
    if package == "actors" and within(imported, "hotpair"):
        inner = any(within(imported, f"hotpair.{part}") for part in (*INNER, "actors"))
        if not inner:
            return "actors imports cluster, replication and hyperv, nothing above itself"
    return None


@pytest.mark.parametrize("package", [*PACKAGES, "tests"])
def test_dependencies_point_inwards(package: str) -> None:
    wrong = []
    for path in sorted(modules(package)):
        name = name_of(path)
        for imported in sorted(imports_of(path, name)):
            objection = objections(package, name, imported)
            if objection:
                wrong.append(f"{path.relative_to(ROOT)} imports {imported}: {objection}")
    assert wrong == []


@pytest.mark.parametrize("package", PACKAGES)
def test_there_is_something_to_look_at(package: str) -> None:
    assert (ROOT / package / "__init__.py").exists()
    assert list(modules(package))


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("replication", "from hotpair.hyperv import driver"),
        ("replication", "from hotpair.cluster import supervisor"),
        ("replication", "from hotpair import command_line"),
        ("replication", "import replication.source"),
        ("replication", "import rich"),
        ("cluster", "from hotpair.replication.source import Source"),
        ("cluster", "def f():\n    import ray"),
        ("cluster", "from ..replication import source"),
        ("hyperv", "from hotpair.cluster import record"),
        ("hotpair", "import ray"),
        ("hotpair", "from actors import supervisor"),
        ("hotpair", "__import__('ray')"),
        ("actors", "from hotpair.command_line import main"),
        ("actors", "from tests.mirror_pair import MirrorPair"),
    ],
)
def test_what_is_forbidden_is_found(package: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(line)
    name = f"hotpair.{package}.module"
    assert any(objections(package, name, imported) for imported in imports_of(path, name))


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("replication", "from hotpair.cluster.record import Record"),
        ("replication", "from hotpair.cluster import record_io"),
        ("replication", "import os, msgpack"),
        ("cluster", "from hotpair.cluster import record"),
        ("hyperv", "from hotpair.cluster.configuration_keys import Key"),
        ("actors", "import ray\nfrom hotpair.replication import source_process"),
        ("hotpair", "from hotpair.actors import supervisor"),
    ],
)
def test_what_is_allowed_is_not(package: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(line)
    name = f"hotpair.{package}.module"
    assert not any(objections(package, name, imported) for imported in imports_of(path, name))


# ---- what must begin at once

# Each of them costs more than all that a question over the Unix socket needs.
BIG = {
    "ray", "cryptography", "pydantic", "fastapi", "starlette", "uvicorn", "httpx", "jsonschema", "requests", "winrm",
    "prometheus_client", "asyncio", "multiprocessing", "hotpair.actors.ray_actors", "hotpair.actors.supervisor",
    "hotpair.served", "hotpair.replication.source_process", "hotpair.replication.fuse_io",
}  # fmt: skip
ASKED = "from hotpair.commands import main; main({words!r})"  # nobody answers there: all until then is what counts


@pytest.mark.parametrize(
    ("program", "big"),
    [
        ("import hotpair.commands", BIG | {"rich", "shtab", "tomllib"}),
        (ASKED.format(words=["state", "web", "--home", "/nowhere"]), BIG | {"rich", "shtab", "tomllib"}),
        (ASKED.format(words=["swap", "web", "--home", "/nowhere"]), BIG | {"rich", "shtab", "tomllib"}),
        ("import hotpair.terminal", BIG),
        ("from hotpair.commands import all_commands; all_commands()", BIG),
        ("import hotpair.run_command", BIG | {"rich"}),  # it must outlive Ray, and has none in it
        ("import hotpair.join_io", BIG - {"cryptography", "asyncio", "hotpair.replication.fuse_io"}),
        ("import hotpair.cluster.witness_command", BIG | {"rich", "psutil"}),
        ("import hotpair.replication.__main__", (BIG | {"rich", "psutil"}) - {
            "hotpair.replication.source_process", "hotpair.replication.fuse_io",
        }),
    ],
)  # fmt: skip
def test_what_must_begin_at_once_loads_nothing_big(program: str, big: set[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{program}\nimport sys; print(*sys.modules)"],
        capture_output=True, text=True, timeout=60, cwd="/", check=True,
    )  # fmt: skip
    loaded = set(done.stdout.split())
    assert {"sys", "hotpair"} <= loaded
    assert loaded & big == set()
