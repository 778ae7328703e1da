"""Runtimes that convert the model first, each in a function that runs where only its runtime is installed.

See openers.py.
"""

import sys
from collections import namedtuple
from importlib.metadata import version
from pathlib import Path

import numpy as np
from harness import convert, serve


def tensorflow_saved_model(path, scratch):
    """TensorFlow: the SavedModel that onnx2tf writes, in NHWC."""
    import tensorflow

    tensorflow.config.threading.set_intra_op_parallelism_threads(1)
    tensorflow.config.threading.set_inter_op_parallelism_threads(1)
    convert("onnx2tf", "-i", path, "-o", f"{scratch}/tf")
    loaded = tensorflow.saved_model.load(f"{scratch}/tf")
    function = loaded.signatures["serving_default"]
    [(name, spec)] = function.structured_input_signature[1].items()

    def run(images):
        if spec.shape[1] != 1:
            images = images.reshape(-1, 28, 28, 1)  # one channel: the same bytes
        [logits] = function(**{name: tensorflow.cast(tensorflow.constant(images), spec.dtype)}).values()
        return logits.numpy()

    run.loaded = loaded  # or its variables are gone
    return tensorflow.__version__, lambda size: run


def litert_cpu(path, scratch):
    """LiteRT: the float32 .tflite that onnx2tf writes, in NHWC."""
    from ai_edge_litert.interpreter import Interpreter

    convert("onnx2tf", "-i", path, "-o", f"{scratch}/tf")
    [file] = Path(scratch, "tf").glob("*float32.tflite")

    def runner_for(size):
        interpreter = Interpreter(model_path=str(file), num_threads=1)
        given, found = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
        shape = (size, *given["shape"][1:])
        interpreter.resize_tensor_input(given["index"], shape)
        interpreter.allocate_tensors()

        def run(images):
            interpreter.set_tensor(given["index"], images.reshape(shape).astype(given["dtype"]))
            interpreter.invoke()
            return interpreter.get_tensor(found["index"])

        return run

    return version("ai-edge-litert"), runner_for


def jax_cpu(path, scratch):
    """JAX: jaxonnxruntime turns the graph into a function, which XLA compiles once for each batch size."""
    import jax
    import onnx
    from jaxonnxruntime.call_onnx import call_onnx_model

    model = onnx.load(path)

    def runner_for(size):
        example = {"images": np.zeros((size, 1, 28, 28), np.uint8)}
        function, weights = call_onnx_model(model, example)
        compiled = jax.jit(function)
        return lambda images: np.asarray(compiled(weights, {"images": images})[0])

    return jax.__version__, runner_for


def paddle_cpu(path, scratch):
    """PaddlePaddle: the program that x2paddle writes; it would report each conversion to its makers."""
    import paddle

    target = f"{scratch}/paddle"
    options = ["--framework", "onnx", "--model", path, "--save_dir", target, "--disable_feedback", "True"]
    convert("x2paddle", *options)
    module = paddle.jit.load(f"{target}/inference_model/model")
    module.eval()

    @paddle.no_grad()
    def run(images):
        return module(paddle.to_tensor(images)).numpy()

    return paddle.__version__, lambda size: run


def mxnet_cpu(path, scratch):
    """MXNet 1.9, whose importer is of 2022: it needs four edits to the graph, which change no number."""
    import mxnet
    import onnx
    from mxnet.contrib.onnx.onnx2mx.import_model import import_model

    batch = namedtuple("Batch", ["data"])
    onnx.save(_edited(path), f"{scratch}/edited.onnx")
    symbol, arguments, auxiliary = import_model(f"{scratch}/edited.onnx")

    def runner_for(size):
        module = mxnet.mod.Module(symbol, data_names=["images"], label_names=None)
        module.bind(for_training=False, data_shapes=[("images", (size, 1, 28, 28))])
        module.set_params(arguments, auxiliary, allow_missing=True)

        def run(images):
            module.forward(batch([mxnet.nd.array(images)]))
            return module.get_outputs()[0].asnumpy()

        return run

    return mxnet.__version__, runner_for


def _edited(path):
    import onnx
    from onnx import numpy_helper

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


def tvm_cpu(path, scratch):
    """TVM: ONNX to Relax, compiled by LLVM for this processor, once for each batch size."""
    import onnx
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    model = onnx.load(path)

    def runner_for(size):
        shapes, types = {"images": [size, 1, 28, 28]}, {"images": "uint8"}
        module = from_onnx(model, shape_dict=shapes, dtype_dict=types, keep_params_in_input=False)
        module = relax.transform.LegalizeOps()(relax.transform.DecomposeOpsForInference()(module))
        machine = relax.VirtualMachine(tvm.compile(module, target="llvm"), tvm.cpu())

        def run(images):
            logits = machine["main"](tvm.runtime.tensor(images))
            return (logits if hasattr(logits, "numpy") else logits[0]).numpy()

        return run

    return tvm.__version__, runner_for


def iree_cpu(path, scratch):
    """IREE: ONNX to MLIR, compiled for this processor, on its local-sync device (the caller's own thread)."""
    import iree.runtime

    module, compiled = f"{scratch}/model.mlir", f"{scratch}/model.vmfb"
    convert("iree-import-onnx", path, "-o", module, "--opset-version", "20")
    target = ["--iree-hal-target-device=local", "--iree-hal-local-target-device-backends=llvm-cpu"]
    target += ["--iree-llvmcpu-target-cpu=host"]
    convert("iree-compile", module, *target, "-o", compiled)
    context = iree.runtime.SystemContext(config=iree.runtime.Config("local-sync"))
    context.add_vm_module(iree.runtime.VmModule.mmap(context.instance, compiled))
    module = context.modules[[name for name in dict(context.modules) if name != "hal"][-1]]
    names = [name for name in module.vm_module.function_names if not name.startswith("__") and "async" not in name]
    return version("iree-base-runtime"), lambda size: lambda images: np.asarray(module[names[0]](images))


if __name__ == "__main__":
    serve(globals()[sys.argv.pop(1)])
