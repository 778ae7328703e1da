"""Runtimes that open the model as it is, each in a function that runs where only its runtime is installed.

`python openers.py <function> MODEL IMAGES.npy LOGITS.npy SCRATCH_DIR`; harness.py does the rest, the same for all.
Nothing here is imported from elsewhere in the project.
"""

import sys
from importlib.metadata import version

from harness import serve


def onnxruntime_here(path, scratch):
    """ONNX Runtime as our server opens it: what the others are measured beside."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return onnxruntime.__version__, lambda size: lambda images: session.run(["logits"], {"images": images})[0]


def pytorch(path, scratch):
    """PyTorch, running the exported program operator by operator."""
    import torch

    torch.set_num_threads(1)
    module = torch.export.load(path).module()

    @torch.inference_mode()
    def run(images):
        return module(torch.from_numpy(images)).numpy()

    return torch.__version__, lambda size: run


def opencv_dnn(path, scratch):
    """OpenCV's dnn module: reads ONNX as it is."""
    import cv2

    cv2.setNumThreads(1)

    def runner_for(size):
        net = cv2.dnn.readNetFromONNX(path)

        def run(images):
            net.setInput(images)
            return net.forward()

        return run

    return cv2.__version__, runner_for


def openvino_cpu(path, scratch):
    """OpenVINO: reads ONNX as it is."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    return openvino.__version__.split("-")[0], lambda size: lambda images: request.infer([images], share_inputs=True)[0]


def tract_cpu(path, scratch):
    """tract: reads ONNX as it is."""
    import tract
    from tract.transform import SetSymbols

    def runner_for(size):
        model = tract.onnx().load(path).into_model()
        model.transform(SetSymbols({"batch": size}))
        runnable = model.into_runnable()
        return lambda images: runnable.run([images])[0].to_numpy()

    return version("tract"), runner_for


def executorch_cpu(path, scratch):
    """ExecuTorch: the exported program, lowered to XNNPACK.

    Lowered as it is, the program takes batches of 15 at most, and so it is exported again for each batch size.
    """
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    module = torch.export.load(path).module()

    def runner_for(size):
        program = torch.export.export(module, (torch.zeros(size, 1, 28, 28, dtype=torch.uint8),))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
        loaded = Runtime.get().load_program(lowered.buffer)
        method = loaded.load_method("forward")

        def run(images):
            return method.execute([torch.from_numpy(images)])[0].numpy()

        run.memory = lowered, loaded  # which the method points into
        return run

    return version("executorch"), runner_for


if __name__ == "__main__":
    serve(globals()[sys.argv.pop(1)])
