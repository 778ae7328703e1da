"""Labels a folder or a Parquet file of pictures into one file: `atelier classify --out labels.parquet pictures/`.

What is in memory is bounded, however many pictures there are: a few hundred a thread, and the labels of one row group.
"""

import argparse
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import pyarrow as pa
from tqdm import tqdm

from atelier.bulk.labeller import Labeller
from atelier.bulk.sources import source_from
from atelier.bulk.writers import check_out, written
from atelier.classify import connect, reading_from
from atelier.errors import BadDataError, UsageError
from atelier.program import say

TIMEOUT_S = 30.0  # of a request: it may hold 64 large photographs
NUM_THREADS = 4  # requests under way: the server batches them, and decodes pictures with all its cores


def main(options: argparse.Namespace) -> int:
    """Writes the file. Raises BadDataError BAD_PICTURES if some have no label; the column `error` says why."""
    if len(options.files) != 1 or options.out is None:
        cure = "atelier classify --out labels.parquet pictures/"
        raise UsageError("BAD_BULK", "--out takes one folder or Parquet file", cure)
    check_out(options.out)
    source = source_from(options.files[0])
    timeout_s = TIMEOUT_S if options.timeout_s is None else options.timeout_s
    labeller = partial(Labeller, partial(connect, options), source, reading=reading_from(options), timeout_s=timeout_s)
    num_all, num_bad = source.count(), 0
    if num_all == 0:
        cure = "PNG, JPEG and WebP are found by their suffix"
        raise BadDataError("NO_PICTURES", f"{source.path} holds no picture", cure)
    if options.ray is None:
        tables = labelled_by_threads(labeller(), source.tables())
    else:
        from atelier.bulk.on_ray import labelled_on_ray  # needs the extra `ray`

        tables = labelled_on_ray(options.ray, labeller, source)
    with written(options.out) as write, tqdm(total=num_all, unit=" pictures", disable=None) as progress:
        for table in tables:
            write(table)
            progress.update(len(table))
            num_bad += len(table) - table["error"].null_count
    if num_bad:
        what = f"{num_bad} of {num_all} pictures have no label"
        raise BadDataError("BAD_PICTURES", what, f"the column error of {options.out} says why")
    say(f"{options.out} has the labels of {num_all} picture{'s' if num_all > 1 else ''}")
    return 0


def labelled_by_threads(labeller: Callable[[pa.Table], pa.Table], tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yields the tables labelled, in their order."""
    threads = ThreadPoolExecutor(NUM_THREADS)
    under_way: deque[Future[pa.Table]] = deque()
    try:
        for table in tables:
            under_way.append(threads.submit(labeller, table))
            if len(under_way) > NUM_THREADS:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)
