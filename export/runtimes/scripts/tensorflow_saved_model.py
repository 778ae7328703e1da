"""TensorFlow: the SavedModel that onnx2tf writes, in NHWC."""

import tensorflow
from harness import convert, serve


def open_model(path, scratch):
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


serve(open_model)
