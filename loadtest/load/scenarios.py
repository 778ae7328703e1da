"""Scenarios under MLPerf's names, as LoadGen knows them: its settings and its schedule.

    single_stream   one request at a time
    multi_stream    one request at a time, of several images
    server          requests arrive when they like: a Poisson process at `target_qps`, whatever the server does
    offline         all images at once, in requests of many, so many in flight

See MLCommons' "MLPerf Inference Rules" and its LoadGen, which schedules the arrivals and draws the samples.
"""

from dataclasses import dataclass, replace
from typing import Any

import mlperf_loadgen
import numpy as np
from numpy.typing import NDArray

from loadtest.load.load_clients import BEST

SCENARIOS = ("single_stream", "multi_stream", "server", "offline")
LATE_SHARE = 0.1  # of the deadline: a request that cannot be sent by then was the generator's failure


@dataclass(frozen=True, kw_only=True)
class Load:
    """One measurement: which server, how it is asked, and for how long."""

    contender: str  # which of the servers that the generators know
    scenario: str
    duration_s: float
    images_per_request: int = 1
    target_qps: float = 0.0  # server: requests/s, of all processes together
    latency_p99_ms: float = 15.0  # what an answer within bounds is
    expected: float = 0.0  # single_stream, multi_stream: least latency, s; offline: images/s
    in_flight: int = 16  # offline: requests of one process
    timeout_s: float = 5.0  # of one request; `server`: from when it was due, sent or not
    late_s: float | None = None  # `server`: what cannot be sent within this of when it was due is not sent, but lost
    seed: int = 0
    client: str = BEST  # of `server` and `offline`: which load client sends the requests

    def share(self, rank: int, num_processes: int) -> "Load":
        """Returns what process `rank` of several offers. Poisson processes add up to one of the sum of their rates."""
        return replace(
            self,
            target_qps=self.target_qps / num_processes,
            expected=self.expected / (num_processes if self.scenario == "offline" else 1),
            seed=self.seed * num_processes + rank,
        )


def load_with_deadline(
    server: str, rate: float, deadline_s: float, duration_s: float, size: int = 1, *, late_share: float = LATE_SHARE
) -> Load:
    """Returns a Poisson process of requests of `size` images, each with this deadline from when it is due."""
    return Load(
        contender=server,
        scenario="server",
        target_qps=rate,
        duration_s=duration_s,
        images_per_request=size,
        latency_p99_ms=1e3 * deadline_s,
        timeout_s=deadline_s,
        late_s=late_share * deadline_s,
    )


def settings_from(load: Load) -> Any:
    """Makes LoadGen's TestSettings for one process's share of a load."""
    kinds = mlperf_loadgen.TestScenario
    settings = mlperf_loadgen.TestSettings()
    settings.scenario = {
        "single_stream": kinds.SingleStream,
        "multi_stream": kinds.MultiStream,
        "server": kinds.Server,
        "offline": kinds.Offline,
    }[load.scenario]
    settings.mode = mlperf_loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = round(load.duration_s * 1e3)
    settings.min_query_count = 1
    settings.qsl_rng_seed = settings.sample_index_rng_seed = settings.schedule_rng_seed = load.seed
    if load.scenario == "single_stream":
        settings.single_stream_expected_latency_ns = round(load.expected * 1e9)
    elif load.scenario == "multi_stream":
        settings.multi_stream_expected_latency_ns = round(load.expected * 1e9)
        settings.multi_stream_samples_per_query = load.images_per_request
    elif load.scenario == "server":
        settings.server_target_qps = load.target_qps
        settings.server_target_latency_ns = round(load.latency_p99_ms * 1e6)
        settings.server_target_latency_percentile = 0.99
        settings.server_coalesce_queries = True  # all that are due are handed over together
    else:
        settings.offline_expected_qps = load.expected
    return settings


def schedule_ns(seed: int, target_qps: float, num_requests: int) -> NDArray[np.int64]:
    """Returns when LoadGen's `server` scenario sends each request, (num_requests,), in ns after the first.

    LoadGen tells the system under test neither when a request was due nor how late it is, so its draw is repeated here:
    std::mt19937 and std::exponential_distribution, as GNU's libstdc++ computes them. That it is the same schedule is
    checked in every run, against LoadGen's own percentiles.
    """
    if num_requests == 0:
        return np.empty(0, np.int64)
    bits = np.random.RandomState(seed & 0xFFFFFFFF)._bit_generator.random_raw(2 * max(num_requests - 1, 0))
    low, high = bits[0::2].astype(np.float64), bits[1::2].astype(np.float64)
    uniform = (low + high * 2.0**32) / 2.0**64  # [0, 1)
    gaps_ns = -np.log1p(-uniform) / target_qps * 1e9
    return np.concatenate([[0], np.cumsum(gaps_ns.astype(np.int64))])[:num_requests]
