"""Messages that every front end answers with the same bytes."""

from typing import Final

from atelier.contract import TensorSpec
from atelier.wire import classifier_pb2 as pb
from atelier.wire import open_inference_pb2 as oip
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


# Triton's names of the extensions that there are here.
EXTENSIONS: Final = ("binary_tensor_data", "classification", "model_configuration", "parameters", "statistics")
# Triton's names of platforms; of others, the backend's name says it.
PLATFORMS: Final = {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan", "torch": "pytorch_libtorch"}


def model_config(model: ServedModel, config: ServerConfig) -> oip.ModelConfig:
    """Describes the model in Triton's terms. What bounds a request there is the batch: larger ones are split here."""
    manifest, backend = model.manifest, model.backend
    result = oip.ModelConfig(
        name=manifest.model_name,
        platform=PLATFORMS.get(backend.name, backend.name),
        backend=backend.name,
        version_policy=oip.ModelVersionPolicy(latest=oip.ModelVersionPolicy.Latest(num_versions=1)),
        max_batch_size=config.max_images_per_request,
        dynamic_batching=oip.ModelDynamicBatching(preferred_batch_size=[backend.max_batch_size]),
    )
    dims = manifest.input.shape[1:]
    image_format = oip.ModelInput.FORMAT_NCHW
    result.input.add(name=manifest.input.name, data_type=oip.TYPE_UINT8, dims=dims, format=image_format)
    for name in (manifest.output.name, "probabilities"):
        result.output.add(name=name, data_type=oip.TYPE_FP32, dims=manifest.output.shape[1:])
    kind = oip.ModelInstanceGroup.KIND_GPU if "cuda" in backend.device else oip.ModelInstanceGroup.KIND_CPU
    result.instance_group.add(name=manifest.model_name, count=1, kind=kind)
    return result


def _tensor_spec(spec: TensorSpec) -> pb.TensorSpec:
    return pb.TensorSpec(name=spec.name, dtype=spec.dtype, shape=spec.shape)
