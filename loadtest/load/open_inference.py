"""Open Inference Protocol: what is asked of such a server, and what its answer must be."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from atelier.contract import Logits
from atelier.wire import OPEN_INFERENCE
from atelier.wire import open_inference_pb2 as oip
from loadtest.load.protocols import Checked, Found, Reference, ServerProtocol, named_owner, none_found
from serving.manifest import MODEL_NAME


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenInference(ServerProtocol):
    """inference.GRPCInferenceService/ModelInfer, tensors `images` (UINT8) to `logits` (FP32), raw contents."""

    reference: Reference
    method: str = f"/{OPEN_INFERENCE}/ModelInfer"

    def request(self, indices: Sequence[int]) -> bytes:
        """Makes a ModelInferRequest."""
        images = self.reference.images[list(indices)]
        request = oip.ModelInferRequest(model_name=MODEL_NAME)
        request.inputs.add(name="images", datatype="UINT8", shape=images.shape)
        request.outputs.add(name="logits")
        request.raw_input_contents.append(images.tobytes())
        return request.SerializeToString()

    def check(self, reply: bytes, indices: Sequence[int]) -> Checked:
        """Holds a reply to one row of the reference's logits per image."""
        try:
            response = oip.ModelInferResponse.FromString(reply)
        except DecodeError:
            return Checked(f"{len(reply)} bytes that are no ModelInferResponse")
        outputs = [(output.name, output.datatype, list(output.shape)) for output in response.outputs]
        if outputs != [("logits", "FP32", [len(indices), 10])]:
            return Checked(f"tensors {outputs} instead of logits, FP32, [{len(indices)}, 10]")
        if response.raw_output_contents:
            raw = response.raw_output_contents[0]
        else:
            raw = np.array(response.outputs[0].contents.fp32_contents, "<f4").tobytes()
        if len(raw) != 40 * len(indices):
            return Checked(f"{len(raw)} bytes for logits of shape [{len(indices)}, 10]")
        return Checked(self._fault(np.frombuffer(raw, "<f4").reshape(-1, 10), indices))

    def found_right(self, replies: bytes, ends: NDArray[np.int64], images: NDArray[np.intp]) -> Found:
        """Does what ServerProtocol's does."""
        import atelier_native

        is_read, logits = atelier_native.logits(replies, ends.tobytes(), images.shape[1])
        expected = self.reference.logits[images]  # (N, images of each, 10)
        with np.errstate(invalid="ignore"):  # NaN is no right answer
            differences = np.abs(np.frombuffer(logits, "<f4").reshape(expected.shape) - expected)
        is_right = (differences <= 10 * self.reference.atol).all(axis=(1, 2))
        return none_found(len(images))._replace(is_right=is_right & np.frombuffer(is_read, np.bool_))

    def _fault(self, found: Logits, indices: Sequence[int]) -> str:
        expected, atol = self.reference.logits, 10 * self.reference.atol
        with np.errstate(invalid="ignore"):
            differences = np.abs(found - expected[list(indices)]).max(axis=1)
        if (differences <= atol).all():  # not for NaN
            return ""
        row = int(np.argmin(differences <= atol))
        what = f"image {indices[row]}: logits {differences[row]:.3g} off the reference's"
        with np.errstate(invalid="ignore"):
            return what + named_owner(np.flatnonzero(np.abs(expected - found[row]).max(axis=1) <= atol))
