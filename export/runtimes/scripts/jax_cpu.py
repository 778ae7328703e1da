"""JAX: jaxonnxruntime turns the graph into a function, which XLA compiles once for each batch size."""

import jax
import numpy as np
import onnx
from harness import serve
from jaxonnxruntime.call_onnx import call_onnx_model


def open_model(path, scratch):
    model = onnx.load(path)

    def runner_for(size):
        example = {"images": np.zeros((size, 1, 28, 28), np.uint8)}
        function, weights = call_onnx_model(model, example)
        compiled = jax.jit(function)
        return lambda images: np.asarray(compiled(weights, {"images": images})[0])

    return jax.__version__, runner_for


serve(open_model)
