"""The layer contract of pyproject.toml, checked against small packages in which it is kept or broken."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("cli", "backup", "lab", "server", "client", "runtime", "sim", "node", "protocol", "storage", "core", "v1")
MODULES = ("__main__", "errors", "testing", "version")


def lint(root: Path) -> tuple[int, str]:
    """Run import-linter over the package in `root` with the contracts of the real pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text()
    (root / "pyproject.toml").write_text(text)
    ran = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return ran.returncode, ran.stdout + ran.stderr


@pytest.fixture
def package(tmp_path: Path) -> Path:
    root = tmp_path / "geokv"
    for name in PACKAGES:
        (root / name).mkdir(parents=True)
        (root / name / "__init__.py").touch()
    (root / "__init__.py").touch()
    for name in MODULES:
        (root / f"{name}.py").touch()
    return root


def test_the_contract_holds_where_layers_look_down(package: Path) -> None:
    """Imports in the direction of the design pass, whatever they skip."""
    (package / "cli" / "status.py").write_text("import geokv.lab, geokv.core, geokv.errors\n")
    (package / "runtime" / "host.py").write_text("import asyncio, grpc, geokv.node, geokv.v1\n")
    (package / "storage" / "disk.py").write_text("import os, threading, geokv.core\n")
    code, said = lint(package.parent)
    assert code == 0, said


BROKEN = [
    ("core/record.py", "import geokv.storage\n"),
    ("node/node.py", "import geokv.runtime\n"),
    ("runtime/host.py", "import geokv.sim\n"),
    ("sim/host.py", "import geokv.runtime\n"),
    ("server/boot.py", "import geokv.client\n"),
    ("client/sdk.py", "import geokv.server\n"),
    ("protocol/shipper.py", "import geokv.storage\n"),
    ("storage/wal.py", "import geokv.protocol\n"),
    ("core/ring.py", "import geokv.v1\n"),
    ("lab/lab.py", "import geokv.cli\n"),
    ("lab/lab.py", "import geokv.backup\n"),
    ("errors.py", "import geokv.core\n"),
    ("protocol/writer.py", "import asyncio\n"),
    ("core/hlc.py", "import time\n"),
    ("node/node.py", "import logging\n"),
    ("node/wire.py", "import geokv.v1\n"),
    ("core/cell.py", "from google.protobuf import message\n"),
    ("storage/disk.py", "import asyncio\n"),
    ("sim/network.py", "import socket\n"),
]


@pytest.mark.parametrize(("module", "text"), BROKEN, ids=[f"{module}: {text.strip()}" for module, text in BROKEN])
def test_an_import_that_breaks_the_design_is_named(package: Path, module: str, text: str) -> None:
    """Each planted import is found, and the report names where it stands."""
    (package / module).write_text(text)
    code, said = lint(package.parent)
    assert code == 1
    assert "geokv." + module.removesuffix(".py").replace("/", ".") in said


def test_a_new_top_level_module_must_find_its_place(package: Path) -> None:
    """The contract is exhaustive: what stands in no layer fails it."""
    (package / "helpers.py").touch()
    code, said = lint(package.parent)
    assert code == 1
    assert "helpers" in said


def test_every_layer_of_the_contract_exists() -> None:
    """A layer that was renamed must not leave a contract that checks nothing."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract for contract in contracts if contract["type"] == "layers")["layers"]
    for name in (name.strip() for layer in layers for name in layer.split("|")):
        home = ROOT / "geokv" / name
        assert home.is_dir() or home.with_suffix(".py").exists(), f"layer {name} has no module"
