//! grpc.health.v1: of the whole server ("") and of its services.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use tokio::sync::mpsc;

use crate::body;
use crate::framing::framed;
use crate::job::Outcome;
use crate::life::Phase;
use crate::messages::Messages;
use crate::open_inference;
use crate::proto::grpc::health::v1::health_check_response::ServingStatus;
use crate::proto::grpc::health::v1::{HealthCheckRequest, HealthCheckResponse};
use crate::routes::CLASSIFIER;
use crate::server::Server;
use crate::status::Status;

pub async fn check(server: &Server, messages: &mut Messages) -> Outcome {
    let service = service(messages).await?;
    if !is_known(&service) {
        return Err(Status::not_found("UNKNOWN_SERVICE", "this service is not served here", "see reflection"));
    }
    Ok(reply(status_of(server)))
}

/// The status now, and every one that follows, until the server leaves.
pub async fn watch(server: Arc<Server>, peer: u64, messages: &mut Messages) -> Result<body::Messages, Status> {
    let place = server.budgets.streams.take(peer, 1)?;
    let is_known = is_known(&service(messages).await?);
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let _place = place;
        let mut phase = server.life.phase();
        let mut last = None;
        loop {
            if *phase.borrow_and_update() == Phase::Leaving {
                let _ = sender.send(Err(Status::draining())).await;
                return;
            }
            let status = if is_known { status_of(&server) } else { ServingStatus::ServiceUnknown };
            if last != Some(status) && sender.send(Ok(reply(status))).await.is_err() {
                return;
            }
            last = Some(status);
            tokio::select! {
                changed = phase.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
            }
        }
    });
    Ok(receiver)
}

async fn service(messages: &mut Messages) -> Result<String, Status> {
    let message = messages.next().await?.ok_or_else(|| Status::no_message("send one HealthCheckRequest"))?;
    let malformed = |_| Status::malformed(message.len(), "grpc.health.v1.HealthCheckRequest");
    HealthCheckRequest::decode(&*message).map(|request| request.service).map_err(malformed)
}

fn is_known(service: &str) -> bool {
    matches!(service, "" | CLASSIFIER | open_inference::SERVICE)
}

fn status_of(server: &Server) -> ServingStatus {
    if server.life.is_serving() { ServingStatus::Serving } else { ServingStatus::NotServing }
}

fn reply(status: ServingStatus) -> Bytes {
    framed(&HealthCheckResponse { status: status.into() }.encode_to_vec())
}
