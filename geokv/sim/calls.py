"""Clients' calls to nodes over the simulated network: one request there, one reply back, or a failure of some kind.

    the process does not run      REFUSED, as soon as the refusal is back
    the machine is off, or the    NOT_SENT when the time to connect is over: the request was never there
      link was cut at the start
    request or reply lost         TIMEOUT: it may have been done
    the process ended meanwhile   BROKEN: it may have been done

Not here: what the client does about it (the SDK's machine).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from geokv.protocol.client.messages import Failure, RingAsk, RingMember, RingTold
from geokv.protocol.requests import Reply, Request
from geokv.sim.host import Host
from geokv.sim.network import Network
from geokv.sim.schedule import SECOND, Schedule, Timer

CONNECT_US: Final = 1 * SECOND

Done = Callable[[Reply | RingTold | None, Failure | None], None]


class Call:
    """One call under way."""

    __slots__ = ("done", "has_arrived", "host_boot", "host_call", "is_over", "node", "timer")

    def __init__(self, node: str, done: Done) -> None:
        self.node = node
        self.done = done
        self.is_over = False
        self.has_arrived = False
        self.timer: Timer | None = None
        self.host_call: int | None = None
        self.host_boot = 0


class Calls:
    """Makes calls for all clients of the world."""

    def __init__(
        self, schedule: Schedule, network: Network, hosts: Mapping[str, Host], ring: Callable[[str], RingTold]
    ) -> None:
        self._schedule = schedule
        self._network = network
        self._hosts = hosts
        self._ring = ring

    def call(self, client: str, node: str, request: Request | RingAsk, timeout_us: int, done: Done) -> Call:
        """Ask `node`; `done` is called exactly once unless the call is cancelled."""
        call = Call(node, done)
        cannot_connect = (
            self._network.is_cut(client, node) or self._network.is_cut(node, client) or not self._hosts[node].is_machine_up
        )
        if cannot_connect:
            call.timer = self._schedule.after(min(timeout_us, CONNECT_US), self._end, call, None, Failure.NOT_SENT)
            return call
        call.timer = self._schedule.after(timeout_us, self._time_out, client, call)
        self._network.carry(client, node, request, self._arrive, client, call)
        return call

    def cancel(self, client: str, call: Call) -> None:
        if not call.is_over:
            self._end(call, None, None)
            self._tell_gone(client, call)

    def _end(self, call: Call, reply: Reply | RingTold | None, failure: Failure | None) -> None:
        if call.is_over:
            return
        call.is_over = True
        if call.timer is not None:
            call.timer.cancel()
        if reply is not None or failure is not None:
            call.done(reply, failure)

    def _time_out(self, client: str, call: Call) -> None:
        self._tell_gone(client, call)
        self._end(call, None, Failure.TIMEOUT)

    def _tell_gone(self, client: str, call: Call) -> None:
        if call.host_call is not None:
            self._network.carry(client, call.node, call.host_call, self._gone, call)

    def _gone(self, call: Call, host_call: int) -> None:
        host = self._hosts[call.node]
        if host.boot == call.host_boot:
            host.call_gone(host_call)

    # --- at the node ------------------------------------------------------------------------------------------------

    def _arrive(self, client: str, call: Call, request: Request | RingAsk) -> None:
        host = self._hosts[call.node]
        if not host.is_machine_up or call.has_arrived:  # a transport does not double calls
            return
        call.has_arrived = True
        if not host.is_listening:
            self._network.carry(call.node, client, Failure.REFUSED, self._failed, call)
        elif call.is_over and isinstance(request, RingAsk):
            return
        elif isinstance(request, RingAsk):
            if host.is_responsive:
                self._network.carry(call.node, client, self._ring(call.node), self._replied, call)
        else:
            call.host_boot = host.boot
            call.host_call = host.ask(request, lambda reply: self._answered(client, call, reply))

    def _answered(self, client: str, call: Call, reply: Reply | None) -> None:
        if reply is None:
            self._network.carry(call.node, client, Failure.BROKEN, self._failed, call)
        else:
            self._network.carry(call.node, client, reply, self._replied, call)

    def _replied(self, call: Call, reply: Reply | RingTold) -> None:
        self._end(call, reply, None)

    def _failed(self, call: Call, failure: Failure) -> None:
        self._end(call, None, failure)


def ring_told(members: list[RingMember], partitions: int, replicas: dict[str, int], node: str) -> RingTold:
    """The answer to RingAsk: in the simulated world everybody reaches a node by its name."""
    return RingTold("sim", partitions, 1, members, replicas, node)
