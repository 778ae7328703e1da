"""The front ends that a black-box test holds to the same promises."""

import pytest

from loadtest.front_ends import FRONT_ENDS, available_front_ends


@pytest.fixture(scope="module", params=FRONT_ENDS)
def front_end(request: pytest.FixtureRequest) -> str:
    """Each front end in turn; one that cannot be started here is skipped, which is said."""
    if request.param not in available_front_ends():
        pytest.skip(f"the {request.param} front end is not installed here")
    return str(request.param)
