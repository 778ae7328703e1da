"""Computes all inner values of one version: a second ONNX Runtime session on the version's own, verified bytes.

The serving session is left alone: a session whose inner values are outputs fuses less. So its logits are compared with
the served answer at every look. It may also run with maps switched off, or with the weights of an earlier epoch.
"""

import io
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from atelier.contract import Images
from atelier.errors import BadDataError, ResourceUnavailableError
from serving.manifest import EPOCHS_NAME, LAYERS_NAME, ONNX_NAME
from serving.models import ModelVersion
from serving.playground.errors import PageError
from serving.playground.onnx_edits import FLOAT, FLOAT16, with_inputs, with_outputs

Floats = NDArray[np.float32]
Weights = Mapping[str, Floats]  # by the names that a graph has for them

FORMAT = 1
DEQUANTISED = "_DequantizeLinear_Output"  # what an int8 graph multiplies with, of the weight of that name
WITH_WEIGHTS = ("conv", "scale", "linear")  # kinds of layers
CURVES = ("train_loss", "train_acc", "test_acc")


class Probe:
    """Looks inside one version.

    Raises BadDataError HASH_MISMATCH for a file that is not the manifest's, OLD_EXPORT for a version without
    `layers.json`, and ResourceUnavailableError NO_KERNELS for a precision that CPUs do not compute in.
    """

    def __init__(self, version: ModelVersion) -> None:
        self.manifest = version.manifest
        if LAYERS_NAME not in self.manifest.files:
            raise BadDataError("OLD_EXPORT", f"{version.name} was exported before the playground", "make export")
        if self.manifest.precision == "bf16":
            what = "ONNX Runtime has no operators in bf16 on CPUs, where the page looks"
            raise ResourceUnavailableError("NO_KERNELS", what, "look inside an export in another --precision")
        self.table: dict[str, Any] = json.loads(version.read(LAYERS_NAME))
        if self.table["format"] != FORMAT:
            raise BadDataError("OLD_EXPORT", f"{LAYERS_NAME} has format {self.table['format']}", "make export")
        self._model = version.read_checked(ONNX_NAME)
        self._values = [layer["value"] for layer in self.table["layers"]]  # the last are the logits
        self._session = _session(with_outputs(self._model, self._values[:-1]))
        self._experiments: Any = None  # the session whose weights are inputs
        self.weights = self._read_weights()
        self.epochs = Epochs(version.read(EPOCHS_NAME) if EPOCHS_NAME in self.manifest.files else None)

    def look(self, image: Images, changed: Weights | None = None) -> Floats:
        """Returns all values, (num_values,), for one image, (1, 1, 28, 28) uint8; with some weights changed."""
        if changed:
            values = self._experimental().run(self._values, {"images": image, **self._as_inputs(changed)})
        else:
            values = self._session.run(self._values, {"images": image})
        return np.concatenate([value.ravel() for value in values]).astype(np.float32, copy=False)

    def changed(self, epoch: int | None, off: Mapping[str, set[int]]) -> dict[str, Floats]:
        """Returns an epoch's weights, and those of layers with some of their maps 0: kernels and bias.

        Raises PageError NO_EPOCH and BAD_MAP.
        """
        layers = {layer["name"]: layer for layer in self.table["layers"] if layer["kind"] in WITH_WEIGHTS}
        changed = {} if epoch is None else self.epochs.weights(epoch, list(self.table["weights"]))
        for name, numbers in off.items():
            layer = layers.get(name)
            if layer is None or not numbers <= set(range(layer["shape"][0])):
                there = ", ".join(f"{known} (0 to {layers[known]['shape'][0] - 1})" for known in layers)
                raise PageError(400, "BAD_MAP", f"{name} has no map {sorted(numbers)}", f"there are {there}")
            for weight in filter(None, (layer["weight"], layer["bias"])):
                changed[weight] = changed.get(weight, self.weight(weight)).copy()
                changed[weight][sorted(numbers)] = 0
        return changed

    def weight(self, name: str) -> Floats:
        """Returns a view of one weight in `weights`, in its shape."""
        place = self.table["weights"][name]
        size = int(np.prod(place["shape"]))
        return self.weights[place["start"] : place["start"] + size].reshape(place["shape"])

    def _read_weights(self) -> Floats:
        """Computes (num_weights,): what the graph multiplies with, after dequantising."""
        names = list(self.table["weights"])
        session = _session(with_outputs(self._model, names))
        found = session.run(names, {"images": np.zeros((1, 1, 28, 28), np.uint8)})
        return np.concatenate([weight.astype(np.float32).ravel() for weight in found])

    def _experimental(self) -> Any:
        if self._experiments is None:
            shapes = {_input_of(name): place["shape"] for name, place in self.table["weights"].items()}
            model = with_inputs(self._model, shapes, FLOAT16 if self._is_half else FLOAT)
            self._experiments = _session(with_outputs(model, self._values[:-1]))
        return self._experiments

    def _as_inputs(self, changed: Weights) -> dict[str, NDArray[Any]]:
        dtype = np.float16 if self._is_half else np.float32
        return {_input_of(name): weight.astype(dtype) for name, weight in changed.items()}

    @property
    def _is_half(self) -> bool:
        return self.manifest.precision == "fp16"


class Epochs:
    """Holds the weights that a version had after each epoch of its training, if they were kept: `epochs.npz`."""

    def __init__(self, content: bytes | None) -> None:
        """`content` is the file's, verified, or None if there is none; it can execute no code."""
        self._arrays: dict[str, NDArray[Any]] = {}
        if content is not None:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                self._arrays = dict(archive)

    @property
    def numbers(self) -> list[int]:
        """The epochs that there are; 0 is what the training began with."""
        return [] if not self._arrays else [int(number) for number in self._arrays["epochs"]]

    @property
    def history(self) -> list[dict[str, Any]]:
        """The curves of the training; None where there is no figure."""
        rows = []
        for place, number in enumerate(self.numbers):
            figures = {name: float(self._arrays[name][place]) for name in CURVES}
            rows.append({"epoch": number} | {name: None if np.isnan(x) else x for name, x in figures.items()})
        return rows

    def weights(self, number: int, names: Sequence[str]) -> dict[str, Floats]:
        """Returns the weights after an epoch. Raises PageError NO_EPOCH."""
        if number not in self.numbers:
            there = f"there are {self.numbers[0]} to {self.numbers[-1]}" if self.numbers else "train with --keep-epochs"
            raise PageError(404, "NO_EPOCH", f"this version has no epoch {number}", there)
        place = self.numbers.index(number)
        return {name: self._arrays[name][place] for name in names}


def _input_of(weight: str) -> str:
    return weight.removesuffix(DEQUANTISED)


def _session(model: bytes) -> Any:
    """Opens a session that takes no more of the machine than one thread while it runs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # External data is looked for in a directory that cannot exist: a model that refers to any fails to load.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)
