"""Checks a torch.export program before torch sees it: it can only be one of our exports with other numbers in it.

`torch.export.load` trusts its file: it unpickles, evaluates the expressions and the guards in the graph's JSON as
Python, and takes any attribute of torch for an operator. So every entry of the archive, every key and every string of
the JSON is held to what the exporter writes, and torch gets a new archive that was made of what was checked.
"""

import io
import json
import re
import zipfile
from typing import Any

from atelier.errors import BadDataError
from atelier.memory import is_out_of_memory

MAX_BYTES = 16 << 20
MAX_NODES = 64  # the largest export has 38
LARGEST_NUMBER = 1 << 20  # of a shape
ROOT = "archive/"
GRAPH = "models/model.json"
SAMPLE_INPUTS = "data/sample_inputs/model.pt"  # a pickle, which nobody needs
ENTRIES = re.compile(
    r"\.data/(serialization_id|version)|byteorder|archive_(version|format)|models/model\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/model_constants_config\.json"
)
OPERATORS = {
    f"torch.ops.aten.{name}"
    for name in (
        *("_assert_tensor_metadata.default", "to.dtype", "add.Tensor", "div.Tensor", "mul.Tensor", "pad.default"),
        *("conv2d.default", "linear.default", "flatten.using_ints", "avg_pool2d.default", "max_pool2d.default"),
        *("gelu.default", "relu.default", "sigmoid.default", "tanh.default"),
    )
}
KEYS = {
    *("graph_module", "guards_code", "opset_version", "range_constraints", "schema_version", "torch_version"),
    *("verifiers", "graph", "metadata", "module_call_graph", "signature", "treespec_namedtuple_fields", "inputs"),
    *("outputs", "nodes", "tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values", "arg", "kind"),
    *("custom_obj_values", "is_single_tensor_return", "is_hop_single_tensor_return", "name", "target", "aten"),
    *("as_tensor", "as_device", "as_float", "as_int", "as_ints", "as_layout", "as_scalar_type", "as_string"),
    *("as_expr", "expr_str", "hint", "index", "type", "nn_module_stack", "torch_fn", "device", "dtype", "layout"),
    *("requires_grad", "sizes", "storage_offset", "strides", "input_specs", "output_specs", "parameter"),
    *("user_input", "user_output", "parameter_name", "fqn", "forward_arg_names", "in_spec", "out_spec", "min_val"),
    *("max_val", "major", "minor", "config", "is_param", "path_name", "tensor_meta", "use_pickle"),
}
NAMING = {"tensor_values", "range_constraints", "config"}  # their keys are names
EMPTY = {"guards_code", "custom_obj_values", "sym_int_values", "sym_bool_values", "sym_float_values", "use_pickle"}
EMPTY |= {"treespec_namedtuple_fields"}
NAME = re.compile(r"[A-Za-z0-9_.]*")  # no bracket, blank or operator: nothing that could be evaluated to anything
STRINGS = {
    "expr_str": re.compile(r"Symbol\('s\d+', positive=True, integer=True\)|s\d+"),
    "in_spec": re.compile(r"""("(type|context|children_spec|builtins\.(tuple|dict)|null|\[\])"|null|[\[\]{}:, 1])*"""),
    "nn_module_stack": re.compile(r"[A-Za-z0-9_.,;]*"),
    "torch_version": re.compile(r"[A-Za-z0-9_.+]*"),
}
STRINGS |= {"out_spec": STRINGS["in_spec"], "torch_fn": STRINGS["nn_module_stack"]}


def checked_program(program: bytes) -> bytes:
    """Returns the same program in a new archive, without its sample inputs. Raises ValueError for any other file."""
    if len(program) > MAX_BYTES:
        raise ValueError(f"it has {len(program)} bytes, the limit is {MAX_BYTES}")
    checked = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(program)) as archive, zipfile.ZipFile(checked, "w") as new:
        for entry in archive.infolist():
            name = entry.filename.removeprefix(ROOT)
            if name == SAMPLE_INPUTS:
                new.writestr(ROOT + name, b"")
                continue
            if not ENTRIES.fullmatch(name) or entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"it holds {entry.filename[:80]!r}, which no export does")
            if ROOT + name in new.namelist():
                raise ValueError(f"it holds {name} twice")
            data = archive.read(entry)
            if name.endswith(".json"):
                _check_json(name, json.loads(data))
            new.writestr(ROOT + name, data)
    return checked.getvalue()


def check_program(program: bytes) -> None:
    """Raises BadDataError BAD_PROGRAM for any other file."""
    try:
        checked_program(program)
    except Exception as error:  # of zipfile, json, and layouts that are none: KeyError, TypeError, ...
        if is_out_of_memory(error):
            raise
        what = f"the program will not be served: {next(iter(str(error).splitlines()), type(error).__name__)}"
        raise BadDataError("BAD_PROGRAM", what, "make export writes a new version") from None


def _check_json(name: str, document: Any) -> None:
    _check_value(document, "")
    if name == GRAPH:
        nodes = document["graph_module"]["graph"]["nodes"]
        foreign = sorted({str(node["target"])[:80] for node in nodes if node["target"] not in OPERATORS})
        if foreign or len(nodes) > MAX_NODES:
            raise ValueError(f"it has {len(nodes)} nodes, and the operators {foreign}, which no export has")


def _check_value(value: Any, key: str) -> None:
    """Raises ValueError for a key that exports have not, and for a string that could be more than a name."""
    if key in EMPTY and value:
        raise ValueError(f"its {key} is not empty, as in every export")
    if isinstance(value, dict):
        for name, each in value.items():
            if not (NAME.fullmatch(name) if key in NAMING else name in KEYS):
                raise ValueError(f"it has the key {name[:80]!r}, which no export has")
            _check_value(each, "" if key in NAMING else name)
    elif isinstance(value, list):
        for each in value:
            _check_value(each, key)
    elif isinstance(value, str) and not STRINGS.get(key, NAME).fullmatch(value):
        raise ValueError(f"its {key or 'text'} is {value[:80]!r}, which no export has")
    elif isinstance(value, int | float) and not abs(value) <= LARGEST_NUMBER:
        raise ValueError(f"its {key} is {value}")
