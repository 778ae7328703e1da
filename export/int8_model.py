"""The float32 ONNX model in int8: QuantizeLinear and DequantizeLinear around the layers that multiply.

Post-training quantisation (Jacob et al., 2018) by ONNX Runtime's own quantiser, in the form that TensorRT reads too:
symmetric, so every zero point is 0; one scale per output channel of the weights and one per tensor of activations, the
largest value seen on training images; biases, sums and all other layers in float32.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from atelier.contract import Images

NUM_CALIBRATION_IMAGES = 1024
_BATCH_SIZE = 128
_OPERATORS = ["Conv", "Gemm", "MatMul"]


def int8_onnx(model_bytes: bytes, train_images: Images) -> bytes:
    """The model with Q/DQ nodes, with ranges taken from `train_images` (N, 1, 28, 28), never from test images."""
    with tempfile.TemporaryDirectory() as directory, _quiet():
        path = Path(directory) / "int8.onnx"
        quantize_static(
            onnx.load_from_string(model_bytes),
            str(path),
            _Images(train_images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_OPERATORS,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": True,  # TensorRT knows no zero points but 0
                "WeightSymmetric": True,
                "AddQDQPairToWeight": True,  # weights stay float32 in the file; each runtime folds them as it likes
                "OpTypesToExcludeOutputQuantization": _OPERATORS,  # logits in steps of a tenth would be no logits
                "QuantizeBias": False,  # TensorRT adds biases in float32
                "DedicatedQDQPair": True,  # a pair per consumer, which is what TensorRT fuses
            },
        )
        return path.read_bytes()


def calibration_images(train_images: Images) -> Images:
    """(1024, 1, 28, 28): the same ones every time, from all over the training images."""
    chosen = np.random.default_rng(0).permutation(len(train_images))[:NUM_CALIBRATION_IMAGES]
    return train_images[np.sort(chosen)]


class _Images(CalibrationDataReader):  # type: ignore[misc] # ONNX Runtime has no types
    """Feeds images to ONNX Runtime's calibrator, batch by batch."""

    def __init__(self, images: Images) -> None:
        starts = range(0, len(images), _BATCH_SIZE)
        self._feeds: Iterator[Mapping[str, Any]] = iter([{"images": images[i : i + _BATCH_SIZE]} for i in starts])

    def get_next(self) -> Mapping[str, Any] | None:
        return next(self._feeds, None)


class _quiet:  # noqa: N801 # reads as a statement
    """The quantiser recommends a pre-processing that folds what was folded already; nobody can act on that."""

    def __enter__(self) -> None:
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(logging.NOTSET)
