"""Load far past what the device can do: as much as at the peak is answered in time, and refusals are quick."""

import numpy as np
import pytest

from loadtest.bench.overload import load_with_deadline, run_from
from loadtest.load.generator_processes import Generators
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


@pytest.mark.fault("S23")
@pytest.mark.timing
@needs_native
@pytest.mark.parametrize("deadline_s", [0.1, 0.02])
@pytest.mark.parametrize("times", [2, 5, 10])
def test_goodput_stays_at_the_peak_however_much_is_offered(deadline_s: float, times: int) -> None:
    settings = ("--port", "0", "--front-end", "native", "--image-s", str(IMAGE_S))
    with server_process("tests.serving.breaking_server", *settings, "--max-batch-size", "1") as server:
        protocol = Classify(target=server.target, reference=REFERENCE)
        with Generators(1, {"served": protocol}, len(LABELS)) as generators:
            for _ in range(3):  # as often as the machine was too busy to offer it
                found = generators.measure(load_with_deadline("served", times * PEAK, deadline_s, duration_s=2.0))
                run = run_from(found)
                if run.was_offered:
                    break
            else:
                pytest.skip(f"the machine is too busy: {run.offered_per_s:.0f} a second were sent in time")
        busy_s = server.metric("atelier_inference_duration_seconds_sum")
        num_run = server.metric("atelier_batches_total", outcome="ok")
    assert found.count("wrong") == found.count("lost") - found.count("expired") == 0
    assert run.goodput >= 0.85 * num_run / busy_s  # of what the device does on this machine, now
    assert found.percentile_ms(50.0, "refusal") < 5
