"""Runs a program that knows nothing of labs, and ends it when the process that wanted it is gone.

    python -m geokv.lab.wan.guarded --parent-fd 7 -- toxiproxy-server -host 127.0.0.1 -port 8474

The guard waits for the first of three: the pipe behind `--parent-fd` closes, a signal to stop, the program
ends by itself. On Linux the program also ends when the guard itself is killed.
"""

import argparse
import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import threading

TERMINATE_TIMEOUT_S = 5.0
PR_SET_PDEATHSIG = 1


def main(arguments: list[str] | None = None) -> int:
    """Run the program until one of the three happens; its exit code, 0 where the guard ended it."""
    parser = argparse.ArgumentParser(prog="python -m geokv.lab.wan.guarded", description=__doc__.partition("\n")[0])
    parser.add_argument("--parent-fd", type=int, required=True, help="file descriptor of a pipe held by the parent")
    parser.add_argument("command", nargs="+", help="the program and its arguments, after --")
    options = parser.parse_args(arguments)
    stop_read, stop_write = os.pipe()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.write(stop_write, b"s"))
    try:
        # The guard has one thread at this point, which is what makes preexec_fn safe.
        child = subprocess.Popen(options.command, preexec_fn=_die_with_guard)  # noqa: PLW1509
    except OSError as error:
        sys.stderr.write(f"cannot run {options.command[0]}: {error}\n")
        return 127
    threading.Thread(target=_report_end, args=(child, stop_write), daemon=True).start()
    _wait_for_any(options.parent_fd, stop_read)
    return _end(child)


def _report_end(child: subprocess.Popen[bytes], stop_write: int) -> None:
    child.wait()
    os.write(stop_write, b"e")


def _wait_for_any(*read_fds: int) -> None:
    with selectors.DefaultSelector() as selector:
        for read_fd in read_fds:
            selector.register(read_fd, selectors.EVENT_READ)
        selector.select()


def _end(child: subprocess.Popen[bytes]) -> int:
    code = child.poll()
    if code is not None:
        return code
    child.terminate()
    try:
        child.wait(TERMINATE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    return 0


def _die_with_guard() -> None:
    """Ask the kernel for a SIGKILL when the guard is gone; other systems than Linux have no such thing."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
