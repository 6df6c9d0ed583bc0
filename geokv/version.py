"""The version of this installation, in a module of its own: whoever does not ask for it need not look it up."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version_of

try:
    __version__ = _version_of("geokv")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
