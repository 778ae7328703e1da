//! What the server says of itself and of its model, in JSON: the fields of gRPC's messages.
#![forbid(unsafe_code)]

use serde::Deserialize;
use serde_json::{Value, json};

use super::reply::Page;
use super::route::Route;
use crate::open_inference::about;
use crate::proto::inference::model_metadata_response::TensorMetadata;
use crate::proto::inference::{DataType, ModelStatistics, RepositoryIndexRequest, StatisticDuration};
use crate::server::Server;
use crate::status::Status;
use crate::versions::Model;

/// Every route that only shows something.
pub fn view(server: &Server, route: Route<'_>) -> Result<Page, Status> {
    match route {
        Route::Live => Ok(Page::json(&json!({"live": true}))),
        Route::Ready => server.life.check_is_serving().map(|()| Page::json(&json!({"ready": true}))),
        Route::ModelReady { name, version } => {
            let served = server.life.versions.find(name, version)?;
            server.life.check_is_serving()?;
            Ok(Page::json(&json!({"name": served.model.name, "ready": true})))
        }
        Route::Model { name, version } => {
            Ok(Page::json(&metadata(server, &server.life.versions.find(name, version)?.model)))
        }
        Route::Config { name, version } => Ok(Page::json(&config(&server.life.versions.find(name, version)?.model))),
        Route::Statistics { name, version } => {
            let served = server.life.versions.find(name, version)?;
            let of_models = about::statistics(server, &served.model).model_stats.into_iter().map(statistics);
            Ok(Page::json(&json!({"model_stats": of_models.collect::<Vec<Value>>()})))
        }
        _ => {
            let about = about::server_metadata(server);
            let (name, version, extensions) = (about.name, about.version, about.extensions);
            Ok(Page::json(&json!({"name": name, "version": version, "extensions": extensions})))
        }
    }
}

fn metadata(server: &Server, model: &Model) -> Value {
    let about = about::model_metadata(server, model);
    let tensor = |one: &TensorMetadata| json!({"name": one.name, "datatype": one.datatype, "shape": one.shape});
    json!({
        "name": about.name,
        "versions": about.versions,
        "platform": about.platform,
        "inputs": about.inputs.iter().map(tensor).collect::<Vec<Value>>(),
        "outputs": about.outputs.iter().map(tensor).collect::<Vec<Value>>(),
    })
}

fn config(model: &Model) -> Value {
    let config = about::config(model);
    let kind = |number: i32| DataType::try_from(number).unwrap_or_default().as_str_name();
    let inputs = config.input.iter().map(|input| {
        let format = input.format().as_str_name();
        json!({"name": input.name, "data_type": kind(input.data_type), "format": format, "dims": input.dims})
    });
    let outputs = config
        .output
        .iter()
        .map(|output| json!({"name": output.name, "data_type": kind(output.data_type), "dims": output.dims}));
    let instances = config
        .instance_group
        .iter()
        .map(|group| json!({"name": group.name, "count": group.count, "kind": group.kind().as_str_name()}));
    let sizes = config.dynamic_batching.unwrap_or_default().preferred_batch_size;
    json!({
        "name": config.name,
        "platform": config.platform,
        "backend": config.backend,
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": config.max_batch_size,
        "input": inputs.collect::<Vec<Value>>(),
        "output": outputs.collect::<Vec<Value>>(),
        "instance_group": instances.collect::<Vec<Value>>(),
        "dynamic_batching": {"preferred_batch_size": sizes},
    })
}

fn statistics(of_model: ModelStatistics) -> Value {
    let duration = |one: Option<StatisticDuration>| {
        let one = one.unwrap_or_default();
        json!({"count": one.count, "ns": one.ns})
    };
    let of_requests = of_model.inference_stats.unwrap_or_default();
    json!({
        "name": of_model.name,
        "version": of_model.version,
        "inference_count": of_model.inference_count,
        "execution_count": of_model.execution_count,
        "inference_stats": {
            "success": duration(of_requests.success),
            "fail": duration(of_requests.fail),
            "queue": duration(of_requests.queue),
            "compute_input": duration(of_requests.compute_input),
            "compute_infer": duration(of_requests.compute_infer),
            "compute_output": duration(of_requests.compute_output),
        },
    })
}

#[derive(Default, Deserialize)]
struct IndexQuestion {
    #[serde(default)]
    ready: bool,
}

pub fn repository_index(server: &Server, body: &[u8]) -> Result<Page, Status> {
    let asked: IndexQuestion = if body.is_empty() { IndexQuestion::default() } else { super::json::read_small(body)? };
    let question = RepositoryIndexRequest { ready: asked.ready, ..RepositoryIndexRequest::default() };
    let index = about::repository_index(server, &question)?;
    let models = index
        .models
        .into_iter()
        .map(|one| json!({"name": one.name, "version": one.version, "state": one.state, "reason": one.reason}));
    Ok(Page::json(&models.collect::<Vec<Value>>()))
}
