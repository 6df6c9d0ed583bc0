import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from tests.client.fake_node import FakeCluster


class ClusterThread:
    """A FakeCluster on a loop of its own, for tests of the client for threads."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.cluster = FakeCluster(sizes)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def do(self, act: Callable[[], Any]) -> None:
        """Run something on the cluster's loop."""

        async def work() -> None:
            act()

        self.run(work())

    def start(self) -> None:
        self._thread.start()
        self.run(self.cluster.__aenter__())

    def stop(self) -> None:
        self.run(self.cluster.__aexit__())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


@pytest.fixture
def cluster_thread() -> Iterator[ClusterThread]:
    thread = ClusterThread({"eu": 3, "us": 2})
    thread.start()
    yield thread
    thread.stop()
