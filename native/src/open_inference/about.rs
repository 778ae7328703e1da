//! What the server says of itself and of its model, over gRPC and, in the same words, over HTTP.

use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use prost::{DecodeError, Message};

use super::tensors::{IMAGES, LOGITS, PROBABILITIES};
use crate::classify::quoted;
use crate::framing::framed;
use crate::job::Outcome;
use crate::proto::inference::model_metadata_response::TensorMetadata;
use crate::proto::inference::repository_index_response::ModelIndex;
use crate::proto::inference::*;
use crate::server::Server;
use crate::status::Status;
use crate::versions::Model;

/// Triton's names of the extensions that there are here.
const EXTENSIONS: [&str; 5] =
    ["binary_tensor_data", "classification", "model_configuration", "parameters", "statistics"];

/// The methods beside ModelInfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    ServerLive,
    ServerReady,
    ModelReady,
    ServerMetadata,
    ModelMetadata,
    ModelConfig,
    ModelStatistics,
    RepositoryIndex,
}

impl About {
    pub fn from_path(path: &str) -> Option<Self> {
        match path.strip_prefix("/inference.GRPCInferenceService/")? {
            "ServerLive" => Some(Self::ServerLive),
            "ServerReady" => Some(Self::ServerReady),
            "ModelReady" => Some(Self::ModelReady),
            "ServerMetadata" => Some(Self::ServerMetadata),
            "ModelMetadata" => Some(Self::ModelMetadata),
            "ModelConfig" => Some(Self::ModelConfig),
            "ModelStatistics" => Some(Self::ModelStatistics),
            "RepositoryIndex" => Some(Self::RepositoryIndex),
            _ => None,
        }
    }

    /// A probe has no token.
    pub fn is_health(self) -> bool {
        matches!(self, Self::ServerLive | Self::ServerReady | Self::ModelReady)
    }

    pub fn answer(self, server: &Server, message: &[u8]) -> Outcome {
        let malformed = |_: DecodeError| Status::malformed(message.len(), &format!("inference.{self:?}Request"));
        if self == Self::RepositoryIndex {
            let asked = RepositoryIndexRequest::decode(message).map_err(malformed)?;
            return repository_index(server, &asked).map(|index| reply(&index));
        }
        // The others have the same fields: a name and a version.
        let asked = ModelMetadataRequest::decode(message).map_err(malformed)?;
        let find = || server.life.versions.find(&asked.name, &asked.version);
        Ok(match self {
            Self::ServerLive => reply(&ServerLiveResponse { live: true }),
            Self::ServerReady => reply(&ServerReadyResponse { ready: server.life.is_serving() }),
            Self::ModelReady => reply(&ModelReadyResponse { ready: find().is_ok() && server.life.is_serving() }),
            Self::ServerMetadata => reply(&server_metadata(server)),
            Self::ModelMetadata => reply(&model_metadata(server, &find()?.model)),
            Self::ModelConfig => reply(&ModelConfigResponse { config: Some(config(&find()?.model)) }),
            Self::ModelStatistics | Self::RepositoryIndex => reply(&statistics(server, &find()?.model)),
        })
    }
}

fn reply(message: &impl Message) -> Bytes {
    framed(&message.encode_to_vec())
}

pub fn server_metadata(server: &Server) -> ServerMetadataResponse {
    let served = server.life.versions.current();
    let version = served.model.labels.iter().find(|(name, _)| name == "version");
    ServerMetadataResponse {
        name: "atelier".into(),
        version: version.map(|(_, version)| version.clone()).unwrap_or_default(),
        extensions: EXTENSIONS.map(String::from).into(),
    }
}

/// `pictures` is not among the inputs: it is an alternative, and clients send all that they find here.
pub fn model_metadata(server: &Server, model: &Model) -> ModelMetadataResponse {
    let tensor = |name: &str, datatype: &str, shape: &[i64]| TensorMetadata {
        name: name.into(),
        datatype: datatype.into(),
        shape: shape.into(),
    };
    ModelMetadataResponse {
        name: model.name.clone(),
        versions: server.life.versions.loaded().iter().map(|served| served.model.version.clone()).collect(),
        platform: config(model).platform,
        inputs: vec![tensor(IMAGES, "UINT8", &[-1, 1, 28, 28])],
        outputs: [LOGITS, PROBABILITIES].map(|name| tensor(name, "FP32", &[-1, 10])).into(),
    }
}

/// As Python has written it.
pub fn config(model: &Model) -> ModelConfig {
    ModelConfig::decode(model.config.as_slice()).unwrap_or_default()
}

/// From what is counted anyway.
pub fn statistics(server: &Server, model: &Model) -> ModelStatisticsResponse {
    let metrics = server.metrics();
    let num_failed = metrics.num_inferences().skip(1).sum();
    let of_all = |sum_us: u64| StatisticDuration { count: metrics.num_answered(), ns: sum_us * 1000 };
    let statistics = InferStatistics {
        success: Some(of_all(metrics.request.sum.load(Relaxed))),
        fail: Some(StatisticDuration { count: num_failed, ns: 0 }),
        queue: Some(of_all(metrics.queue.sum.load(Relaxed))),
        compute_input: Some(StatisticDuration::default()),
        compute_infer: Some(of_all(metrics.compute_us.load(Relaxed))),
        compute_output: Some(StatisticDuration::default()),
    };
    let of_model = ModelStatistics {
        name: model.name.clone(),
        version: model.version.clone(),
        inference_count: metrics.images.load(Relaxed),
        execution_count: metrics.batches.load(Relaxed),
        inference_stats: Some(statistics),
    };
    ModelStatisticsResponse { model_stats: vec![of_model] }
}

pub fn repository_index(server: &Server, asked: &RepositoryIndexRequest) -> Result<RepositoryIndexResponse, Status> {
    if !asked.repository_name.is_empty() {
        let what = format!("there is no repository {}", quoted(&asked.repository_name));
        return Err(Status::not_found("UNKNOWN_REPOSITORY", what, "leave its name empty"));
    }
    let (state, reason) = match server.life.check_is_serving() {
        Ok(()) => ("READY", String::new()),
        Err(status) => ("UNAVAILABLE", status.message),
    };
    let mut versions = server.life.versions.loaded();
    versions.retain(|_| !asked.ready || state == "READY");
    let models = versions.iter().map(|served| ModelIndex {
        name: served.model.name.clone(),
        version: served.model.version.clone(),
        state: state.into(),
        reason: reason.clone(),
    });
    Ok(RepositoryIndexResponse { models: models.collect() })
}
