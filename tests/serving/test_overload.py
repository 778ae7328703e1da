"""Load far past what the device can do: as much as at the peak is answered in time, and refusals are quick."""

import statistics

import numpy as np
import pytest

from loadtest.bench.open_loop import OpenLoad, offer
from loadtest.load.protocols import Classify, Reference
from loadtest.server_process import server_process
from tests.serving.conftest import needs_native
from tests.serving.fake_backend import image

IMAGE_S = 0.002  # on the device: a peak of 500 images a second, which costs a busy machine little to offer many times
PEAK = 1 / IMAGE_S
LABELS = np.arange(1, 10)
REFERENCE = Reference(
    images=np.concatenate([image(int(label)) for label in LABELS]),
    logits=np.eye(10, dtype=np.float32)[LABELS] * 9,
    atol=1e-5,
)


@pytest.mark.timing
@needs_native
@pytest.mark.parametrize("deadline_s", [0.1, 0.02])
@pytest.mark.parametrize("times", [2, 5, 10])
def test_goodput_stays_at_the_peak_however_much_is_offered(deadline_s: float, times: int) -> None:
    settings = ("--port", "0", "--front-end", "native", "--image-s", str(IMAGE_S))
    with server_process("tests.serving.breaking_server", *settings, "--max-batch-size", "1") as server:
        load = OpenLoad(rate=times * PEAK, deadline_s=deadline_s, duration_s=2.0)
        for _ in range(3):  # as often as the machine was too busy to offer it
            outcomes = offer(Classify(target=server.target, reference=REFERENCE), len(LABELS), load)
            if outcomes.is_offered:
                break
        else:
            pytest.skip(f"the machine is too busy: {outcomes.num_in_time} of {outcomes.num_due} were sent in time")
        busy_s = server.metric("atelier_inference_duration_seconds_sum")
        num_run = server.metric("atelier_batches_total", outcome="ok")
    assert outcomes.num_wrong == outcomes.num_lost == 0
    assert outcomes.goodput(load) >= 0.85 * num_run / busy_s  # of what the device does on this machine, now
    assert statistics.median(outcomes.refusal_us) < 5_000
