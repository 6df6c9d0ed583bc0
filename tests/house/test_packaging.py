"""What a stranger installs: versions, pins, light imports, and a script behind every make target."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
GENERATED = sorted((ROOT / "geokv" / "v1").glob("*_pb2.py"))


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {canonicalize_name(name): Version(exact) for name, exact in (line.split("==") for line in lines)}


def ranges() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(line) for group in (PROJECT["dependencies"], *extras) for line in group]


def test_constraints_are_names_and_versions_only() -> None:
    """No index address, no hash, no comment: one name==version on each line."""
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), line


def test_every_range_contains_its_pin() -> None:
    """A range without a pin, or a pin outside its range, fails."""
    for requirement in ranges():
        assert pins()[canonicalize_name(requirement.name)] in requirement.specifier, str(requirement)


def test_every_pin_is_needed() -> None:
    """A pin that nothing of ours asks for, directly or through others, is an orphan."""
    needed = {canonicalize_name(requirement.name) for requirement in ranges()} | {"editables"}
    waiting = sorted(needed)
    while waiting:
        for line in _requires(waiting.pop()):
            name = canonicalize_name(Requirement(line).name)
            if name in pins() and name not in needed:
                needed.add(name)
                waiting.append(name)
    assert set(pins()) - needed == set()


def _requires(name: str) -> list[str]:
    # These need not be installed, and need nothing.
    return [] if name in {"rocksdict", "uvloop"} else requires(name) or []


def test_every_dependency_is_imported_somewhere() -> None:
    """A package on the list that no module of ours imports is not a dependency."""
    module_of = {
        "grpcio": "grpc",
        "grpcio-health-checking": "grpc_health",
        "prometheus-client": "prometheus_client",
        "protobuf": "google",
        "toxiproxy-python": "toxiproxy",
    }
    imported = {name for path in (ROOT / "geokv").rglob("*.py") for name in _imports(path)}
    for requirement in map(Requirement, PROJECT["dependencies"]):
        assert module_of.get(requirement.name, requirement.name) in imported, requirement.name


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_the_oldest_protobuf_of_the_range_accepts_the_generated_code() -> None:
    """A runtime refuses code that is newer than itself, so the compiler must not outrun the range."""
    lowest = next(r for r in ranges() if r.name == "protobuf").specifier
    floor = min(Version(part.version) for part in lowest if part.operator == ">=")
    assert GENERATED
    for path in GENERATED:
        made_by = re.search(r"^# Protobuf Python Version: (\S+)$", path.read_text(), re.MULTILINE)
        assert made_by is not None, path
        assert Version(made_by[1]) <= floor, path


def test_the_generated_code_is_messages_only() -> None:
    """One .py and one .pyi for each file of proto/, and no service stubs."""
    stems = {path.stem for path in (ROOT / "proto" / "geokv" / "v1").glob("*.proto")}
    made = {path.name for path in (ROOT / "geokv" / "v1").iterdir() if path.suffix in {".py", ".pyi"}}
    assert made == {"__init__.py"} | {f"{stem}_pb2{end}" for stem in stems for end in (".py", ".pyi")}


def test_importing_geokv_stays_light() -> None:
    """`import geokv` alone loads no gRPC, protobuf, server, lab or client, and tells its version."""
    code = "import sys, geokv; print(geokv.__version__); print(*sorted(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    said, loaded = ran.stdout.splitlines()
    assert said == PROJECT["version"] == version("geokv")
    heavy = {"grpc", "google.protobuf", "geokv.server", "geokv.lab", "geokv.client", "geokv.sim", "asyncio"}
    assert heavy.isdisjoint(loaded.split())


def test_the_public_names_are_found_on_first_use() -> None:
    """`from geokv import Client, AsyncClient` loads no server and no lab, and a wrong name is refused."""
    code = "import sys; from geokv import AsyncClient, Client; print(*sorted(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert {"geokv.server", "geokv.lab", "geokv.sim", "geokv.cli"}.isdisjoint(ran.stdout.split())
    import geokv

    assert {"AsyncClient", "Client"} <= set(dir(geokv))
    with pytest.raises(AttributeError, match="no attribute 'Cliemt'"):
        _ = geokv.Cliemt


def test_every_make_target_is_one_line_that_calls_a_script() -> None:
    """What make does can be done without make, by the script of the same name."""
    lines = [line for line in (ROOT / "Makefile").read_text().splitlines() if not line.startswith("#")]
    targets = lines[0].removeprefix(".PHONY:").split()
    assert lines[1:] == [f"{target}: ; @scripts/{target}" for target in targets]
    assert {"setup", "lab", "test", "check", "soak", "bench", "proto"} <= set(targets)
    for target in targets:
        assert os.access(ROOT / "scripts" / target, os.X_OK), target


def test_every_lint_ignore_still_ignores_something() -> None:
    """An ignore whose reason is gone goes too."""
    lint = PYPROJECT["tool"]["ruff"]["lint"]
    per_file = lint["per-file-ignores"]
    dead = [rule for rule in lint["ignore"] if not _fires(rule, ".")]
    dead += [f"{where}: {rule}" for where, rules in per_file.items() for rule in rules if not _fires(rule, where)]
    assert dead == []


def _fires(rule: str, where: str) -> bool:
    folder = where.removesuffix("/*")
    if not (ROOT / folder).exists():
        return False
    ruff = Path(sys.executable).with_name("ruff")
    ran = subprocess.run(
        [
            ruff,
            "check",
            "--isolated",
            "--no-cache",
            "--quiet",
            "--select",
            rule,
            "--target-version",
            "py311",
            folder,
        ],
        cwd=ROOT,
        capture_output=True,
        check=False,
        timeout=60,
    )
    return ran.returncode == 1
