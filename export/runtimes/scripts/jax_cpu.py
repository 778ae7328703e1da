"""JAX: jaxonnxruntime turns the graph into a function, which XLA compiles once for each batch size."""

import jax
import numpy as np
import onnx
from harness import serve
from jaxonnxruntime.backend import Backend


def open_model(path, scratch):
    prepared = Backend.prepare(onnx.load(path))
    return jax.__version__, lambda size: lambda images: np.asarray(prepared.run({"images": images})[0])


serve(open_model)
