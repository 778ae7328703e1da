"""TensorRT engines: not built yet. What an export says instead."""

import shutil


def why_no_engine(max_batch_size: int) -> str:
    """Why the version has no `model.plan`, and how to make one."""
    host = "the GPU is there, but" if shutil.which("nvidia-smi") else "there is no NVIDIA GPU here, and"
    images = "x1x28x28"
    shapes = f"--minShapes=images:1{images} --optShapes=images:64{images} --maxShapes=images:{max_batch_size}{images}"
    return (
        f"TensorRT engine left out: {host} this release neither builds nor serves engines yet. By hand, for "
        f"other servers, on the GPU that will run it:\n    trtexec --onnx=model.onnx --saveEngine=model.plan {shapes}"
    )
