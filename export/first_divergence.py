"""Finds where a failed runtime first leaves the truth: compares its layers' values with float64's, in graph order.

The ONNX exporter keeps the program's names for the values between the layers, so the two graphs meet by name.
"""

import copy
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node

from atelier.contract import TOLERANCES, Images, Tolerance
from export.parity import ParityReport
from export.parity_inputs import ParityInputs
from export.precision import HALF_TYPES, emulated_onnx
from export.torch_program import program_from_model
from serving.manifest import ONNX_NAME, PROGRAM_NAME

Values = dict[str, NDArray[Any]]  # value name -> tensor, in graph order


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The first value that is outside the tolerance; `layer` is the module that computes it, in the model's names."""

    value: str
    layer: str
    max_abs_diff: float

    def __str__(self) -> str:
        return f"first diverging layer {self.layer} (value {self.value}, max_abs_diff {self.max_abs_diff:.3g})"


def explain_failure(report: ParityReport, model: nn.Module, files: Mapping[str, bytes], inputs: ParityInputs) -> str:
    """Names the layer in which the first runtime that failed the gate leaves the truth, on its worst image."""
    failed = next(runtime for runtime in report.runtimes if not runtime)
    image = inputs.images[failed.worst_image : failed.worst_image + 1]  # (1, 1, 28, 28)
    if failed.runtime == "torch":
        found = program_values(torch.export.load(io.BytesIO(files[PROGRAM_NAME])), image)
    else:
        readable = emulated_onnx(files[ONNX_NAME]) if report.precision in HALF_TYPES else files[ONNX_NAME]
        found = onnx_values(readable, image)
    divergence = first_divergence(model, found, image, TOLERANCES[failed.precision])
    if divergence is not None:
        return str(divergence)
    # Values that are looked at are not fused away, and this ran on the CPU.
    return "no layer diverges by itself on the CPU: look at graph optimisation, the batch size, or the device"


def first_divergence(model: nn.Module, found: Values, images: Images, tolerance: Tolerance) -> Divergence | None:
    """Finds where what was `found` for these images leaves `model`; None if every value is within the tolerance."""
    truth = program_from_model(copy.deepcopy(model).double(), len(images))
    true_values = program_values(truth, images)
    layers = {node.name: _layer_of(node) for node in truth.graph.nodes}
    last = list(true_values)[-1]  # which ONNX calls by the output's name
    found = {last if name == "logits" else name: value for name, value in found.items()}
    for name, true_value in true_values.items():
        if name not in found or found[name].shape != true_value.shape:
            continue  # the exporter writes a few operators in another way, such as flatten as a reshape
        diff = np.abs(found[name] - true_value)
        if not (diff <= tolerance.atol + tolerance.rtol * np.abs(true_value)).all():  # NaN is never within
            return Divergence(value=name, layer=layers.get(name, name), max_abs_diff=float(diff.max()))
    return None


def _layer_of(node: Node) -> str:
    """Names the innermost module that the operator is from, as `layers.conv1`; `forward` for the model's own code."""
    stack = node.meta.get("nn_module_stack", {})  # key -> (path, class), outermost first
    path = list(stack.values())[-1][0] if stack else ""
    return path.removeprefix("L['self'].") or "forward"


class _Recorder(Interpreter):
    """Runs a graph node by node and keeps every tensor under its node's name."""

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__(program.module())
        self.values: Values = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function" and isinstance(result, torch.Tensor):
            self.values[n.name] = result.numpy()
        return result


def program_values(program: ExportedProgram, images: Images) -> Values:
    """Runs the exported program and returns what its operators put out."""
    recorder = _Recorder(program)
    with torch.inference_mode():
        recorder.run(torch.tensor(images))
    return recorder.values


def onnx_values(onnx_bytes: bytes, images: Images) -> Values:
    """Runs the graph with every value made an output, and returns them."""
    model = onnx.load_from_string(onnx_bytes)
    names = [name for node in model.graph.node for name in node.output]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, {"images": images}), strict=True))
