"""The runtimes a model can be served on, one module each, behind the interface in base.py."""

import os

# ONNX Runtime's builds collect telemetry: importing one writes a device identifier under the home. Ours stays silent,
# unless the environment says otherwise; it is read at the import, so it stands here.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
