"""Puts the weights of every epoch that was kept into a version, for the page that looks inside: `epochs.npz`."""

import copy
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.program import inference_model
from serving.manifest import EPOCHS_NAME
from training.kept_epochs import load_epochs
from training.models import LeNet
from training.run_record import RunRecord

CURVES = ("train_loss", "train_acc", "test_acc")


def epoch_files(
    model: LeNet, directory: Path, record: RunRecord, weights: Sequence[str], precision: str
) -> dict[str, bytes]:
    """Returns `epochs.npz` if epochs were kept; `weights` are the names of those that the graph has.

    It holds each weight with the epochs along its first axis, float32, folded as what is served; `epochs`, their
    numbers; and the curves of the training, NaN where there is no figure. An int8 graph has scales for its own weights
    only. Raises BadDataError BAD_CHECKPOINT for damaged files.
    """
    if not record.kept_epochs or not weights:
        return {}
    if precision == "int8":
        print("note: no epochs in this version: int8 has scales for the last weights only")
        return {}
    kept = load_epochs(directory, record)
    arrays: dict[str, list[NDArray[np.float32]]] = {name: [] for name in weights}
    for state_dict in kept.values():
        trained = copy.deepcopy(model)
        trained.load_state_dict(state_dict)
        folded = inference_model(trained).state_dict()
        for name, epochs in arrays.items():
            epochs.append(folded[name].numpy())
    content: dict[str, NDArray[np.generic]] = {name: np.stack(epochs) for name, epochs in arrays.items()}
    content |= {name: _curve(record, name, list(kept)) for name in CURVES}
    buffer = io.BytesIO()
    np.savez(buffer, epochs=np.array(list(kept)), **content)  # type: ignore[arg-type]
    return {EPOCHS_NAME: buffer.getvalue()}


def _curve(record: RunRecord, name: str, epochs: Sequence[int]) -> NDArray[np.float64]:
    """Returns the figures of these epochs; of epoch 0 there are none."""
    figures = {metrics.epoch: getattr(metrics, name) for metrics in record.metrics}
    found = [figures.get(epoch) for epoch in epochs]
    return np.array([np.nan if figure is None else figure for figure in found])
