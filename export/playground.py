"""Describes the exported graph layer by layer, for the page that looks inside the served network: `layers.json`.

Only the exporter knows both sides: the modules, and the names that their values and weights have in the ONNX graph.
A network is a chain of modules, and its graph a chain of operators in the same order, so the two are walked together.
"""

import copy
import io
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto
from torch import nn

from atelier.errors import BadDataError
from export.torch_program import inference_model
from serving.manifest import EPOCHS_NAME, LAYERS_NAME
from training.checkpoint import load_epochs
from training.models import LeNet
from training.models.classic import Rescale
from training.models.lenet import ACTIVATION_LAYERS
from training.models.partial_convolution import PartialConv2d
from training.run_record import RunRecord

FORMAT = 1
CURVES = ("train_loss", "train_acc", "test_acc")  # of the epochs that were kept
Layer = dict[str, Any]

# The operators of each module's values, in order; the last one's output is the module's.
OPERATORS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("Conv",),
    nn.Linear: ("Gemm",),
    nn.AvgPool2d: ("AveragePool",),
    nn.MaxPool2d: ("MaxPool",),
    nn.ZeroPad2d: ("Pad",),
    nn.ReplicationPad2d: ("Pad",),
    Rescale: ("Mul", "Add"),
    nn.Flatten: ("Reshape",),
    nn.Sigmoid: ("Sigmoid",),
    nn.Tanh: ("Tanh",),
    nn.ReLU: ("Relu",),
    nn.GELU: ("Gelu",),
    ACTIVATION_LAYERS["scaled_tanh"]: ("Mul", "Tanh", "Mul"),
}
FUNCTIONS = {kind: name for name, kind in ACTIVATION_LAYERS.items()}
NOT_LAYERS = ("Cast", "QuantizeLinear", "DequantizeLinear", "Constant")  # of other precisions than float32


def layer_files(model: LeNet, inferring: LeNet, onnx_bytes: bytes) -> dict[str, bytes]:
    """Returns `layers.json`, or nothing for a network that cannot be described: it is served all the same."""
    try:
        return {LAYERS_NAME: layers_json(model, inferring, onnx_bytes)}
    except BadDataError as error:
        print(f"note: no page will look inside this version: {error}")
        return {}


def weights_in(files: Mapping[str, bytes]) -> list[str]:
    """Returns the names of the weights in the graph that `layers.json` describes; none without it."""
    return list(json.loads(files[LAYERS_NAME])["weights"]) if LAYERS_NAME in files else []


def layers_json(model: LeNet, inferring: LeNet, onnx_bytes: bytes) -> bytes:
    """Writes the layers of an exported ONNX model, with where their values and weights start.

    `model` is the trained one, `inferring` what was exported of it. Raises BadDataError UNKNOWN_LAYER for a module
    that OPERATORS does not have, or whose operators are others.
    """
    onnx_model = onnx.load_from_string(onnx_bytes)
    layers = list(_layers(model, inferring, onnx_model))
    weights = {name: shape for layer in layers for name, shape in layer.pop("weights", {}).items()}
    num_values = num_weights = 0
    for layer in layers:
        layer["start"], num_values = num_values, num_values + math.prod(layer["shape"])
    described = {}
    for name, shape in weights.items():
        described[name] = {"shape": shape, "start": num_weights}
        num_weights += math.prod(shape)
    document = {"format": FORMAT, "layers": layers, "weights": described}
    return (json.dumps(document | {"num_values": num_values, "num_weights": num_weights}) + "\n").encode()


