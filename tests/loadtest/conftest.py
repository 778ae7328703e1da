"""The front ends that a black-box test holds to the same promises, and the load clients."""

import pytest

from loadtest.front_ends import FRONT_ENDS, available_front_ends
from loadtest.load.load_clients import GRPCIO, IS_NATIVE_HERE, NATIVE


@pytest.fixture(scope="module", params=FRONT_ENDS)
def front_end(request: pytest.FixtureRequest) -> str:
    """Each front end in turn; one that cannot be started here is skipped, which is said."""
    if request.param not in available_front_ends():
        pytest.skip(f"the {request.param} front end is not installed here")
    return str(request.param)


@pytest.fixture(params=[NATIVE, GRPCIO])
def client(request: pytest.FixtureRequest) -> str:
    """Each load client in turn."""
    if request.param == NATIVE and not IS_NATIVE_HERE:
        pytest.skip("the native load client is not installed here")
    return str(request.param)
