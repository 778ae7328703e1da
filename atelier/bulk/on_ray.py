"""Runs the labeller on Ray Data: an actor for each core of the cluster, each with a connection of its own.

The nodes have this package, and reach the servers; a folder lies where all of them see it under the same path.
"""

import socket
from collections.abc import Callable, Iterator

import pyarrow as pa

from atelier.bulk.labeller import Labeller
from atelier.bulk.sources import ROWS_AT_ONCE, Folder, Source
from atelier.errors import ResourceUnavailableError
from atelier.program import how_to_install

try:
    import ray
    import ray.data
    from ray.exceptions import RayError
except ModuleNotFoundError as error:
    what = f"--ray needs the package {error.name}, which is not installed"
    raise ResourceUnavailableError("NOT_INSTALLED", what, how_to_install("bulk,ray")) from None

CONNECT_S = 5.0


def labelled_on_ray(address: str, labeller: Callable[[], Labeller], source: Source) -> Iterator[pa.Table]:
    """Yields the tables labelled, in any order. Raises ResourceUnavailableError if there is no cluster, or it fails."""
    try:
        _check_reached(address)
        ray.init(address, log_to_driver=False, logging_level="warning")
    except OSError as error:
        raise ResourceUnavailableError("NO_RAY", f"no Ray cluster answers at {address}", why=str(error)) from None
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        num_actors = max(1, int(ray.cluster_resources().get("CPU", 1)))
        labelled = _dataset(source).map_batches(
            _Actor,
            fn_constructor_args=(labeller,),
            batch_size=ROWS_AT_ONCE,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=num_actors),
        )
        yield from labelled.iter_batches(batch_size=None, batch_format="pyarrow")
    except RayError as error:
        what, why = f"the cluster at {address} could not label them", str(error).strip().splitlines()[-1]
        raise ResourceUnavailableError("RAY_FAILED", what, why=why) from None
    finally:
        ray.shutdown()


def _check_reached(address: str) -> None:
    """Raises OSError if nobody listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdecimal():
        socket.create_connection((host, int(port)), CONNECT_S).close()


def _dataset(source: Source) -> ray.data.Dataset:
    if isinstance(source, Folder):
        return ray.data.from_arrow(list(source.tables()))  # of paths
    return ray.data.read_parquet(str(source.path))


class _Actor:
    def __init__(self, labeller: Callable[[], Labeller]) -> None:
        self._labeller = labeller()

    def __call__(self, table: pa.Table) -> pa.Table:
        return self._labeller(table)