def _layers(model: LeNet, inferring: LeNet, onnx_model: ModelProto) -> Iterator[Layer]:
    shapes = _shapes(onnx_model)
    nodes = iter([node for node in onnx_model.graph.node if node.op_type not in NOT_LAYERS])
    scaled = next(nodes).output[0]
    yield {"name": "input", "kind": "input", "value": scaled, "shape": shapes[scaled][1:]}
    padded: Layer | None = None  # a border that the next module may rescale
    for name, module in inferring.layers.named_modules():
        if any(module.children()):
            continue
        node = _node_of(name, module, nodes)
        layer = {"name": name, "value": _value_of(node), "shape": shapes[_value_of(node)][1:]}
        if padded is not None and isinstance(module, Rescale):
            padded |= layer | {"name": padded["name"]} | _scaling(module)
            layer = {}
        if padded is not None:
            yield padded
            padded = None
        if isinstance(module, nn.ZeroPad2d | nn.ReplicationPad2d):
            padded = layer | _border(module)
        elif layer and not isinstance(module, nn.Flatten):
            yield layer | _description(module, node, shapes, model.layers.get_submodule(name))


def _node_of(name: str, module: nn.Module, nodes: Iterator[NodeProto]) -> NodeProto:
    """Takes the module's operators off the chain; the last one. Raises BadDataError UNKNOWN_LAYER."""
    wanted = OPERATORS.get(type(module), ())
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        wanted = ("Pad", *wanted)
    taken = list(itertools.islice(nodes, len(wanted)))
    found = tuple(node.op_type for node in taken)
    if not wanted or found != wanted:
        what = f"layer {name} is {type(module).__name__}, which is {', '.join(found) or 'unknown'} in ONNX"
        raise BadDataError("UNKNOWN_LAYER", what, "describe it in export/playground.py")
    return taken[-1]


def _value_of(node: NodeProto) -> str:
    """Names the value; the last one may be cast to be `logits`."""
    name: str = node.output[0]
    return "logits" if name.startswith("logits") else name


def _border(module: nn.ZeroPad2d | nn.ReplicationPad2d) -> Layer:
    mode = "zeros" if isinstance(module, nn.ZeroPad2d) else "replicate"
    return {"kind": "pad", "padding": [module.padding[2], module.padding[0]], "padding_mode": mode}


def _scaling(module: Rescale) -> Layer:
    return {"factor": module.high - module.low, "offset": module.low}


def _description(module: nn.Module, node: NodeProto, shapes: dict[str, list[int]], trained: nn.Module) -> Layer:
    """Describes what the module does; `weights` are names and shapes."""
    if type(module) in FUNCTIONS:
        return {"kind": "activation", "function": FUNCTIONS[type(module)]}
    if isinstance(module, nn.AvgPool2d | nn.MaxPool2d):
        mode = "max" if isinstance(module, nn.MaxPool2d) else "avg"
        return {"kind": "pool", "mode": mode, **_window(module)}
    names = [*node.input[1:], None, None]
    weights = {name: shapes[name] for name in node.input[1:]}
    layer: Layer = {"weight": names[0], "bias": names[1], "weights": weights}
    if isinstance(module, nn.Linear):
        return {"kind": "linear", **layer}
    if not isinstance(module, nn.Conv2d):
        raise BadDataError("UNKNOWN_LAYER", f"{type(module).__name__} has no description", "add it to playground.py")
    is_scale = module.groups == module.in_channels > 1 and module.kernel_size == (1, 1)
    table = [list(inputs) for inputs in trained.table] if isinstance(trained, PartialConv2d) else None
    kind = {"kind": "scale" if is_scale else "conv", "padding_mode": module.padding_mode, "table": table}
    return kind | _window(module) | layer


def _window(module: nn.Conv2d | nn.AvgPool2d | nn.MaxPool2d) -> Layer:
    return {
        name: _pair(getattr(module, name + at)) for name, at in (("kernel", "_size"), ("stride", ""), ("padding", ""))
    }


def _pair(size: Any) -> list[int]:
    return [size, size] if isinstance(size, int) else list(size)


def _shapes(onnx_model: ModelProto) -> dict[str, list[int]]:
    """Returns the shapes of all values and weights; a free batch is 0 there."""
    graph = onnx.shape_inference.infer_shapes(onnx_model).graph
    values = [*graph.value_info, *graph.output]
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
    return shapes | {tensor.name: list(tensor.dims) for tensor in graph.initializer}


# --- The weights of every epoch that was kept: epochs.npz -------------------------------------------------------------


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
