"""Runs the exported program with PyTorch: the reference that the other runtimes are held against.

The only module of `serving` that imports torch.
"""

import io
import os
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.export.passes import move_to_device_pass

from atelier.contract import Images, Logits
from atelier.errors import BadDataError, ResourceUnavailableError, UsageError
from atelier.memory import is_out_of_memory
from serving.backends.base import Backend
from serving.backends.program_check import checked_program


class TorchBackend(Backend):
    """Runs a `torch.export` program. `program` is the whole file.

    `num_threads` is the whole process's: torch has one pool. `compiled` makes code of the program at its first run,
    with torch.compile, which takes seconds to minutes; it is there to be compared with.
    Raises BadDataError if the program cannot be loaded or would execute code; ResourceUnavailableError if the
    device is not there; UsageError for an unknown device.
    """

    name = "torch"

    def __init__(
        self,
        program: bytes,
        *,
        device: str = "cpu",
        num_threads: int = 1,
        max_batch_size: int,
        compiled: bool = False,
    ) -> None:
        self._device = _device_from(device)
        self.device = str(self._device)
        self.max_batch_size = max_batch_size
        torch.set_num_threads(num_threads)
        self._model = _model_from(program, self._device)
        # A call of the module looks at the images' shape anew, for half a millisecond; callers have done so.
        self._run = self._model.forward
        if compiled:
            self.name = "torch-compiled"
            self._model.compile(dynamic=True, fullgraph=True)  # one piece of code for all batch sizes, or an error
            self._run = self._model

    def infer(self, images: Images) -> Logits:
        """Computes (N, 1, 28, 28) uint8 -> (N, 10) float32."""
        writable = np.require(images, requirements="W")  # a request's bytes are read-only, which torch does not have
        with torch.inference_mode():
            logits = self._run(torch.from_numpy(writable).to(self._device))  # (N, 10)
        return cast(Logits, logits.cpu().numpy())

    def close(self) -> None:
        """Drops the weights and with them the device's memory."""
        del self._model, self._run


def _device_from(device: str) -> torch.device:
    try:
        found = torch.device(device)
    except RuntimeError:
        found = torch.device("meta")
    if found.type not in ("cpu", "cuda"):
        raise UsageError(
            "BAD_DEVICE", f"{device!r} is no device of the torch backend's", "use cpu, cuda or cuda:<index>"
        )
    if found.type == "cpu":
        return found
    index = found.index or 0
    if index >= torch.cuda.device_count():
        why = f"torch {torch.__version__} sees {torch.cuda.device_count()} GPUs"
        raise ResourceUnavailableError("NO_GPU", f"asked for torch on {device}", "use --device cpu", why=why)
    # TF32 keeps 10 bits of 23, which is another precision than the one proven; convolutions have it on by default.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device("cuda", index)


def _model_from(program: bytes, device: torch.device) -> nn.Module:
    again = "make export writes a new version"
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # for every torch.load, whatever it asks for: no pickles
    try:
        exported = torch.export.load(io.BytesIO(checked_program(program)))
        model = move_to_device_pass(exported, device).module()
    except Exception as error:  # torch raises what its layers raise: RuntimeError, KeyError, AssertionError, ...
        if is_out_of_memory(error):
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        what = f"torch {torch.__version__} cannot load the program: {reason}"
        raise BadDataError("BAD_PROGRAM", what, again) from error
    for name, weight in model.state_dict().items():
        if not bool(weight.isfinite().all()):
            raise BadDataError("NON_FINITE", f"the program will not be served: {name} holds NaN or infinity", again)
    return model
