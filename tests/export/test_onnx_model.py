import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import export
from atelier.errors import BadDataError
from export.onnx_model import check_onnx
from serving.backends.onnx_file import MAX_BYTES
from serving.manifest import ONNX_NAME
from tests.conftest import SHARED
from tests.export.small_model import exported_files
from training.dataset import CLASSES


def model() -> ModelProto:
    return onnx.load_from_string(exported_files()[ONNX_NAME])


def test_images_go_into_one_cast_first() -> None:
    assert model().graph.node[0].op_type == "Cast"
    assert [node.op_type for node in model().graph.node if "images" in node.input] == ["Cast"]


def test_batch_is_free_and_named() -> None:
    for value in (*model().graph.input, *model().graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_metadata_tells_classes_checkpoint_architecture_and_precision() -> None:
    properties = {entry.key: entry.value for entry in model().metadata_props}
    assert json.loads(properties.pop("classes")) == list(CLASSES)
    assert properties == {"checkpoint_sha256": "0" * 64, "architecture": "tutorial", "precision": "fp32"}


@pytest.mark.fault("E19")
def test_file_holds_no_path_of_this_machine() -> None:
    assert b".py" not in exported_files()[ONNX_NAME]
    assert b"site-packages" not in exported_files()[ONNX_NAME]


def test_the_exporters_notes_on_each_node_are_gone() -> None:
    graph = model().graph
    parts: list[Any] = [graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for part in parts:
        assert not part.metadata_props
        assert not part.doc_string


@pytest.mark.fault("E19")
@pytest.mark.slow
def test_same_weights_give_the_same_bytes_in_another_directory(tmp_path: Path) -> None:
    root = Path(export.__path__[0]).parent
    for package in ("atelier", "export", "training", "serving", "tests"):
        shutil.copytree(root / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    program = "import sys; from tests.export.small_model import exported_files as files; "
    program += f"sys.stdout.buffer.write(files()['{ONNX_NAME}'])"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    environment[SHARED] = str(tmp_path)  # or it would read what this run has exported
    elsewhere = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, check=True
    )
    assert elsewhere.stdout == exported_files()[ONNX_NAME]


def a_loop(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["looped"]))


def a_size_that_an_input_decides(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("ConstantOfShape", ["huge"], ["bomb"]))


def an_operator_of_a_custom_domain(model: ModelProto) -> None:
    model.graph.node[1].domain = "elsewhere"


def weights_in_another_file(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")


def a_constant_in_another_file(model: ModelProto) -> None:
    tensor = TensorProto(name="outside", data_location=TensorProto.EXTERNAL)
    model.graph.node.append(helper.make_node("Constant", [], ["outside"], value=tensor))


def another_input_name(model: ModelProto) -> None:
    model.graph.input[0].name = "pixels"


def a_fixed_batch(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def a_second_output(model: ModelProto) -> None:
    model.graph.output.append(model.graph.output[0])


def no_cast(model: ModelProto) -> None:
    model.graph.node[0].op_type = "Relu"
    del model.graph.node[0].attribute[:]


def another_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 17


def too_many_bytes(model: ModelProto) -> None:
    model.producer_name = "x" * MAX_BYTES


def a_function(model: ModelProto) -> None:
    model.functions.add(name="f")


def a_truncated_weight(model: ModelProto) -> None:
    model.graph.initializer[1].dims[0] = 7


def a_result_of_another_type(model: ModelProto) -> None:
    model.graph.node[0].attribute[0].i = TensorProto.DOUBLE


def shapes_that_do_not_fit(model: ModelProto) -> None:
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    next(attribute for attribute in gemm.attribute if attribute.name == "transB").i = 0


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (a_loop, "operators Loop"),
        (a_size_that_an_input_decides, "operators ConstantOfShape"),
        (an_operator_of_a_custom_domain, "Div of the domain elsewhere"),
        (weights_in_another_file, "weights in other files"),
        (a_constant_in_another_file, "tensors in attributes"),
        (another_input_name, "its input is .*pixels"),
        (a_fixed_batch, "its input has no free batch"),
        (a_second_output, "its output is "),
        (no_cast, "not into one Cast"),
        (another_opset, "opset is not 20"),
        (too_many_bytes, "the limit is 16777216"),
        (a_function, "has functions"),
        (a_truncated_weight, "has the shape"),
        (shapes_that_do_not_fit, "Gemm has transB 0"),
        (a_result_of_another_type, "by its checker"),
    ],
)
def test_a_model_that_atelier_does_not_make_is_refused(break_it: Callable[[ModelProto], None], reason: str) -> None:
    broken = model()
    check_onnx(broken)
    break_it(broken)
    with pytest.raises(BadDataError, match=f"BAD_MODEL: .*{reason}"):
        check_onnx(broken)
