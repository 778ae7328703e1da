"""MXNet 1.9, whose importer is of 2022: it needs four edits to the graph, which change no number."""

from collections import namedtuple

import mxnet
import onnx
from harness import serve
from mxnet.contrib.onnx.onnx2mx.import_model import import_model
from onnx import numpy_helper

Batch = namedtuple("Batch", ["data"])


def edited(path):
    model = onnx.load(path)
    for constant in model.graph.initializer:
        if not constant.dims:  # a scalar becomes a vector of one
            constant.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constant).reshape(1), constant.name))
        shape = onnx.helper.make_tensor_value_info(constant.name, constant.data_type, list(constant.dims))
        model.graph.input.append(shape)  # as was usual before IR version 4
    for node in model.graph.node:
        if node.op_type == "Reshape":
            del node.attribute[:]  # allowzero, which is 0
    model.opset_import[0].version = 13
    return model


def open_model(path, scratch):
    onnx.save(edited(path), f"{scratch}/edited.onnx")
    symbol, arguments, auxiliary = import_model(f"{scratch}/edited.onnx")

    def runner_for(size):
        module = mxnet.mod.Module(symbol, data_names=["images"], label_names=None)
        module.bind(for_training=False, data_shapes=[("images", (size, 1, 28, 28))])
        module.set_params(arguments, auxiliary, allow_missing=True)

        def run(images):
            module.forward(Batch([mxnet.nd.array(images)]))
            return module.get_outputs()[0].asnumpy()

        return run

    return mxnet.__version__, runner_for


serve(open_model)
