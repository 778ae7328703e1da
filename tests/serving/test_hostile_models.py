"""ONNX models that attack a server, under a manifest with their right digests: refused before a runtime sees them."""

import dataclasses
import errno
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import pytest
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from atelier.errors import BadDataError, ProgramError
from export.precision import PRECISIONS, onnx_in
from export.repository import publish
from export.torch_program import inference_model
from serving.backends.onnx_check import MAX_NODES, OPERATORS, check_onnx
from serving.backends.onnx_file import MAX_BYTES, MAX_FIELDS
from serving.config import ServerConfig
from serving.manifest import MANIFEST_NAME, ONNX_NAME
from serving.models import load_model
from tests.export.small_model import exported_files, manifest_for, noise_images, program_and_onnx
from tests.sealed_files import edit_sealed
from training.models import initialise, model_for
from training.recipes import RECIPES

GOOD = exported_files()[ONNX_NAME]
Attack = Callable[[ModelProto], None]


def attacked(attack: Attack) -> bytes:
    model = onnx.load_from_string(GOOD)
    attack(model)
    return bytes(model.SerializeToString())


def reason_of(model: bytes, opset: int = 20, max_batch_size: int = 256) -> str:
    started_s = time.process_time()
    with pytest.raises(BadDataError, match=r"^BAD_MODEL: ") as refused:
        check_onnx(model, opset, max_batch_size)
    assert time.process_time() - started_s < 5
    return str(refused.value)


# --- What the exporter writes ----------------------------------------------------------------------------------------


OTHERS = (("classic", "scaled_tanh", "avg"), ("modern", "gelu", "max"), ("tutorial", "relu", "avg"))


def other_exports() -> Iterator[bytes]:
    for name, activation, pooling in OTHERS:
        recipe = dataclasses.replace(RECIPES[name], activation=activation, pooling=pooling, padding_mode="replicate")
        model = model_for(recipe)
        initialise(model, seed=0)
        yield program_and_onnx(inference_model(model.eval()), 64)[ONNX_NAME]


@pytest.mark.slow
def test_table_has_exactly_the_operators_that_exports_have() -> None:
    """Between them these have every activation, pooling and padding; test_variants.py serves all combinations."""
    found: set[str] = set()
    for exported in (GOOD, *other_exports()):
        for precision in PRECISIONS:
            model = onnx_in(precision, exported, noise_images(64, seed=1))
            check_onnx(model, 22 if precision == "bf16" else 20, 64)
            nodes = onnx.load_from_string(model).graph.node
            assert len(nodes) < MAX_NODES / 3
            found |= {node.op_type for node in nodes}
    assert found == OPERATORS.keys()


@pytest.mark.parametrize("max_batch_size", [1, 2, 64, 4096])
def test_export_passes_for_every_batch_size(max_batch_size: int) -> None:
    check_onnx(GOOD, 20, max_batch_size)


# --- Attacks ---------------------------------------------------------------------------------------------------------


def a_constant_of_4_gb(model: ModelProto) -> None:
    size = numpy_helper.from_array(np.array([1 << 30]), "size")
    model.graph.initializer.append(size)
    model.graph.node.append(helper.make_node("ConstantOfShape", ["size"], ["bomb"]))


def an_initializer_of_1_gb(model: ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="huge", data_type=TensorProto.FLOAT, dims=[1 << 14, 1 << 14]))
    model.graph.initializer[-1].raw_data = b"1234"


def an_endless_loop(model: ModelProto) -> None:
    true = helper.make_node("Constant", [], ["go_on"], value=numpy_helper.from_array(np.array(True)))
    outputs = [helper.make_tensor_value_info("go_on", TensorProto.BOOL, [])]
    body = GraphProto(name="body", node=[true], output=outputs)
    model.graph.node.append(helper.make_node("Loop", ["", ""], [], body=body))


def a_branch(model: ModelProto) -> None:
    model.graph.node.append(
        helper.make_node("If", ["images"], ["x"], then_branch=GraphProto(), else_branch=GraphProto())
    )


def a_graph_in_a_layer(model: ModelProto) -> None:
    model.graph.node[2].attribute.append(helper.make_attribute("body", GraphProto(name="body")))


