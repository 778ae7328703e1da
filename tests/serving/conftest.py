"""What the tests of a server share: which front ends there are to hold to the same promises."""

from importlib.util import find_spec

import pytest

HAS_NATIVE = find_spec("atelier_native") is not None
needs_native = pytest.mark.skipif(not HAS_NATIVE, reason="the native front end is not installed")
FRONT_ENDS = ["grpcio", pytest.param("native", marks=needs_native)]


@pytest.fixture(params=FRONT_ENDS)
def front_end(request: pytest.FixtureRequest) -> str:
    """The value of --front-end."""
    chosen: str = request.param
    return chosen
