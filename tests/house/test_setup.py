"""The set-up script: which interpreter it takes, when it works and when it does nothing, and what it says.

Most tests run the real script in a copy of the checkout, with a stand-in interpreter: a program that answers
the script's question, "makes" an environment and writes down what was asked of it. The last ones, for
`--samples=check`, use real interpreters and really install.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("sh", "cat", "dirname", "mv", "rm", "sed", "cp", "mkdir", "flock", "make", "sleep", "touch")
PARTS = ("pyproject.toml", "constraints.txt", "LICENSE", "README.md", "scripts", "geokv", "proto", "topology")

# What an interpreter is to the script: it is probed with -c, makes an environment, and runs pip there.
STAND_IN = """#!/bin/sh
case "$1 ${{2-}}" in
    '-c '*)     [ -n "$2" ] && printf '%s\\n' '{version}|{has_venv}|{itself}'; exit 0 ;;
    '-m venv')  echo venv >>'{log}'; mkdir -p "$3/bin" && cp '{itself}' "$3/bin/python" ;;
    '-m pip')   echo "$*" >>'{log}'
                case "$*" in {hook}
                esac ;;
esac
"""


@dataclass
class Checkout:
    """A copy of the checkout, and a PATH that holds nothing but the tools and interpreters put there."""

    root: Path
    bin: Path
    log: Path

    def interpreter(self, name: str, version: str, has_venv: bool = True, hook: str = "*) ;;") -> Path:
        path = self.bin / name
        path.write_text(
            STAND_IN.format(version=version, has_venv="yes" if has_venv else "no", itself=path, log=self.log, hook=hook)
        )
        path.chmod(0o755)
        return path

    def program(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def start(self, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.root / "scripts" / "setup")],
            env={"PATH": str(self.bin), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def setup(self, **environment: str) -> tuple[int, str]:
        running = self.start(**environment)
        said, _ = running.communicate(timeout=30)
        return running.returncode, said

    def asked(self) -> list[str]:
        """Return what interpreters were asked for since the last time."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    root = tmp_path / "checkout with a space"
    root.mkdir()
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, root / part, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, root / part)
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        if found is not None:
            (tools / tool).symlink_to(found)
    return Checkout(root, tools, tmp_path / "asked")


