"""Messages that every front end answers with the same bytes."""

from atelier.contract import TensorSpec
from atelier.wire import classifier_pb2 as pb
from serving.config import ServerConfig
from serving.models import ServedModel


def description_of(model: ServedModel, config: ServerConfig) -> bytes:
    """Serialises GetModelResponse."""
    manifest, backend, proof = model.manifest, model.backend, model.proof
    return pb.GetModelResponse(
        model_name=manifest.model_name,
        model_version=str(manifest.version),
        architecture=manifest.architecture,
        backend=backend.name,
        device=backend.device,
        precision=manifest.precision,
        input=_tensor_spec(manifest.input),
        output=_tensor_spec(manifest.output),
        classes=manifest.classes,
        max_batch_size=backend.max_batch_size,
        max_images_per_request=config.max_images_per_request,
        max_message_bytes=config.max_message_bytes,
        model_sha256=model.sha256,
        checkpoint_sha256=manifest.checkpoint_sha256,
        num_probes=proof.num_probes if proof else 0,
        max_abs_diff_here=proof.max_abs_diff if proof else 0.0,
    ).SerializeToString()


def _tensor_spec(spec: TensorSpec) -> pb.TensorSpec:
    return pb.TensorSpec(name=spec.name, dtype=spec.dtype, shape=spec.shape)
