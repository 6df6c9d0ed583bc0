"""geokv: a key-value store that lives in several datacenters at once.

    from geokv import Client

    with Client("127.0.0.1:7101", dc="eu-west", failover=["us-east"]) as kv:
        carts = kv.namespace("carts")
        carts.put("user:1", b"...", consistency="QUORUM", ttl=3600)
        print(carts.get("user:1").value)

The public names are found on first use, so that `import geokv` alone loads neither gRPC nor a
server nor a lab.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from geokv.client import (
        Achieved,
        AsyncBatch,
        AsyncClient,
        AsyncNamespace,
        Batch,
        CellResult,
        Client,
        ClientEvent,
        FailedItem,
        GetResult,
        Namespace,
        OperationId,
        PutResult,
        Results,
    )
    from geokv.core.quorum import Consistency
    from geokv.errors import (
        Ambiguous,
        ClientClosed,
        Conflicting,
        DeadlineExceeded,
        GeokvError,
        InvalidRequest,
        NamespaceExists,
        NamespaceNotFound,
        NotEnoughRights,
        Overloaded,
        Partial,
        Stale,
        Unavailable,
    )
    from geokv.protocol.requests import Outcome
    from geokv.version import __version__

__all__ = [
    "Achieved",
    "Ambiguous",
    "AsyncBatch",
    "AsyncClient",
    "AsyncNamespace",
    "Batch",
    "CellResult",
    "Client",
    "ClientClosed",
    "ClientEvent",
    "Conflicting",
    "Consistency",
    "DeadlineExceeded",
    "FailedItem",
    "GeokvError",
    "GetResult",
    "InvalidRequest",
    "Namespace",
    "NamespaceExists",
    "NamespaceNotFound",
    "NotEnoughRights",
    "OperationId",
    "Outcome",
    "Overloaded",
    "Partial",
    "PutResult",
    "Results",
    "Stale",
    "Unavailable",
    "__version__",
]

_NAMES_OF_HOME = {
    "geokv.client": (
        "Achieved",
        "AsyncBatch",
        "AsyncClient",
        "AsyncNamespace",
        "Batch",
        "CellResult",
        "Client",
        "ClientEvent",
        "FailedItem",
        "GetResult",
        "Namespace",
        "OperationId",
        "PutResult",
        "Results",
    ),
    "geokv.core.quorum": ("Consistency",),
    "geokv.errors": (
        "Ambiguous",
        "ClientClosed",
        "Conflicting",
        "DeadlineExceeded",
        "GeokvError",
        "InvalidRequest",
        "NamespaceExists",
        "NamespaceNotFound",
        "NotEnoughRights",
        "Overloaded",
        "Partial",
        "Stale",
        "Unavailable",
    ),
    "geokv.protocol.requests": ("Outcome",),
    "geokv.version": ("__version__",),
}
_HOME_OF_NAME = {name: home for home, names in _NAMES_OF_HOME.items() for name in names}


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
