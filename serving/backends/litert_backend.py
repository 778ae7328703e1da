"""LiteRT (TensorFlow Lite), on the CPU: the fastest there for single images, where the export made a `model.tflite`."""

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from atelier.contract import Images, Logits
from atelier.errors import BadDataError
from serving.backends.base import Backend

# What converters make of a LeNet, and nothing that loops, branches, keeps state or is not LiteRT's own.
OPERATORS = {
    *("ADD", "AVERAGE_POOL_2D", "CAST", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "DIV", "FULLY_CONNECTED"),
    *("GATHER", "GELU", "LOGISTIC", "MAX_POOL_2D", "MIRROR_PAD", "MUL", "PACK", "PAD", "PADV2", "RELU", "RESHAPE"),
    *("SHAPE", "SLICE", "SPLIT", "STRIDED_SLICE", "SUB", "TANH", "TRANSPOSE"),
}
INPUT, OUTPUT = (np.uint8, 28 * 28), (np.float32, 10)  # dtype and size of an image, and of its answer


class LiteRTBackend(Backend):
    """A `.tflite` model in one interpreter. `model` is the whole file.

    Raises BadDataError if the model cannot be loaded, breaks the contract of tensors, or has other operators than a
    LeNet's, such as loops and custom ones; NON_FINITE if a weight is no number.
    """

    name = "litert"
    device = "cpu"

    def __init__(self, model: bytes, *, num_threads: int = 1, max_batch_size: int) -> None:
        self.max_batch_size = max_batch_size
        try:
            self._interpreter = Interpreter(model_content=model, num_threads=num_threads)
        except ValueError as error:
            what = f"LiteRT cannot load it: {str(error).splitlines()[0]}"
            raise BadDataError("BAD_MODEL", what, "make export writes a new version") from None
        _check_layers(self._interpreter)
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        for tensors, contract in ((inputs, INPUT), (outputs, OUTPUT)):
            found = [(tensor["dtype"], int(np.prod(tensor["shape"]))) for tensor in tensors]
            if found != [contract]:
                raise BadDataError("BAD_MODEL", f"the model has {found}, the contract says {contract}")
        # One channel: (N, 28, 28, 1), as LiteRT has images, is the same bytes as (N, 1, 28, 28).
        self._image_shape = tuple(int(size) for size in inputs[0]["shape"][1:])
        self._input, self._output = inputs[0]["index"], outputs[0]["index"]
        self._batch_size = 0

    def infer(self, images: Images) -> Logits:
        """Computes (N, 1, 28, 28) uint8 -> (N, 10) float32. Another batch size than the last one's costs 5 us more."""
        if images.shape[1:] != (1, 28, 28):
            raise ValueError(f"images are {images.shape}, not (N, 1, 28, 28)")
        if len(images) != self._batch_size:
            self._interpreter.resize_tensor_input(self._input, (len(images), *self._image_shape))
            self._interpreter.allocate_tensors()
            self._batch_size = len(images)
        self._interpreter.set_tensor(self._input, images.reshape(-1, *self._image_shape))
        self._interpreter.invoke()
        logits: Logits = self._interpreter.get_tensor(self._output)  # a copy
        return logits

    def close(self) -> None:
        """Drops the interpreter."""
        del self._interpreter


def _check_layers(interpreter: Interpreter) -> None:
    """Looks at what was read, before anything is allocated or run."""
    again = "make export writes a new version"
    foreign = sorted({layer["op_name"] for layer in interpreter._get_ops_details()} - OPERATORS)
    if foreign:
        what = f"the LiteRT model will not be served: it has {', '.join(foreign)[:200]}, which no LeNet has"
        raise BadDataError("BAD_MODEL", what, again)
    for tensor in interpreter.get_tensor_details():
        try:
            values = interpreter.get_tensor(tensor["index"])
        except ValueError:  # nothing is allocated: only weights are there
            continue
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            what = f"the LiteRT model will not be served: {tensor['name']} holds NaN or infinity"
            raise BadDataError("NON_FINITE", what, again)
