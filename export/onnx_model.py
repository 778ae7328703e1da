"""Exports the program as one ONNX file: weights inside, the batch dynamic, the same bytes for the same checkpoint."""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import ModelProto
from torch.export import ExportedProgram

from atelier.environments import python_with
from atelier.errors import BadDataError, ProgramError
from export.runtimes.known import ONNX2TF
from export.runtimes.measure import ENVIRONMENTS
from serving.backends.onnx_check import check_onnx as check_served_onnx
from serving.manifest import LARGEST_MAX_BATCH_SIZE

OPSET = 20
CONVERT_TIMEOUT_S = 600  # of onnx2tf
BF16_OPSET = 22  # the first in which convolution and pooling take bfloat16


def onnx_from_program(program: ExportedProgram, *, classes: tuple[str, ...], **properties: str) -> bytes:
    """Makes a checked model, `images` uint8 (batch, 1, 28, 28) -> `logits` float32 (batch, 10), as a file's bytes.

    `properties` (checkpoint digest, architecture, precision) become the model's metadata, beside the classes.
    Raises BadDataError if the result is not a model that Atelier serves.
    """
    exported = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: "batch"},),
        external_data=False,
        verbose=False,
    )
    if exported is None:
        raise BadDataError("BAD_MODEL", "torch made no ONNX model of the program", "run again with --debug")
    model = exported.model_proto
    _strip_provenance(model)
    onnx.helper.set_model_props(model, {"classes": json.dumps(classes), **properties})
    check_onnx(model)
    return model.SerializeToString(deterministic=True)


def _strip_provenance(model: ModelProto) -> None:
    """Removes what speaks of the machine that exported: source paths, stack traces, printed graphs."""
    graph = model.graph
    described: list[Any] = [graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for part in described:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def opset_of(precision: str) -> int:
    """Returns the version of ONNX's operators that a model of this precision is written in."""
    return BF16_OPSET if precision == "bf16" else OPSET


def check_onnx(model: ModelProto, opset: int = OPSET) -> None:
    """Refuses what is not valid ONNX, or no model that a server and TensorRT take. Raises BadDataError."""
    check_served_onnx(model.SerializeToString(), opset, LARGEST_MAX_BATCH_SIZE)
    first = [node.op_type for node in model.graph.node if "images" in node.input]
    if first != ["Cast"]:
        what = f"the ONNX model will not be served: images go into {first}, not into one Cast, as TensorRT needs"
        raise BadDataError("BAD_MODEL", what, "make export writes a new version")
    try:
        onnx.checker.check_model(model, full_check=True)  # the full check infers every shape
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[0]
        what = f"the ONNX model will not be served, by its checker: {reason}"
        raise BadDataError("BAD_MODEL", what, "make export writes a new version") from error


def litert_from(model_onnx: bytes) -> bytes:
    """Returns `model.tflite`, in float32, by onnx2tf, whose TensorFlow has an environment of its own.

    Raises ProgramError NO_ENVIRONMENT or LITERT if that fails.
    """
    converter = python_with(ONNX2TF, ENVIRONMENTS / "onnx2tf").with_name("onnx2tf")
    with tempfile.TemporaryDirectory(prefix="atelier-litert-") as directory:
        given, found = Path(directory, "model.onnx"), Path(directory, "converted")
        given.write_bytes(model_onnx)  # which it writes over
        command = [str(converter), "-i", str(given), "-o", str(found)]
        surroundings = os.environ | {"HOME": directory}
        surroundings.pop("PYTHONPATH", None)
        done = subprocess.run(  # noqa: S603
            command, cwd=directory, env=surroundings, capture_output=True, timeout=CONVERT_TIMEOUT_S, check=False
        )
        path = found / "model_float32.tflite"
        if done.returncode or not path.exists():
            lines = (done.stdout + done.stderr).decode(errors="replace").strip().splitlines()
            raise ProgramError("LITERT", "onnx2tf cannot convert the model", why=lines[-1] if lines else "")
        return path.read_bytes()
