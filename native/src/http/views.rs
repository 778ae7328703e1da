//! What the server says of itself and of its model, in JSON: the fields of gRPC's messages.

use serde::Deserialize;
use serde_json::{Value, json};

use super::reply::Page;
use super::route::Route;
use crate::open_inference::about;
use crate::proto::inference::{DataType, RepositoryIndexRequest};
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
            Ok(Page::json(&about::model_metadata(server, &server.life.versions.find(name, version)?.model)))
        }
        Route::Config { name, version } => Ok(Page::json(&config(&server.life.versions.find(name, version)?.model))),
        Route::Statistics { name, version } => {
            Ok(Page::json(&about::statistics(server, &server.life.versions.find(name, version)?.model)))
        }
        _ => Ok(Page::json(&about::server_metadata(server))),
    }
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

#[derive(Default, Deserialize)]
struct IndexQuestion {
    #[serde(default)]
    ready: bool,
}

pub fn repository_index(server: &Server, body: &[u8]) -> Result<Page, Status> {
    let asked: IndexQuestion = if body.is_empty() { IndexQuestion::default() } else { super::json::read_small(body)? };
    let question = RepositoryIndexRequest { ready: asked.ready, ..RepositoryIndexRequest::default() };
    Ok(Page::json(&about::repository_index(server, &question)?.models))
}