def weights_in(location: str) -> Attack:
    def attack(model: ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return attack


def weights_said_to_be_elsewhere(model: ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def a_custom_operator(model: ModelProto) -> None:
    model.graph.node[3].domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)


def an_operator_of_onnx_runtimes_own(model: ModelProto) -> None:
    model.graph.node[3].op_type = "FusedConv"


def a_function(model: ModelProto) -> None:
    model.functions.add(name="Sigmoid", domain="")


def another_input(model: ModelProto) -> None:
    model.graph.input[0].name = "pixels"


def a_second_input(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def another_output(model: ModelProto) -> None:
    model.graph.output[0].name = "scores"


def another_output_size(model: ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 11


def another_input_type(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def an_old_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 13


def another_domain_beside(model: ModelProto) -> None:
    model.opset_import.add(domain="ai.onnx.ml", version=3)


def a_hundred_thousand_nodes(model: ModelProto) -> None:
    model.graph.node.extend(helper.make_node("Relu", ["images"], [f"r{index}"]) for index in range(100_000))


def more_nodes_than_allowed(model: ModelProto) -> None:
    model.graph.node.extend(helper.make_node("Relu", ["images"], [f"r{index}"]) for index in range(MAX_NODES))


def an_outer_sum(model: ModelProto) -> None:
    """Two weights of 8 MB in all, and 4 TB when they are added."""
    for name, shape in (("a", (1 << 20, 1)), ("b", (1, 1 << 20))):
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    model.graph.node.append(helper.make_node("Add", ["a", "b"], ["c"]))


def a_product_that_grows_with_the_square_of_the_batch(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, -1, 1, 1]), "row"))
    model.graph.node.append(helper.make_node("Reshape", ["div", "row"], ["lying"], allowzero=1))
    model.graph.node.append(helper.make_node("Mul", ["div", "lying"], ["square"]))


def a_huge_border(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, 1 << 20, 1 << 20, 0, 0, 0, 0]), "border"))
    model.graph.node.append(helper.make_node("Pad", ["div", "border"], ["padded"], mode="constant"))


def a_border_that_the_images_decide(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Pad", ["div", "div"], ["padded"], mode="constant"))


def attribute_of(model: ModelProto, operator: str, name: str) -> onnx.AttributeProto:
    node = next(node for node in model.graph.node if node.op_type == operator)
    return next(attribute for attribute in node.attribute if attribute.name == name)


def a_convolution_with_a_huge_border(model: ModelProto) -> None:
    attribute_of(model, "Conv", "pads").ints[:] = [100_000] * 4


def a_pooling_with_a_huge_border(model: ModelProto) -> None:
    attribute_of(model, "AveragePool", "pads").ints[:] = [1 << 40] * 4


def a_window_without_step(model: ModelProto) -> None:
    attribute_of(model, "AveragePool", "strides").ints[:] = [0, 0]


def a_border_less_than_none(model: ModelProto) -> None:
    attribute_of(model, "Conv", "pads").ints[:] = [-100] * 4


def an_attribute_twice(model: ModelProto) -> None:
    model.graph.node[2].attribute.append(attribute_of(model, "Conv", "group"))


def an_attribute_of_two_types(model: ModelProto) -> None:
    attribute_of(model, "Conv", "group").s = b"x"


def an_unknown_attribute(model: ModelProto) -> None:
    model.graph.node[2].attribute.append(helper.make_attribute("path", "/etc/passwd"))


def a_value_made_twice(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["images"], ["div"]))


def a_value_made_of_nothing(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["nowhere"], ["r"]))


def two_weights_of_a_name(model: ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def sparse_weights(model: ModelProto) -> None:
    model.graph.sparse_initializer.add()


def a_weight_of_text(model: ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="t", data_type=TensorProto.STRING, dims=[1], string_data=[b"x"]))


