"""Who is up: probes of nodes that are silent or down, leaving a datacenter, and returning to it.

    a call is unanswered, and the node said nothing else for 500 ms  ->  probe it, and its quiet neighbours with it
    a probe fails, or a connection cannot be made                    ->  the node is down; probed again with back-off
    all nodes of the datacenter are down, or it cannot coordinate    ->  the datacenter is left for the next one
    more than half of its nodes answered for 5 s                     ->  returned to; the time doubles after a relapse

So a datacenter that becomes a black hole is left about 1.2 s after the first call into it, and one that refuses
connections at once.

Invariants: a probe asks for the ring, so each brings the newest one. At most one probe per node is under way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from geokv.protocol.client.batching import NEVER, Call
from geokv.protocol.client.desk import Desk
from geokv.protocol.client.messages import ClientEvent, RingAsk
from geokv.protocol.client.nodes import Datacenters, DatacenterState, NodeState


class Health:
    """`on_lost(nodes)`: take back what waits for these, they are not used now. `on_found()`: more can be done than
    before.
    """

    def __init__(
        self,
        desk: Desk,
        datacenters: Datacenters,
        on_lost: Callable[[Iterable[NodeState]], None],
        on_found: Callable[[], None],
    ) -> None:
        self._desk = desk
        self._datacenters = datacenters
        self._on_lost = on_lost
        self._on_found = on_found

    # --- nodes
    # ----------------------------------------------------------------------------------------------------------

    def answered(self, node: NodeState) -> None:
        """Any reply of the node: it is up."""
        node.last_reply_us = self._desk.now_us
        if node.is_up and node.has_answered:
            return
        was_up, node.is_up, node.has_answered, node.again_us = node.is_up, True, True, 0
        if not was_up:
            self._desk.effects.append(ClientEvent("node_up", node.dc.name, node.name))
            node.dc.refresh()
            self._mark_health(node.dc)
        self._on_found()

    def look_at(self, call: Call) -> None:
        """A call is still unanswered: is its node silent altogether?"""
        node = call.node
        if node is None or not node.is_up or node.probe is not None:
            return
        quiet_us = self._desk.settings.silence_us
        if self._desk.now_us - max(call.started_us, node.last_reply_us) < quiet_us:
            return
        self._desk.note("client.silence")
        for neighbour in node.dc.nodes.values():
            if neighbour.is_up and self._desk.now_us - neighbour.last_reply_us >= quiet_us:
                self.probe(neighbour)

    def probe(self, node: NodeState) -> None:
        if node.probe is None:
            desk = self._desk
            deadline_us = desk.now_us + desk.settings.probe_timeout_us
            node.probe = desk.start(node, node.address, None, [], RingAsk(desk.settings.dc), deadline_us)

    def judge_down(self, node: NodeState, reason: str) -> None:
        """The node cannot be reached. It is probed again until it answers or is gone from the ring."""
        desk, settings = self._desk, self._desk.settings
        node.reason = reason
        if node.probe is None:
            node.again_us = min(max(2 * node.again_us, settings.probe_again_us), settings.probe_again_us_max)
            delay = desk.backoff_us(node.again_us, settings.probe_again_us_max, 0)
            desk.at(desk.now_us + delay, self._probe_again, node)
        if not node.is_up:
            return
        node.is_up = False
        desk.effects.append(ClientEvent("node_down", node.dc.name, node.name, reason=reason))
        node.dc.refresh()
        self._mark_health(node.dc)
        if not node.dc.live:
            self.leave(node.dc, f"none of its nodes can be reached; {node.name}: {reason}")
        self._on_lost((node,))

    def _probe_again(self, node: NodeState) -> None:
        if not node.is_up and self._datacenters.nodes.get(node.name) is node:
            self.probe(node)

    # --- datacenters
    # ------------------------------------------------------------------------------------------------------

    def note_trouble(self, dc: DatacenterState) -> None:
        """A node answered that no owner can coordinate. Several in a row over some time: the datacenter is left."""
        now_us, settings = self._desk.now_us, self._desk.settings
        dc.trouble_since_us = min(dc.trouble_since_us, now_us)
        dc.troubles += 1
        lasted_us = now_us - dc.trouble_since_us
        if dc.troubles >= settings.leave_after_failures and lasted_us >= settings.leave_after_us:
            self.leave(dc, f"its nodes answer, but could not coordinate for {lasted_us // 1000} ms")

    def note_success(self, dc: DatacenterState) -> None:
        dc.trouble_since_us = NEVER
        dc.troubles = 0

    def leave(self, dc: DatacenterState, reason: str) -> None:
        """Use the next datacenter from now on, where there is one."""
        datacenters, now_us, settings = self._datacenters, self._desk.now_us, self._desk.settings
        if dc.is_left or len(datacenters.order) < 2 or dc not in datacenters.order:
            return
        was_current = datacenters.current() is dc
        is_relapse = now_us - dc.returned_us < settings.relapse_us
        longer_us = min(2 * dc.failback_us, settings.failback_us_max)
        dc.failback_us = longer_us if is_relapse else settings.failback_us
        dc.is_left = True
        dc.left_us = now_us
        self.note_success(dc)
        self._mark_health(dc)
        current = datacenters.current()
        if was_current and current is not dc:
            self._desk.effects.append(ClientEvent("failover", current.name, from_dc=dc.name, reason=reason))
        self._check_left(dc)
        self._on_lost(dc.nodes.values())

    def _mark_health(self, dc: DatacenterState) -> None:
        if not dc.is_healthy:
            dc.healthy_since_us = NEVER
        elif dc.healthy_since_us == NEVER or dc.healthy_since_us < dc.left_us:
            dc.healthy_since_us = self._desk.now_us

    def _check_left(self, dc: DatacenterState) -> None:
        """Probe a datacenter that was left, and return to it when it has been healthy for long enough."""
        if not dc.is_left or self._datacenters.by_name.get(dc.name) is not dc:
            return
        desk = self._desk
        self._mark_health(dc)
        healthy_for_us = desk.now_us - dc.healthy_since_us
        if healthy_for_us >= dc.failback_us:
            self._return_to(dc)
            return
        for node in dc.live:
            self.probe(node)
        left_us = dc.failback_us - healthy_for_us
        desk.at(desk.now_us + min(left_us, desk.settings.probe_left_us), self._check_left, dc)

    def _return_to(self, dc: DatacenterState) -> None:
        before = self._datacenters.current()
        dc.is_left = False
        dc.returned_us = self._desk.now_us
        current = self._datacenters.current()
        if current is not before:
            event = ClientEvent("failback", current.name, from_dc=before.name, reason=f"healthy for {dc.failback_us / 1e6:g} s")
            self._desk.effects.append(event)
        self._on_found()
