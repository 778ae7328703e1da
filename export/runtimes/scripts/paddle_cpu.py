"""PaddlePaddle: the program that x2paddle writes. It would report each conversion to its makers, and is told not to."""

import paddle
from harness import convert, serve


def open_model(path, scratch):
    target = f"{scratch}/paddle"
    options = ["--framework", "onnx", "--model", path, "--save_dir", target, "--disable_feedback", "True"]
    convert("x2paddle", *options)
    module = paddle.jit.load(f"{target}/inference_model/model")
    module.eval()

    @paddle.no_grad()
    def run(images):
        return module(paddle.to_tensor(images)).numpy()

    return paddle.__version__, lambda size: run


serve(open_model)