ATTACKS: list[tuple[Attack, str]] = [
    (a_constant_of_4_gb, "operators ConstantOfShape"),
    (an_initializer_of_1_gb, r"huge has the shape \(16384, 16384\) and 4 bytes"),
    (an_endless_loop, "inner graphs"),
    (a_branch, "inner graphs"),
    (a_graph_in_a_layer, "inner graphs"),
    (weights_in("../secret"), "weights in other files"),
    (weights_in("/etc/hostname"), "weights in other files"),
    (weights_said_to_be_elsewhere, "weights in other files"),
    (a_custom_operator, "its opset is not 20"),
    (an_operator_of_onnx_runtimes_own, "operators FusedConv"),
    (a_function, "functions"),
    (another_input, "its input is .*pixels"),
    (a_second_input, "its input has no free batch"),
    (another_output, "its output is .*scores"),
    (another_output_size, "its output is .*11"),
    (another_input_type, "its input is "),
    (an_old_opset, "its opset is not 20"),
    (another_domain_beside, "its opset is not 20"),
    (a_hundred_thousand_nodes, f"more than {MAX_FIELDS} fields"),
    (more_nodes_than_allowed, "nodes, the limit is 256"),
    (an_outer_sum, "computes .* values"),
    (a_product_that_grows_with_the_square_of_the_batch, "for 256 images it computes"),
    (a_huge_border, "computes .* values"),
    (a_border_that_the_images_decide, "computes a shape"),
    (a_convolution_with_a_huge_border, "computes .* values"),
    (a_pooling_with_a_huge_border, "computes .* values"),
    (a_window_without_step, "slides a window"),
    (a_border_less_than_none, "slides a window"),
    (an_attribute_twice, "twice"),
    (an_attribute_of_two_types, "attribute 'group'"),
    (an_unknown_attribute, "attribute 'path'"),
    (a_value_made_twice, "has the outputs"),
    (a_value_made_of_nothing, "has the inputs"),
    (two_weights_of_a_name, "two weights of one name"),
    (sparse_weights, "sparse weights"),
    (a_weight_of_text, "which no export has"),
]


@pytest.mark.fault("E6", "E7", "E8")
@pytest.mark.parametrize(("attack", "reason"), ATTACKS, ids=lambda value: getattr(value, "__name__", None))
def test_attack_is_refused(attack: Attack, reason: str) -> None:
    assert re.search(reason, reason_of(attacked(attack)))


NOT_FINITE = {
    "fp32": (b"\0\0\xc0\x7f", b"\0\0\x80\xff"),
    "fp16": (b"\0\x7e", b"\0\x7c"),
    "bf16": (b"\xc0\x7f", b"\x80\xff"),
}


@pytest.mark.parametrize("precision", NOT_FINITE)
def test_weight_that_is_no_number_is_refused_by_its_name(precision: str) -> None:
    for value in NOT_FINITE[precision]:
        model = onnx.load_from_string(onnx_in(precision, GOOD, noise_images(1)))
        weight = next(tensor for tensor in model.graph.initializer if tensor.name == "layers.conv2.weight")
        weight.raw_data = weight.raw_data[: -len(value)] + value
        with pytest.raises(BadDataError, match=r"NON_FINITE: .*layers\.conv2\.weight holds NaN or infinity"):
            check_onnx(model.SerializeToString(), 22 if precision == "bf16" else 20, 64)


# --- Bytes that are no model -----------------------------------------------------------------------------------------


def field(number: int, content: bytes) -> bytes:
    """Encodes a message or string of less than 2^28 bytes."""
    size, encoded = len(content), bytearray([number << 3 | 2])
    while size > 127:
        encoded.append(size & 127 | 128)
        size >>= 7
    return bytes(encoded) + bytes([size]) + content


