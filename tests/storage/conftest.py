"""What tests of storage share."""

import pytest

from tests.storage import modes


@pytest.fixture(scope="module", params=modes.MODES)
def mode(request):
    """Plain, and encrypted; see `tests.storage.modes`."""
    modes.enter(request.param)
    yield request.param
    modes.enter("plain")
