"""Build hook: generates the protobuf modules from protos/*.proto, for wheels and editable installs alike."""

import importlib.resources
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ProtobufBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Writes ``atelier/wire/<name>_pb2.py`` and its ``.pyi`` for each ``protos/<name>.proto``.

    A program has one pool of descriptors, by file name: as `atelier/wire/...` ours never meet a user's own protos.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's signature
        """Runs protoc before anything is packed."""
        from grpc_tools import protoc

        protos = sorted(f"atelier/wire/{path.name}" for path in Path(self.root, "protos").glob("*.proto"))
        well_known = importlib.resources.files("grpc_tools") / "_proto"
        sources = (f"-Iatelier/wire={Path(self.root, 'protos')}", f"-I{well_known}")
        targets = (f"--python_out={self.root}", f"--pyi_out={self.root}")
        if protoc.main(["protoc", *sources, *targets, *protos]) != 0:
            raise RuntimeError(f"protoc failed on {', '.join(protos)}; its message is above")
