//! From a request to what answers it: gRPC by its paths, also from browsers; what is neither is HTTP's.

use std::sync::Arc;

use ::http::header::CONTENT_TYPE;
use ::http::{HeaderMap, HeaderValue, Request, Response};
use bytes::Bytes;
use hyper::body::Incoming;

use crate::body::{self, Body};
use crate::call::Call;
use crate::connection::{Peer, Unsent};
use crate::http::GrpcWeb;
use crate::messages::Messages;
use crate::metrics::Method;
use crate::open_inference::about::About;
use crate::server::Server;
use crate::status::{Code, Status};
use crate::{classify, health, http, open_inference, reflection};

pub const CLASSIFIER: &str = "atelier.v1.Classifier";

/// What is done before the first await is done for all calls that came together before any of them goes on.
pub fn answer(
    server: Arc<Server>,
    peer: Arc<Peer>,
    request: Request<Incoming>,
) -> impl Future<Output = Response<Body>> + Send {
    let protocol = Protocol::from_headers(request.headers());
    let method = match request.uri().path() {
        "/atelier.v1.Classifier/Classify" => Method::Classify,
        "/atelier.v1.Classifier/GetModel" => Method::GetModel,
        "/inference.GRPCInferenceService/ModelInfer" => Method::ModelInfer,
        path if protocol == Protocol::Http => http::method_of(path),
        _ => Method::Other,
    };
    let mut call = Call::begin(server, peer, method, &request);
    async move {
        if protocol == Protocol::Http {
            let (code, response) = http::answer(&mut call, request).await;
            call.count(code);
            return response;
        }
        let outcome = answered(&mut call, request).await;
        call.count(outcome.as_ref().map_or_else(|status| status.code, |_| Code::Ok));
        match protocol {
            Protocol::GrpcWeb(form) => form.response(outcome),
            _ => outcome.unwrap_or_else(|status| body::failure(&status)),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Grpc,
    GrpcWeb(GrpcWeb),
    Http,
}

impl Protocol {
    fn from_headers(headers: &HeaderMap) -> Self {
        let kind = headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        match GrpcWeb::from_headers(headers) {
            Some(form) => Self::GrpcWeb(form),
            None if kind.starts_with(b"application/grpc") => Self::Grpc,
            None => Self::Http,
        }
    }
}

async fn answered(call: &mut Call, request: Request<Incoming>) -> Result<Response<Body>, Status> {
    let (head, incoming) = request.into_parts();
    let about = About::from_path(head.uri.path());
    let is_health = head.uri.path().starts_with("/grpc.health.v1.Health/") || about.is_some_and(About::is_health);
    if !is_health {
        call.server.check_token(&head.headers)?;
    }
    let mut messages = Messages::new(call, incoming, &head.headers)?;
    if let Some(about) = about {
        let message = messages.next().await?.ok_or_else(|| Status::no_message("send one"))?;
        return Ok(body::answer(about.answer(&call.server, &message)?, unsent(call)));
    }
    match head.uri.path() {
        "/inference.GRPCInferenceService/ModelInfer" => {
            check_has_room(call, &mut messages).await?;
            let message = only_message(call, &mut messages).await?;
            let answer = open_inference::model_infer(call, message).await?;
            Ok(body::answer(answer, unsent(call)))
        }
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
    let engine = &call.server.life.versions.current().engine;
    let Err(refusal) = engine.check_has_room(call.deadline_us, call.peer.number) else { return Ok(()) };
    call.server.life.check_is_serving()?;
    messages.skip();
    messages.next_raw().await?;
    Err(refusal)
}

/// Of a method of the classifier, which refuses in a drain, and of messages that came late for it too.
async fn only_message(call: &mut Call, messages: &mut Messages) -> Result<Bytes, Status> {
    call.server.check_takes_calls()?;
    let raw = messages.next_raw().await?.ok_or_else(|| Status::no_message("send one"))?;
    call.server.life.check_is_serving()?;
    call.take_place()?;
    messages.inflated(raw).await
}

fn unsent(call: &Call) -> Unsent {
    Unsent::new(call.peer.clone(), call.server.clock())
}
