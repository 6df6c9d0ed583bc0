"""The SDK's own decisions as a pure machine: batching, routing by the cached ring, retries, failover, deadlines.

    machine.py     the machine: events in, effects out         health.py      probes, leaving a datacenter and returning
    batching.py    groups and calls, where batches are cut     bootstrap.py   finding the first ring
    nodes.py       the cached ring, who is up                  outcomes.py    from outcomes to errors
    operations.py  operations and interned options             messages.py    events and effects
    desk.py        what they share: timers, calls, effects     settings.py    timings with their reasons

The asyncio and thread hosts (geokv.client) and the simulator host this same machine.
"""

from geokv.protocol.client.machine import ClientMachine
from geokv.protocol.client.settings import ClientSettings

__all__ = ["ClientMachine", "ClientSettings"]
