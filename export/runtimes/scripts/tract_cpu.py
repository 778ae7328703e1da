"""tract: reads ONNX as it is."""

from importlib.metadata import version

import tract
from harness import serve
from tract.transform import SetSymbols


def open_model(path, scratch):
    def runner_for(size):
        model = tract.onnx().load(path).into_model()
        model.transform(SetSymbols({"batch": size}))
        runnable = model.into_runnable()
        return lambda images: runnable.run([images])[0].to_numpy()

    return version("tract"), runner_for


serve(open_model)
