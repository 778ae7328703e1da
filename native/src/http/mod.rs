//! HTTP/1.1 and HTTP/2 without gRPC, on the same port: the Open Inference Protocol in JSON, /v1/classify, gRPC-Web.

mod classify;
mod grpc_web;
mod infer;
mod json;
mod playground;
mod reply;
mod request_body;
mod route;
mod views;

use http::request::Parts;
use http::{Method, Request, Response, Version};
use hyper::body::Incoming;

pub use classify::corners;
pub use grpc_web::{Decoding, Form as GrpcWeb};
#[cfg(test)]
pub use infer::json_request;
pub use route::Route;

use crate::body::Body;
use crate::call::Call;
use crate::metrics;
use crate::status::{Code, Status};
use reply::Page;

const OPENAPI: &str = include_str!("openapi.json");

/// As what such a request is counted.
pub fn method_of(path: &str) -> metrics::Method {
    match Route::from_path(path) {
        Some(Route::Classify) => metrics::Method::Classify,
        Some(Route::Infer { .. }) => metrics::Method::ModelInfer,
        _ => metrics::Method::Other,
    }
}

/// The answer, and the status that it is counted under.
pub async fn answer(call: &mut Call, request: Request<Incoming>) -> (Code, Response<Body>) {
    let (accepted, is_head) = (reply::Accepted::from_headers(request.headers()), request.method() == Method::HEAD);
    let (head, mut incoming) = request.into_parts();
    let outcome = page(call, &head, &mut incoming).await;
    let is_early = outcome.as_ref().is_err_and(|status| status.code != Code::DeadlineExceeded);
    if is_early && head.version < Version::HTTP_2 {
        request_body::pass_rest(&head.headers, &mut incoming).await;
    }
    let code = outcome.as_ref().map_or_else(|status| status.code, |_| Code::Ok);
    let page = outcome.unwrap_or_else(|status| Page::failure(&status));
    (code, page.response(call, accepted, is_head).await)
}

async fn page(call: &mut Call, head: &Parts, incoming: &mut Incoming) -> Result<Page, Status> {
    let path = head.uri.path();
    let route = Route::from_path(path).ok_or_else(|| route::unknown(path))?;
    route.check_method(&head.method)?;
    if !route.is_open() {
        call.server.check_token(&head.headers)?;
    }
    match route {
        Route::Classify => classify::answer(call, head, incoming).await,
        Route::Infer { name, version } => infer::answer(call, name, version, &head.headers, incoming).await,
        Route::Index => {
            let body = request_body::whole(call, &head.headers, incoming).await?;
            views::repository_index(&call.server, &body)
        }
        Route::OpenApi => Ok(Page::json_text(OPENAPI)),
        Route::Playground => {
            let settings = &call.server.settings;
            let page = playground::address_for(&settings.page_address, settings.is_page_here, head);
            page.map(|address| Page::elsewhere(&address)).ok_or_else(|| route::unknown(path))
        }
        _ => views::view(&call.server, route),
    }
}
