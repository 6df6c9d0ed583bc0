"""The SDK: the client machine (geokv.protocol.client) hosted for asyncio and for threads, and the public API.

aio.py       AsyncClient, with the documentation     threads.py    Client: the same methods for threads
host.py      sockets and timers for the machine      wire.py       requests to bytes, statuses to failures
requests.py  what both handles have in common        arguments.py  checks of what callers pass
results.py   what callers get back                   codecs.py     values other than bytes
waiting.py   operations with whom to tell            lifetime.py   forks, and clients that were forgotten
operation_id.py   names for updates that callers try again themselves
"""

import logging

from geokv.client.aio import AsyncBatch, AsyncClient, AsyncNamespace
from geokv.client.operation_id import OperationId
from geokv.client.results import Achieved, CellResult, FailedItem, GetResult, PutResult, Results
from geokv.client.threads import Batch, Client, Namespace
from geokv.protocol.client.messages import ClientEvent

__all__ = [
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
]

logging.getLogger("geokv").addHandler(logging.NullHandler())
