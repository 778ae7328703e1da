"""Cuts the schemas of custom resources down to what our manifests use, for tests that have no cluster to ask.

    python -m tests.deploy.crd CRD.yaml ...   the CustomResourceDefinitions as KServe and Kubeflow publish them

writes `crd_schemas.json` beside this file: for each kind, every object that a manifest of ours has, with the names of
all its fields, and the whole schema of those that are there. What a manifest adds later needs the command again.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
SCHEMAS = Path(__file__).parent / "crd_schemas.json"
MANIFESTS = [*sorted((DEPLOY / "kserve").glob("*.yaml")), DEPLOY / "kubernetes" / "training" / "trainjob.yaml"]
KEPT = (
    "type",
    "enum",
    "pattern",
    "required",
    "format",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
)


def pruned(schema: dict[str, Any], values: list[Any]) -> dict[str, Any]:
    """The part of an OpenAPI schema that these values are held to; an unknown field is an error."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    kept: dict[str, Any] = {key: schema[key] for key in KEPT if key in schema}
    if "properties" in schema:
        kept["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
        kept["properties"] = {
            name: pruned(inner, [value[name] for value in values if name in value])
            if any(name in value for value in values)
            else {}
            for name, inner in schema["properties"].items()
        }
    elif isinstance(schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = pruned(
            schema["additionalProperties"], [each for value in values for each in value.values()]
        )
    if "items" in schema:
        kept["items"] = pruned(schema["items"], [each for value in values for each in value])
    return kept


def main(paths: list[str]) -> None:
    schemas = {}
    manifests = [yaml.safe_load(path.read_bytes()) for path in MANIFESTS]
    for path in paths:
        definition = yaml.load(Path(path).read_bytes(), yaml.CSafeLoader)["spec"]
        for version in definition["versions"]:
            kind, api = definition["names"]["kind"], f"{definition['group']}/{version['name']}"
            ours = [each for each in manifests if (each["kind"], each["apiVersion"]) == (kind, api)]
            if ours:
                schemas[f"{api} {kind}"] = pruned(version["schema"]["openAPIV3Schema"], ours) | {"required": ["spec"]}
    SCHEMAS.write_text(json.dumps(schemas, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
