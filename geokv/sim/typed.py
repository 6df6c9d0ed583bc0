"""What clients do in a namespace whose policy is not `lww`: drawn operations of its type, and what they remember of reads.

Every value, element and count names its operation, so that a model of the type, which knows nothing of dots, contexts and
cells, can say what must be there in the end (`typed_checkers`). A client hands back the context of its last read of a key,
however old that is by then; it remembers which values it read with it, and that is all that the model goes by.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from geokv.core.quorum import Consistency
from geokv.sim.clients import Ask, Batch, SdkClient, Update
from geokv.sim.history import Operation

if TYPE_CHECKING:
    from geokv.sim.workload import WorkloadOptions

KEYS: Final = 6
_LEVELS: Final = (*([Consistency.QUORUM] * 4), Consistency.ONE, Consistency.TWO, Consistency.ALL, Consistency.DEFAULT)


class TypedWork:
    """Draws operations of one policy."""

    def __init__(self, policy: str, rng: random.Random, options: WorkloadOptions) -> None:
        self.policy = policy
        self._rng = rng
        self._options = options
        self._read: dict[tuple[str, bytes], Operation] = {}  # (client, key) -> its last get
        self._values = 0

    def ask(self, client: SdkClient, then: Callable[[], None]) -> None:
        """One operation of that client; `then` runs when it was told something."""
        rng = self._rng
        key = f"{self.policy}/{rng.randrange(KEYS)}".encode()
        ask = Ask(self.policy, rng.choice(_LEVELS))

        def told(batch: Batch) -> None:
            for operation in batch.operations:
                if operation.kind == "get" and operation.replicas:
                    self._read[client.name, operation.key] = operation
            then()

        if rng.random() < 0.4:
            client.show(self.policy, [key], ask, told)
        else:
            client.update(self.policy, [_DRAWS[self.policy](self, client, key)], ask, told)

    def _new(self, client: SdkClient) -> bytes:
        self._values += 1
        return f"{client.name}:{self._values}".encode()

    def _seen(self, client: SdkClient, key: bytes) -> tuple[bytes, frozenset[bytes] | None]:
        """What the client hands back of its last read of the key: the context, and the values that it read with it."""
        read = self._read.get((client.name, key))
        if read is None or not read.context:
            return b"", None
        return read.context, frozenset(read.shown or ())

    def _sibling(self, client: SdkClient, key: bytes) -> Update:
        context, saw = self._seen(client, key) if self._rng.random() < 0.85 else (b"", None)
        if self._rng.random() < 0.08:
            return Update(key, "delete", None, 0, context, saw)
        return Update(key, "put", self._new(client), 0, context, saw)

    def _count(self, client: SdkClient, key: bytes) -> Update:
        if self._rng.random() < 0.04:
            return Update(key, "reset")
        return Update(key, "increment", amount=self._rng.randint(1, 9))

    def _element(self, client: SdkClient, key: bytes) -> Update:
        read = self._read.get((client.name, key))
        if read is not None and read.shown and self._rng.random() < 0.35:
            return Update(key, "remove", self._rng.choice(sorted(read.shown)))
        return Update(key, "add", self._new(client))

    def _spend(self, client: SdkClient, key: bytes) -> Update:
        if self._rng.random() < 0.25:
            return Update(key, "increment", amount=self._rng.randint(1, 9))
        return Update(key, "decrement", amount=self._rng.randint(1, 4))


_DRAWS: Final[Mapping[str, Callable[[TypedWork, SdkClient, bytes], Update]]] = {
    "counter_bounded": TypedWork._spend,
    "counter_pn": TypedWork._count,
    "set_aw": TypedWork._element,
    "siblings": TypedWork._sibling,
}
TYPED: Final = tuple(sorted(_DRAWS))
BORN_AS: Final[Mapping[str, str]] = {"set_aw": "set_grow", "siblings": "lww"}
"""What some runs make the namespace as, to change its policy in the middle."""
