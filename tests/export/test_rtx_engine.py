"""TensorRT for RTX's own parser and builder, which need no GPU: engines of every precision are really built."""

import dataclasses
import hashlib
import sys
from collections.abc import Callable
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from atelier.errors import BadDataError, ResourceUnavailableError
from export import rtx_engine
from export.engine_options import EngineOptions
from export.engines import engines_from_onnx
from export.precision import PRECISIONS, onnx_in
from export.rtx_engine import PORTABLE, TURING, rtx_engines_from_onnx
from serving.manifest import ONNX_NAME, RTX_ENGINE_NAME, RTX_TURING_ENGINE_NAME, TENSORRT_RTX
from tests.export.small_model import exported_files, noise_images
from tests.tensorrt.bindings import rtx_bindings

FP32 = exported_files()[ONNX_NAME]
MODELS = {precision: onnx_in(precision, FP32, noise_images(64, seed=1)) for precision in PRECISIONS}
LAYERS = {"fp32": {"fp32": 27}, "tf32": {"fp32": 27}, "fp16": {"fp16": 27, "fp32": 2}, "bf16": {"bf16": 27, "fp32": 2}}


@pytest.fixture(autouse=True)
def library() -> Any:
    return rtx_bindings()


def options_for(precision: str) -> EngineOptions:
    return EngineOptions(precision=precision, max_batch_size=256)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_portable_engine_is_built_in_every_precision_and_for_turing_in_fp16(precision: str) -> None:
    digest = hashlib.sha256(MODELS[precision]).hexdigest()
    files, specs = rtx_engines_from_onnx(MODELS[precision], digest, options_for(precision))
    assert [(spec.file, spec.compute_capabilities) for spec in specs] == [
        (RTX_ENGINE_NAME, PORTABLE),
        *([(RTX_TURING_ENGINE_NAME, TURING)] if precision == "fp16" else []),
    ]
    assert set(files) == {spec.file for spec in specs}
    assert all(100_000 < len(engine) < 2_000_000 for engine in files.values())
    for spec in specs:
        assert (spec.flavour, spec.precision, spec.onnx_sha256) == (TENSORRT_RTX, precision, digest)
        assert (spec.min_batch_size, spec.opt_batch_size, spec.max_batch_size) == (1, 64, 256)
        assert spec.layer_types == LAYERS.get(precision, {"fp32": 69, "int8": 10})


# --- Mutants of the graph ---------------------------------------------------------------------------------------------


def mutant(precision: str, change: Callable[[Any], None]) -> bytes:
    model = onnx.load_from_string(MODELS[precision])
    change(model)
    return bytes(model.SerializeToString())


def layer_without_quantised_input(model: Any) -> None:
    """The last layer reads its weights as they were before they were quantised."""
    gemm = [node for node in model.graph.node if node.op_type == "Gemm"][-1]
    makers = {name: node for node in model.graph.node for name in node.output}
    gemm.input[1] = makers[makers[gemm.input[1]].input[0]].input[0]


def without_any_quantisation(model: Any) -> None:
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            for index in range(2):
                node.input[index] = makers[makers[node.input[index]].input[0]].input[0]


def layer_in_float32(model: Any) -> None:
    """One convolution computes in float32, between casts."""
    conv = [node for node in model.graph.node if node.op_type == "Conv"][1]
    half = TensorProto.FLOAT16
    casts = [helper.make_node("Cast", [name], [f"{name}_wide"], to=TensorProto.FLOAT) for name in conv.input]
    conv.input[:] = [f"{name}_wide" for name in conv.input]
    wide = f"{conv.output[0]}_wide"
    back = helper.make_node("Cast", [wide], [conv.output[0]], to=half)
    conv.output[0] = wide
    index = list(model.graph.node).index(conv)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:index], *casts, conv, back, *nodes[index + 1 :]])


def specialised_batch(model: Any) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 64


def opset_beyond_the_parser(model: Any) -> None:
    model.opset_import[0].version = 99


def operator_that_it_does_not_know(model: Any) -> None:
    model.graph.node[-1].op_type = "Unheard"


