"""Build hook: generate the protobuf modules from protos/*.proto, for wheels and editable installs alike."""

import importlib.resources
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ProtobufBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Writes ``protos/<name>_pb2.py`` and its ``.pyi`` beside each ``protos/<name>.proto``."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's signature
        from grpc_tools import protoc

        protos = sorted(str(path.relative_to(self.root)) for path in Path(self.root, "protos").glob("*.proto"))
        well_known = importlib.resources.files("grpc_tools") / "_proto"
        sources = (f"-I{self.root}", f"-I{well_known}")
        targets = (f"--python_out={self.root}", f"--pyi_out={self.root}")
        if protoc.main(["protoc", *sources, *targets, *protos]) != 0:
            raise RuntimeError(f"protoc failed on {', '.join(protos)}; its message is above")
