//! From a request to what answers it: gRPC by its paths, and the one place where other protocols join in.
#![forbid(unsafe_code)]

use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;

use crate::body::{self, Body};
use crate::call::{Call, Messages};
use crate::connection::{Peer, Unsent};
use crate::metrics::Method;
use crate::server::Server;
use crate::status::{Code, Status};
use crate::{classify, health, reflection};

pub const CLASSIFIER: &str = "atelier.v1.Classifier";

/// What is done before the first await is done for all calls that came together before any of them goes on.
pub fn answer(
    server: Arc<Server>,
    peer: Arc<Peer>,
    request: Request<Incoming>,
) -> impl Future<Output = Response<Body>> + Send {
    let method = match request.uri().path() {
        "/atelier.v1.Classifier/Classify" => Method::Classify,
        "/atelier.v1.Classifier/GetModel" => Method::GetModel,
        _ => Method::Other,
    };
    let mut call = Call::begin(server, peer, method, request.headers());
    async move {
        let is_grpc =
            request.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        if !is_grpc {
            call.count(Code::Unimplemented);
            return other_protocols(&request);
        }
        match answered(&mut call, request).await {
            Ok(response) => {
                call.count(Code::Ok);
                response
            }
            Err(status) => {
                call.count(status.code);
                body::failure(&status)
            }
        }
    }
}

/// JSON, static pages and gRPC-Web will stand here.
fn other_protocols(request: &Request<Incoming>) -> Response<Body> {
    let is_post = request.method() == http::Method::POST;
    let status = if is_post { StatusCode::UNSUPPORTED_MEDIA_TYPE } else { StatusCode::NOT_FOUND };
    let mut response = Response::new(Body::Page(Some(Bytes::from_static(b"this port speaks gRPC\n"))));
    *response.status_mut() = status;
    response
}

async fn answered(call: &mut Call, request: Request<Incoming>) -> Result<Response<Body>, Status> {
    let (head, incoming) = request.into_parts();
    if let Some(tokens) = &call.server.tokens
        && !head.uri.path().starts_with("/grpc.health.v1.Health/")
    {
        tokens.check(&head.headers)?;
    }
    let mut messages = Messages::new(call, incoming, &head.headers)?;
    match head.uri.path() {
        "/atelier.v1.Classifier/Classify" => {
            check_has_room(call, &mut messages).await?;
            let message = only_message(call, &mut messages).await?;
            let answer = classify::classify(call, message).await?;
            Ok(body::answer(answer, unsent(call)))
        }
        "/atelier.v1.Classifier/GetModel" => {
            let message = only_message(call, &mut messages).await?;
            Ok(body::answer(classify::get_model(call, &message)?, unsent(call)))
        }
        "/grpc.health.v1.Health/Check" => {
            Ok(body::answer(health::check(&call.server, &mut messages).await?, unsent(call)))
        }
        "/grpc.health.v1.Health/Watch" => {
            let (server, peer) = (call.server.clone(), call.peer.number);
            health::watch(server, peer, &mut messages).await.map(body::stream)
        }
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
        | "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo" => {
            reflection::converse(call, messages).map(body::stream)
        }
        _ => {
            Err(Status::new(Code::Unimplemented, "UNKNOWN_METHOD", "this method is not served here", "see reflection"))
        }
    }
}

/// Where not even one image would be admitted, the message is not put together and not read: a refusal costs the less.
async fn check_has_room(call: &Call, messages: &mut Messages) -> Result<(), Status> {
    let engine = &call.server.versions.current().engine;
    let Err(refusal) = engine.check_has_room(call.deadline_us, call.peer.number) else { return Ok(()) };
    call.server.check_is_serving()?;
    messages.skip();
    messages.next_raw().await?;
    Err(refusal)
}

/// Of a method of the classifier, which refuses in a drain, and of messages that came late for it too.
async fn only_message(call: &mut Call, messages: &mut Messages) -> Result<Bytes, Status> {
    call.server.check_is_serving()?;
    let raw = messages.next_raw().await?.ok_or_else(|| Status::no_message("send one"))?;
    call.server.check_is_serving()?;
    call.take_place()?;
    messages.inflated(raw).await
}

fn unsent(call: &Call) -> Unsent {
    Unsent::new(call.peer.clone(), call.server.clock())
}
