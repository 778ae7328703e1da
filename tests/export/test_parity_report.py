import dataclasses
import functools
import json

from atelier.contract import TOLERANCES
from export.parity import ParityReport, run_gate
from export.parity_report import reports_from, table_from
from serving.backends.base import Backend
from serving.backends.onnxruntime_backend import OnnxRuntimeBackend
from serving.backends.torch_backend import TorchBackend
from serving.manifest import ONNX_NAME, PROGRAM_NAME
from tests.export.small_model import exported_files, noise_inputs, perturbed, truth


@functools.cache
def report_on(by: float) -> ParityReport:
    """The gate's report where one bias of the ONNX model is moved by `by`."""
    moved = perturbed(exported_files()[ONNX_NAME], "layers.linear3.bias", 0, by)
    backends: list[Backend] = [
        TorchBackend(exported_files()[PROGRAM_NAME], max_batch_size=4),
        OnnxRuntimeBackend(moved, max_batch_size=4),
    ]
    return run_gate(truth(), backends, noise_inputs(8), "fp32")


def test_table_has_a_line_per_runtime_and_says_who_passed() -> None:
    header, _, of_truth, torch, onnxruntime = table_from(report_on(0.5)).splitlines()
    assert [name.strip() for name in header.strip("|").split("|")] == [
        *("runtime", "max_abs_diff", "top-1 agreement", "accuracy", "batch invariance", "pass")
    ]
    assert of_truth.startswith("| float64 truth ")
    assert torch.startswith("| torch on cpu ")
    assert torch.endswith(" pass |")
    assert onnxruntime.startswith("| onnxruntime on cpu | 5.00e-01 ")
    assert onnxruntime.endswith(" FAIL |")


def test_json_holds_every_number_of_the_report() -> None:
    document = json.loads(reports_from(report_on(0.5), {"torch": "9.9"})["parity.json"])
    assert document["passed"] is False
    assert [runtime.pop("passed") for runtime in document["runtimes"]] == [True, False]
    assert document["runtimes"][1] == dataclasses.asdict(report_on(0.5).runtimes[1])
    assert document["tolerance"] == dataclasses.asdict(TOLERANCES["fp32"])
    assert document["batch_sizes"] == [1, 2, 4]
    assert document["made_with"] == {"torch": "9.9"}


def test_json_is_valid_where_outputs_were_no_numbers() -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    data = reports_from(report_on(float("nan")), {})["parity.json"]
    document = json.loads(data, parse_constant=refuse)
    assert document["runtimes"][1]["max_abs_diff"] == "nan"
    assert document["pairs"][0]["max_abs_diff"] == "nan"


def test_markdown_tells_result_inputs_tolerance_worst_image_and_circumstances() -> None:
    report = dataclasses.replace(report_on(0.5), first_divergence="first diverging layer layers.linear3")
    text = reports_from(report, {"hardware": "an abacus"})["parity.md"].decode()
    for part in ("# Parity, fp32: FAIL", "8 test images", "in batches of 1, 2, 4", "<= 1e-05 + 1e-05 * |truth|"):
        assert part in text
    for part in (f"onnxruntime on cpu: test image {report.runtimes[1].worst_image}", "layers.linear3", "an abacus"):
        assert part in text
    assert table_from(report) in text
    assert "# Parity, fp32: pass" in reports_from(report_on(0.0), {})["parity.md"].decode()