def wait_until(is_so: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


def test_the_first_interpreter_that_is_new_enough_is_taken(checkout: Checkout) -> None:
    """python3.11 comes before python3.12, whatever else is there."""
    checkout.interpreter("python3.12", "3.12.1")
    checkout.interpreter("python3.11", "3.11.9")
    checkout.interpreter("python3", "3.13.0")
    code, said = checkout.setup()
    assert (code, "Python 3.11.9" in said) == (0, True), said


def test_a_shim_that_fails_is_passed_over(checkout: Checkout) -> None:
    """A name on the PATH is not an interpreter until it has run."""
    checkout.program("python3.11", "echo 'pyenv: python3.11: command not found' >&2; exit 127")
    checkout.program("python3.12", "exit 1")
    checkout.interpreter("python3.13", "3.13.0")
    code, said = checkout.setup()
    assert (code, "python3.13 (Python 3.13.0)" in said) == (0, True), said


def test_an_interpreter_without_venv_is_passed_over(checkout: Checkout) -> None:
    """One that cannot make an environment is not taken while another can."""
    checkout.interpreter("python3.11", "3.11.9", has_venv=False)
    checkout.interpreter("python3.12", "3.12.1")
    code, said = checkout.setup()
    assert (code, "Python 3.12.1" in said) == (0, True), said


def test_where_venv_is_missing_the_package_is_named(checkout: Checkout) -> None:
    """The message names the very package of that Python."""
    checkout.interpreter("python3", "3.12.7", has_venv=False)
    code, said = checkout.setup()
    assert code == 1
    assert "python3.12-venv" in said
    assert not (checkout.root / ".venv").exists()


def test_where_no_python_is_new_enough_the_package_is_named(checkout: Checkout) -> None:
    """No interpreter at all, or only old ones: what to install, and the way to name one."""
    checkout.program("python3", "exit 1")
    code, said = checkout.setup()
    assert code == 1
    assert "python3.11-venv" in said
    assert "PYTHON=" in said


def test_the_override_is_taken_or_refused_but_never_replaced(checkout: Checkout) -> None:
    """PYTHON= names the interpreter; one that does not run is an error, not a reason to take another."""
    checkout.interpreter("python3.11", "3.11.9")
    other = checkout.interpreter("other", "3.13.1")
    code, said = checkout.setup(PYTHON=str(other))
    assert (code, "Python 3.13.1" in said) == (0, True), said
    code, said = checkout.setup(PYTHON="no-such-python")
    assert (code, "PYTHON=no-such-python" in said) == (1, True), said


def test_a_second_run_does_nothing_and_says_nothing(checkout: Checkout) -> None:
    """What is up to date is left alone, in well under a second."""
    checkout.interpreter("python3.11", "3.11.9")
    assert checkout.setup()[0] == 0
    assert checkout.asked()
    started = time.monotonic()
    assert checkout.setup() == (0, "")
    assert time.monotonic() - started < 1
    assert checkout.asked() == []


def test_the_environment_is_made_again_when_python_changed(checkout: Checkout) -> None:
    """A new patch version of the same interpreter is another Python."""
    checkout.interpreter("python3.11", "3.11.9")
    checkout.setup()
    checkout.asked()
    checkout.interpreter("python3.11", "3.11.10")
    assert checkout.setup()[0] == 0
    assert "venv" in checkout.asked()


def test_the_environment_is_made_again_when_the_constraints_changed(checkout: Checkout) -> None:
    """Another exact version anywhere starts from an empty environment."""
    checkout.interpreter("python3.11", "3.11.9")
    checkout.setup()
    checkout.asked()
    with (checkout.root / "constraints.txt").open("a") as constraints:
        constraints.write("one-more==1.0\n")
    assert checkout.setup()[0] == 0
    assert "venv" in checkout.asked()


def test_a_changed_pyproject_is_installed_into_what_is_there(checkout: Checkout) -> None:
    """A lint rule that changed must not cost a new environment, a new dependency must be installed."""
    checkout.interpreter("python3.11", "3.11.9")
    checkout.setup()
    checkout.asked()
    with (checkout.root / "pyproject.toml").open("a") as pyproject:
        pyproject.write("# changed\n")
    assert checkout.setup()[0] == 0
    asked = checkout.asked()
    assert "venv" not in asked
    assert any("--editable" in line for line in asked)


def test_a_setup_that_was_killed_is_made_again_from_nothing(checkout: Checkout, tmp_path: Path) -> None:
    """Half an environment is never taken for a whole one."""
    waiting = tmp_path / "waiting"
    checkout.interpreter("python3.11", "3.11.9", hook=f"*editable*) touch '{waiting}'; sleep 60 ;;")
    running = checkout.start()
    wait_until(waiting.exists)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate(timeout=10)
    (checkout.root / ".venv" / "half").touch()
    checkout.asked()
    checkout.interpreter("python3.11", "3.11.9")
    assert checkout.setup()[0] == 0
    assert "venv" in checkout.asked()
    assert not (checkout.root / ".venv" / "half").exists()


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock is not installed: set-ups are not kept apart")
def test_of_two_setups_at_once_the_second_waits_and_finds_the_work_done(checkout: Checkout) -> None:
    """Both succeed, one environment is made."""
    checkout.interpreter("python3.11", "3.11.9")
    with (checkout.root / ".venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        both = [checkout.start(), checkout.start()]
        for running in both:
            assert running.stdout is not None
            assert "waiting for it" in running.stdout.readline()
    for running in both:
        running.communicate(timeout=30)
        assert running.returncode == 0
    assert checkout.asked().count("venv") == 1


def test_without_uvloop_the_setup_succeeds_and_says_so(checkout: Checkout) -> None:
    """uvloop is used where it installs, and missed nowhere."""
    checkout.interpreter("python3.11", "3.11.9", hook="*uvloop*) exit 1 ;;")
    code, said = checkout.setup()
    assert (code, "uvloop does not install here" in said) == (0, True), said
    assert checkout.setup() == (0, "")


def test_a_failed_installation_fails_the_setup_and_is_tried_again(checkout: Checkout) -> None:
    """An index that is not reachable today leaves nothing behind that looks whole."""
    checkout.interpreter("python3.11", "3.11.9", hook="*dev*) exit 1 ;;")
    code, said = checkout.setup()
    assert (code, "could not install the dependencies" in said) == (1, True), said
    checkout.interpreter("python3.11", "3.11.9")
    assert checkout.setup()[0] == 0


def test_where_make_is_missing_the_package_and_the_other_way_are_named(checkout: Checkout) -> None:
    """make is a convenience: its absence is said once and stops nothing."""
    (checkout.bin / "make").unlink()
    checkout.interpreter("python3.11", "3.11.9")
    code, said = checkout.setup()
    assert (code, "package make" in said, "scripts/test" in said) == (0, True, True), said


def real_interpreters() -> list[str]:
    """List the interpreters of 3.11 to 3.13 that run here, this one first."""
    found = [sys.executable]
    asked = "import sys; print(sys._base_executable); sys.exit(sys.version_info < (3, 11))"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    for minor in ("3.11", "3.12", "3.13"):
        names = [f"python{minor}", *map(str, sorted(pyenv.glob(f"{minor}.*/bin/python")))]
        for name in names:
            try:
                ran = subprocess.run([name, "-c", asked], capture_output=True, text=True, check=False)
            except OSError:
                continue
            if ran.returncode == 0:
                found.append(ran.stdout.strip())
                break
    return sorted(set(found[1:])) or found


# Really installs, from the package index: half a minute each.
@pytest.mark.samples_from("check")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("python", real_interpreters())
def test_the_constraints_install_and_the_package_imports(checkout: Checkout, python: str) -> None:
    """One constraints.txt serves every Python that we name, and the second run is quick."""
    environment = {**os.environ, "PYTHON": python}
    setup = [str(checkout.root / "scripts" / "setup")]
    subprocess.run(setup, env=environment, check=True, timeout=240)
    pip_check = [str(checkout.root / ".venv/bin/python"), "-m", "pip", "check"]
    subprocess.run(pip_check, check=True, timeout=60)
    imports = "import geokv, grpc, mmh3, zstandard, google.protobuf, geokv.v1.kv_pb2; print(geokv.__file__)"
    ran = subprocess.run(
        [str(checkout.root / ".venv/bin/python"), "-W", "error", "-c", imports],
        cwd="/",
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.stdout.startswith(str(checkout.root))
    started = time.monotonic()
    subprocess.run(setup, env=environment, check=True, timeout=10)
    assert time.monotonic() - started < 1


# Installs the set-up and the compiler from the package index: about a minute.
@pytest.mark.samples_from("check")
@pytest.mark.timeout(400)
def test_the_drift_check_sees_generated_code_that_was_edited(checkout: Checkout) -> None:
    """What proto/ generates passes; one changed line, and one file too many, do not."""
    drift = [str(checkout.root / "scripts" / "proto-drift")]
    subprocess.run(drift, check=True, timeout=300)
    generated = checkout.root / "geokv/v1/kv_pb2.pyi"
    whole = generated.read_text()
    generated.write_text(whole + "# edited\n")
    assert subprocess.run(drift, check=False, timeout=60).returncode == 1
    generated.write_text(whole)
    (checkout.root / "geokv/v1/left_pb2.py").touch()
    assert subprocess.run(drift, check=False, timeout=60).returncode == 1
