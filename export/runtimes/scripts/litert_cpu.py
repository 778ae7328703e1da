"""LiteRT: the float32 .tflite that onnx2tf writes, in NHWC."""

from importlib.metadata import version
from pathlib import Path

from ai_edge_litert.interpreter import Interpreter
from harness import convert, serve


def open_model(path, scratch):
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


serve(open_model)