@pytest.mark.fault("E8")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "opset"),
        (b"\xff" * 100, "number without end"),
        (b"\x3a\xff\xff\xff\xff\x0f", "cut short"),
        (b"\x0b", "field|wire type"),
        (field(7, b"") * 2, "graph twice"),
        (field(7, b"\x0a\x00" * (MAX_BYTES // 2 - 10)), f"more than {MAX_FIELDS} fields"),
        (field(7, field(5, field(5, b"\x01" * (MAX_BYTES - 100)))), "opset"),
        (GOOD + GOOD, "twice"),
        (GOOD + field(9, b""), "field 9 in a model"),
        (field(2, b"\xff"), "utf-8"),
        (bytes(MAX_BYTES + 1), "the limit is 16777216"),
        (GOOD[:-5], "opset|cut short|without end"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_bytes_that_are_no_model_are_refused_soon(data: bytes, reason: str) -> None:
    assert re.search(reason, reason_of(data))


def test_flipped_bits_end_in_a_refusal_or_in_a_model_of_the_same_layers() -> None:
    """Under a right digest: weights may differ, which the proof sees, but nothing else goes on to the runtime."""
    random, good, num_passed = Random(0), onnx.load_from_string(GOOD), 0
    for _ in range(500):
        flipped = bytearray(GOOD)
        # Most of the file is weights: every other flip is near one of its ends, where the graph is.
        near = random.choice((range(8 * 2000), range(8 * (len(GOOD) - 2500), 8 * len(GOOD)), range(8 * len(GOOD))))
        position = random.choice(near)
        flipped[position // 8] ^= 1 << position % 8
        try:
            check_onnx(bytes(flipped), 20, 64)
        except BadDataError as error:
            assert error.word in ("BAD_MODEL", "NON_FINITE")
            continue
        num_passed += 1
        found = onnx.load_from_string(bytes(flipped)).graph
        assert [node.op_type for node in found.node] == [node.op_type for node in good.graph.node]
        assert [tensor.dims for tensor in found.initializer] == [tensor.dims for tensor in good.graph.initializer]
    assert 0 < num_passed < 500


# --- Servers ---------------------------------------------------------------------------------------------------------


def published(repository: Path, model: bytes) -> Path:
    """A version as an attacker makes it, who can write the manifest too."""
    files = {ONNX_NAME: model}
    return publish(repository / "lenet5", files, manifest_for({ONNX_NAME: hashlib.sha256(model).hexdigest()}))


def refusal_of(repository: Path, **settings: Any) -> ProgramError:
    config = ServerConfig(repository=repository, backend="onnxruntime", device="cpu", **settings)
    with pytest.raises(ProgramError) as refused, patch("onnxruntime.InferenceSession") as runtime:
        load_model(config)
    assert not runtime.called, "a runtime sees it"
    return refused.value


@pytest.mark.fault("E6")
def test_files_beside_the_model_are_not_opened(tmp_path: Path) -> None:
    canary = tmp_path / "canary"  # opening a FIFO for reading waits for a writer, and lets one in
    os.mkfifo(canary)
    for location in (str(canary), "../../../canary"):
        published(tmp_path / "models", attacked(weights_in(location)))
        assert refusal_of(tmp_path / "models").word == "BAD_MODEL"
        with pytest.raises(OSError, match="No such device") as closed:
            os.open(canary, os.O_WRONLY | os.O_NONBLOCK)
        assert closed.value.errno == errno.ENXIO


@pytest.mark.fault("E8")
def test_file_of_1_gb_is_not_read(tmp_path: Path) -> None:
    version_dir = published(tmp_path / "models", GOOD)
    os.truncate(version_dir / ONNX_NAME, 1 << 30)
    refused = refusal_of(tmp_path / "models")
    assert refused.word == "TOO_LARGE"
    assert "has 1073741824 bytes, the limit is 67108864" in str(refused)


def test_manifest_of_an_attacker_bounds_nothing_away(tmp_path: Path) -> None:
    version_dir = published(tmp_path / "models", GOOD)
    edit_sealed(version_dir / MANIFEST_NAME, lambda document: document.update(opset=13))
    assert refusal_of(tmp_path / "models").word == "BAD_MODEL"
    edit_sealed(version_dir / MANIFEST_NAME, lambda document: document.update(opset=20, max_batch_size=1 << 40))
    assert refusal_of(tmp_path / "models").word == "BAD_MANIFEST"


@pytest.mark.fault("E7")
def test_server_ends_before_any_runtime_sees_the_model(tmp_path: Path) -> None:
    published(tmp_path / "models", attacked(an_endless_loop))
    assert refusal_of(tmp_path / "models").word == "BAD_MODEL"
    options = ["--repository", str(tmp_path / "models"), "--port", "0", "--device", "cpu"]
    done = subprocess.run([sys.executable, "-m", "serving", *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == os.EX_DATAERR
    assert "error: BAD_MODEL: the ONNX model will not be served: it has inner graphs" in done.stderr
