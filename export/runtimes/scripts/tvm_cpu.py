"""TVM: ONNX to Relax, compiled by LLVM for this processor, once for each batch size."""

import onnx
import tvm
from harness import serve
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx


def open_model(path, scratch):
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


serve(open_model)
