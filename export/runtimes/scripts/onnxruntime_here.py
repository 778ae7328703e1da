"""ONNX Runtime as our server opens it: what the others are measured beside."""

import onnxruntime
from harness import serve


def open_model(path, scratch):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return onnxruntime.__version__, lambda size: lambda images: session.run(["logits"], {"images": images})[0]


serve(open_model)
