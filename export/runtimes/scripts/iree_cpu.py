"""IREE: ONNX to MLIR, compiled for this processor, on its local-sync device (the caller's own thread)."""

from importlib.metadata import version

import iree.runtime
import numpy as np
from harness import convert, serve


def open_model(path, scratch):
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


serve(open_model)
