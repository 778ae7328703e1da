"""OpenVINO: reads ONNX as it is."""

import openvino
from harness import serve


def open_model(path, scratch):
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    return openvino.__version__.split("-")[0], lambda size: lambda images: request.infer([images], share_inputs=True)[0]


serve(open_model)
