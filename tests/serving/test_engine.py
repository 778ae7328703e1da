"""The engine by itself, as a program has it that serves in its own way."""

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from serving.engine import Engine
from serving.errors import NotServingError


def test_engine_is_opened_asked_and_drained_without_a_server(small_repository: Path) -> None:
    async def test() -> None:
        engine = await Engine.open(small_repository, device="cpu")
        images, logits = engine.model.manifest.probes.arrays()
        answer = await engine.classify(images, time.monotonic() + 60)
        assert np.allclose(answer.logits, logits, atol=1e-4)
        assert engine.num_answered == len(images) and engine.num_unanswered == 0
        await engine.drain(NotServingError("DRAINING", "the program ends"))
        with pytest.raises(NotServingError, match="DRAINING"):
            await engine.classify(images, time.monotonic() + 60)
        await engine.close()

    asyncio.run(test())
