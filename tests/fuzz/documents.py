"""Makes mutants of JSON documents, and of requests that have them."""

import base64
import copy
import json
from random import Random
from typing import Any

from tests.fuzz.messages import IMAGE
from tests.fuzz.mutants import PICTURES, mutated_bytes

ODD: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    1.5,
    255,
    256,
    1e308,
    2**31,
    2**63,
    2**64,
    10**400,
    "",
    "x",
    "1",
    "é\U0001f45f",
]
ODD += ["../../etc/passwd", "nul\0", "line\nfeed", "x" * 300, "0" * 64, [], {}, [[]], [{}], {"": None}, [0] * 1000]


def mutated_document(random: Random, document: Any) -> bytes:
    """Returns the JSON of a mutant of the document, which stays as it is; now and then it is no JSON."""
    mutant = json.loads(json.dumps(document))
    for _ in range(random.choice((1, 1, 2, 4))):
        mutant = _changed(random, mutant)
    text = json.dumps(mutant).encode()
    return mutated_bytes(random, text) if random.random() < 0.2 else text


def _changed(random: Random, value: Any) -> Any:
    """Goes down a random way, and changes what is there."""
    if random.random() < 0.15 or not value or not isinstance(value, dict | list):
        return copy.deepcopy(random.choice(ODD))
    key = random.choice(list(value)) if isinstance(value, dict) else random.randrange(len(value))
    choice = random.random()
    if choice < 0.1:
        del value[key]
    elif choice < 0.15 and isinstance(value, dict):
        value[random.choice(("", "x", "format", "__class__"))] = value[key]
    elif choice < 0.2 and isinstance(value, list):
        value.insert(key, value[key])
    else:
        value[key] = _changed(random, value[key])
    return value


def _tensor(name: str, datatype: str, shape: list[int], **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, **more}


ENCODED = [base64.b64encode(picture).decode() for picture in PICTURES[:2]]
OUTPUTS = [{"name": "logits"}, {"name": "probabilities", "parameters": {"classification": 3}}]
INFER = [
    {"id": "7", "inputs": [_tensor("images", "UINT8", [1, 1, 28, 28], data=list(IMAGE))], "outputs": OUTPUTS},
    {"inputs": [_tensor("pictures", "BYTES", [2], data=ENCODED)], "parameters": {"invert": True, "timeout": 5_000_000}},
    {"inputs": [_tensor("images", "UINT8", [1, 1, 28, 28], parameters={"binary_data_size": 784})]},
]
CLASSIFY = [{"images": [list(IMAGE)], "top_k": 3}, {"pictures": ENCODED, "prepare": True}, {"model_name": "lenet5"}]


def request_in_json(seed: int, number: int) -> tuple[str, bytes, dict[str, str]]:
    """Makes the request of this seed and number: its path, body and headers."""
    random = Random(seed << 40 | number)
    headers = {"Content-Type": "application/json"}
    if random.random() < 0.4:
        return "/v1/classify", mutated_document(random, random.choice(CLASSIFY)), headers
    document = random.choice(INFER)
    body = mutated_document(random, document)
    if document is INFER[-1]:
        length = len(body) + random.choice((0, 0, 0, 1, -1, 10**6))
        headers["Inference-Header-Content-Length"] = str(length)
        body += IMAGE[: random.choice((784, 784, 783, 0))]
    return "/v2/models/lenet5/infer", body, headers
