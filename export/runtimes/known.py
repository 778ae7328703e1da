"""The frameworks and runtimes that take the served model: what is installed for each, and which way the model goes.

Those of the tutorial's table first (Dive into Deep Learning compares them), then those that others deploy with.
"""

from dataclasses import dataclass

from serving.manifest import ONNX_NAME, PROGRAM_NAME


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """One row: a function of the script opens `model` in an environment that holds `packages`."""

    title: str
    framework: str = ""  # of the tutorial's table, if it stands for one
    route: str
    opener: str = ""
    script: str = "openers.py"
    packages: tuple[str, ...] = ()  # pinned; none: it runs in our own environment
    model: str = ONNX_NAME
    environment: str = ""  # a name that several may share; "" is its own
    sees_ours: bool = False


# TensorFlow comes with the converter, so both of its runtimes share an environment. JAX's converter and Paddle's need
# more than they ask for; Paddle's cannot read what later onnx writes.
ONNX2TF = ("onnx2tf==1.29.24", "tensorflow==2.19.0", "ai-edge-litert==2.1.0")
PADDLE = ("paddlepaddle==3.3.1", "x2paddle==1.6.0", "onnx==1.17.0", "six==1.17.0", "requests==2.34.2")

RUNTIMES = {
    "pytorch": Runtime(
        title="PyTorch",
        framework="PyTorch",
        route="torch.export.load(model.pt2)",
        opener="pytorch",
        model=PROGRAM_NAME,
    ),
    "tensorflow": Runtime(
        title="TensorFlow",
        framework="TensorFlow",
        route="onnx2tf, SavedModel",
        script="converters.py",
        opener="tensorflow_saved_model",
        packages=ONNX2TF,
        environment="onnx2tf",
    ),
    "litert": Runtime(
        title="LiteRT",
        framework="TensorFlow",
        route="onnx2tf, .tflite",
        script="converters.py",
        opener="litert_cpu",
        packages=ONNX2TF,
        environment="onnx2tf",
    ),
    "jax": Runtime(
        title="JAX",
        framework="JAX",
        route="jaxonnxruntime, jax.jit",
        script="converters.py",
        opener="jax_cpu",
        packages=("jax==0.10.2", "jaxonnxruntime==0.3.0", "onnx==1.23.2", "absl-py==2.5.1"),
    ),
    "paddle": Runtime(
        title="PaddlePaddle",
        framework="PaddlePaddle",
        route="x2paddle",
        script="converters.py",
        opener="paddle_cpu",
        packages=(*PADDLE, "setuptools==80.9.0"),
    ),
    "mxnet": Runtime(
        title="MXNet",
        framework="MXNet",
        route="its ONNX importer, after four edits to the graph",
        script="converters.py",
        opener="mxnet_cpu",
        packages=("mxnet==1.9.1", "numpy==1.23.5", "onnx==1.14.1", "protobuf==3.20.3"),
    ),
    "opencv": Runtime(
        title="OpenCV dnn",
        framework="Caffe",
        route="readNetFromONNX (Caffe's heir: it began as a reader of Caffe's models)",
        opener="opencv_dnn",
        packages=("opencv-python-headless==5.0.0.93",),
    ),
    "openvino": Runtime(
        title="OpenVINO",
        route="compile_model(model.onnx)",
        opener="openvino_cpu",
        packages=("openvino==2026.4.1",),
    ),
    "tvm": Runtime(
        title="TVM",
        route="relax.frontend.onnx, LLVM",
        script="converters.py",
        opener="tvm_cpu",
        packages=("apache-tvm==0.27.0.post1", "onnx==1.23.2"),
    ),
    "iree": Runtime(
        title="IREE",
        route="iree-import-onnx, iree-compile llvm-cpu",
        script="converters.py",
        opener="iree_cpu",
        packages=("iree-base-compiler[onnx]==3.13.0", "iree-base-runtime==3.13.0"),
    ),
    "tract": Runtime(title="tract", route="tract.onnx().load", opener="tract_cpu", packages=("tract==0.23.9",)),
    "executorch": Runtime(
        title="ExecuTorch",
        route="model.pt2, lowered to XNNPACK",
        opener="executorch_cpu",
        packages=("executorch==1.5.1",),
        model=PROGRAM_NAME,
        sees_ours=True,  # PyTorch
    ),
    "onnxruntime-web": Runtime(
        title="onnxruntime-web in Node",
        route="WebAssembly",
        script="onnxruntime_web.mjs",
        packages=("onnxruntime-web@1.30.0",),
    ),
}
OURS = Runtime(title="ONNX Runtime", route="model.onnx, as it is served", opener="onnxruntime_here")

# Of the tutorial's table, and why there is no route.
ABSENT = {
    "Caffe": "no importer of ONNX, no package for a Python of today, no release since 2017; OpenCV stands in",
    "MMDetection": "a toolbox for detection on top of PyTorch: no importer, and no place for a classifier's graph",
}
