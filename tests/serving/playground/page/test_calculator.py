"""The calculator's rules, by tables; PyTorch's own layers say what comes out."""

from typing import Any

import pytest
import torch
from torch.nn import functional

pytestmark = pytest.mark.slow

SLIDE = """async (settings) => {
  const { problemOf, sizesOf, stepOf, numberAt } = await import('/sliding.js');
  const problem = problemOf(settings);
  if (problem) return { problem };
  const { result, rest } = sizesOf(settings), inside = [...Array(settings.size).keys()];
  const values = [...Array(result ** 2).keys()].map((step) => stepOf(settings, step).value);
  return { result, rest, values, input: inside.map((y) => inside.map((x) => numberAt(settings, y, x))) };
}"""
KERNEL = [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]


def slid(modules: Any, **changes: Any) -> Any:
    example = {"size": 5, "kernel": 3, "padding": 0, "mode": "zeros", "stride": 1, "operation": "conv"}
    return modules.evaluate(SLIDE, {**example, **changes})


def by_torch(images: Any, *, kernel: int, padding: int, mode: str, stride: int, operation: str) -> torch.Tensor:
    image = torch.tensor(images, dtype=torch.float64)[None, None]
    if operation == "conv":
        weight = torch.tensor([[KERNEL[y % 3][x % 3] for x in range(kernel)] for y in range(kernel)])[None, None]
        padded = functional.pad(image, [padding] * 4, mode="constant" if mode == "zeros" else mode)
        return functional.conv2d(padded, weight.double(), stride=stride)
    pool = functional.max_pool2d if operation == "max" else functional.avg_pool2d
    return pool(image, kernel, stride, padding)


def test_it_opens_with_nine_steps(modules: Any) -> None:
    assert slid(modules)["values"] == [4, 3, 4, 2, 4, 3, 2, 3, 4]


@pytest.mark.parametrize("operation", ["conv", "avg", "max"])
@pytest.mark.parametrize("mode", ["zeros", "replicate"])
def test_what_comes_out_is_what_pytorch_makes_of_it(modules: Any, operation: str, mode: str) -> None:
    possible = 0
    for size, kernel, padding, stride in (
        (5, 3, 0, 1),
        (5, 3, 1, 2),
        (7, 2, 1, 2),
        (6, 5, 2, 3),
        (1, 3, 1, 1),
        (10, 7, 3, 4),
    ):
        settings: dict[str, Any] = {
            "kernel": kernel,
            "padding": padding,
            "mode": mode,
            "stride": stride,
            "operation": operation,
        }
        found = slid(modules, size=size, **settings)
        if "problem" in found:
            assert operation != "conv" and mode == "replicate"
            continue
        possible += 1
        wanted = by_torch(found["input"], **settings)
        assert found["result"] == wanted.shape[-1]
        assert found["values"] == pytest.approx(wanted.flatten().tolist())
        assert found["rest"] == (size + 2 * padding - kernel) % stride
    assert possible >= 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kernel": 7}, "calc_too_large"),
        ({"size": 1, "padding": 1, "kernel": 4}, "calc_too_large"),
        ({"operation": "max", "padding": 2}, "calc_all_padding"),
        ({"operation": "avg", "padding": 1, "mode": "replicate"}, "calc_no_replicate"),
    ],
)
def test_what_is_impossible_names_the_reason(modules: Any, changes: dict[str, Any], reason: str) -> None:
    assert slid(modules, **changes)["problem"][0] == reason


def test_the_tab_steps_through_the_example_and_says_why_not(served: Any, open_page: Any) -> None:
    page = open_page(f"{served()}#tab=calculator&lang=en")
    panel = page.locator("#panel-calculator")
    output = panel.locator("table.square").nth(1).locator("td.window")
    assert output.inner_text() == "4"
    panel.get_by_role("slider").fill("8")
    assert panel.get_by_text("Step 9 of 9").is_visible()
    assert panel.locator("table.square").nth(1).locator("tbody td").all_inner_texts() == list("434243234")
    panel.get_by_label("Kernel").fill("7")
    assert panel.get_by_text("Impossible: kernel 7 exceeds 5 + 2·0.").is_visible()
    panel.get_by_label("Padding").fill("1")
    assert panel.get_by_text("⌊(5 + 2·1 − 7) / 1⌋ + 1 = 1").is_visible()
