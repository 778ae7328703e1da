"""An exporter that is quicker the second time."""

import functools
import importlib
from typing import Any

import pytest


@pytest.fixture(scope="session", autouse=True)
def functions_read_once() -> None:
    """At each export onnxscript reads the source of its 500 functions again, for a third of all the time it takes."""
    library: Any = importlib.import_module("torch.onnx._internal._lazy_import")
    apis = library.onnxscript_apis
    apis.get_torchlib_ops = functools.cache(apis.get_torchlib_ops)