def float_images(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def half_logits(model: Any) -> None:
    model.graph.node.pop()  # the cast back
    model.graph.output[0].name = model.graph.node[-1].output[0]
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16


@pytest.mark.parametrize(
    ("precision", "change", "told"),
    [
        ("int8", layer_without_quantised_input, "WRONG_PRECISION: layer .* has 1 quantised inputs of 2, and int8"),
        ("int8", without_any_quantisation, "WRONG_PRECISION: layer .* has 0 quantised inputs of 2, and int8"),
        ("fp16", layer_in_float32, "WRONG_PRECISION: layer .* is DataType.FLOAT, and fp16 was asked for"),
        ("fp32", specialised_batch, "BAD_MODEL: the ONNX model will not be served: its input "),
        ("fp32", opset_beyond_the_parser, "BAD_MODEL: the ONNX model will not be served: its opset is not 20"),
        ("fp32", operator_that_it_does_not_know, "BAD_MODEL: .* it has the operators Unheard, which no export has"),
        ("fp32", float_images, "BAD_MODEL: the ONNX model will not be served: its input "),
        ("fp16", half_logits, "BAD_MODEL: the ONNX model will not be served: its output is "),
    ],
)
def test_mutant_of_the_graph_is_refused(precision: str, change: Callable[[Any], None], told: str) -> None:
    with pytest.raises(BadDataError, match=told):
        rtx_engines_from_onnx(mutant(precision, change), "0" * 64, options_for(precision))


@pytest.mark.parametrize(
    ("precision", "change", "told"),
    [
        ("fp32", specialised_batch, r"BAD_ENGINE: the network has .*\(64, 1, 28, 28\).*, the contract says"),
        ("fp32", operator_that_it_does_not_know, "BAD_ENGINE: TensorRT for RTX .* cannot parse the ONNX model: .+"),
        ("fp32", float_images, r"BAD_ENGINE: the network has .*'FLOAT', \(-1, 1, 28, 28\)"),
        ("fp16", half_logits, "BAD_ENGINE: the network has .*HALF"),
    ],
)
def test_what_the_parser_makes_of_a_mutant_is_refused_too(
    precision: str, change: Callable[[Any], None], told: str, library: Any
) -> None:
    with pytest.raises(BadDataError, match=told):
        rtx_engine.rtx_engine(library, mutant(precision, change), options_for(precision), PORTABLE)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("other", ["fp32", "fp16", "bf16", "int8"])
def test_graph_of_another_precision_is_refused(precision: str, other: str, library: Any) -> None:
    if precision == other or {precision, other} == {"fp32", "tf32"}:
        return  # the same graph
    with pytest.raises(BadDataError, match="WRONG_PRECISION"):
        rtx_engine.rtx_engine(library, MODELS[other], options_for(precision), PORTABLE)


@pytest.mark.parametrize("model", [b"", b"no model", FP32[:1000]])
def test_what_is_no_model_is_refused(model: bytes, library: Any) -> None:
    with pytest.raises(BadDataError, match="BAD_ENGINE"):
        rtx_engine.rtx_engine(library, model, options_for("fp32"), PORTABLE)


# --- Without the library ----------------------------------------------------------------------------------------------


@pytest.mark.fault("E17")
def test_missing_library_is_one_line_and_an_error_only_if_an_engine_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    engines = engines_from_onnx(FP32, options_for("fp32"), "auto")
    (line,) = [line for line in engines.about if "RTX" in line]
    assert line.startswith("TensorRT for RTX engine left out: RTX_UNAVAILABLE: TensorRT for RTX is not installed: ")
    assert "\n" not in line and "make setup" in line
    assert not engines.specs
    with pytest.raises(ResourceUnavailableError, match="RTX_UNAVAILABLE"):
        engines_from_onnx(FP32, options_for("fp32"), "yes")


def test_engine_asked_for_is_the_portable_one_where_there_is_no_gpu() -> None:
    engines = engines_from_onnx(FP32, dataclasses.replace(options_for("fp32"), max_batch_size=16), "yes")
    assert RTX_ENGINE_NAME in engines.files
    assert f"{RTX_ENGINE_NAME}: tensorrt-rtx 1." in engines.about[0]
    assert "compute capability 8.0, 8.6, 8.9, 12.0, 12.1, " in engines.about[0]
