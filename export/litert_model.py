"""`model.tflite`, by onnx2tf, which brings TensorFlow: in an environment of its own, never in ours."""

import os
import subprocess
import tempfile
from pathlib import Path

from atelier.environments import python_with
from atelier.errors import ProgramError
from export.runtimes.known import ONNX2TF
from export.runtimes.measure import ENVIRONMENTS

CONVERT_TIMEOUT_S = 600


def litert_from(model_onnx: bytes) -> bytes:
    """Returns the `.tflite` file, in float32. Raises ProgramError NO_ENVIRONMENT or LITERT if that fails."""
    converter = python_with(ONNX2TF, ENVIRONMENTS / "onnx2tf").with_name("onnx2tf")
    with tempfile.TemporaryDirectory(prefix="atelier-litert-") as directory:
        given, found = Path(directory, "model.onnx"), Path(directory, "converted")
        given.write_bytes(model_onnx)  # which it writes over
        command = [str(converter), "-i", str(given), "-o", str(found)]
        surroundings = os.environ | {"HOME": directory}
        surroundings.pop("PYTHONPATH", None)
        done = subprocess.run(  # noqa: S603
            command, cwd=directory, env=surroundings, capture_output=True, timeout=CONVERT_TIMEOUT_S, check=False
        )
        path = found / "model_float32.tflite"
        if done.returncode or not path.exists():
            lines = (done.stdout + done.stderr).decode(errors="replace").strip().splitlines()
            raise ProgramError("LITERT", "onnx2tf cannot convert the model", why=lines[-1] if lines else "")
        return path.read_bytes()
