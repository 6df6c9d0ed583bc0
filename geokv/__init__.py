"""geokv: a key-value store that lives in several datacenters at once.

The public names are found on first use: `import geokv` alone loads neither gRPC nor a server nor a lab.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from geokv.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "__version__"]

try:
    __version__ = version("geokv")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

_HOME_OF_NAME = {"AsyncClient": "geokv.client", "Client": "geokv.client"}


def __getattr__(name: str) -> object:
    """Load a public name from the module that defines it and keep it, so that the next use costs nothing."""
    home = _HOME_OF_NAME.get(name)
    if home is None:
        raise AttributeError(f"module 'geokv' has no attribute {name!r}")
    found: object = getattr(import_module(home), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """List the public names too, loaded or not."""
    return sorted({*globals(), *__all__})
