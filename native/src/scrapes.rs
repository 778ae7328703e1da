//! The metrics' own port: HTTP/1 on few connections, which have little time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::body::Body;
use crate::io::Io;
use crate::io::Listener;
use crate::metrics_page::{self, Format};
use crate::server::Server;

const MAX_SCRAPES: usize = 16;
/// For one connection, from its first byte to its last: a scrape takes milliseconds.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(10);

/// For as long as the server lives, its drain included. When there are too many scrapers, the next is turned away.
pub async fn serve(server: Arc<Server>, listener: Listener) {
    let places = Arc::new(Semaphore::new(MAX_SCRAPES));
    loop {
        let Ok(io) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        if let Ok(place) = places.clone().try_acquire_owned() {
            let server = server.clone();
            tokio::spawn(async move {
                let _ = timeout(SCRAPE_TIMEOUT, scrape(server, io)).await;
                drop(place);
            });
        }
    }
}

async fn scrape(server: Arc<Server>, io: Box<dyn Io>) {
    let service = hyper::service::service_fn(move |request| {
        let response = page(&server, &request);
        async { Ok::<_, Infallible>(response) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(SCRAPE_TIMEOUT).max_buf_size(16 << 10).keep_alive(false);
    let _ = builder.serve_connection(TokioIo::new(io), service).await;
}

fn page(server: &Server, request: &Request<Incoming>) -> Response<Body> {
    if !matches!(request.uri().path(), "/metrics" | "/") {
        let mut response = Response::new(Body::Page(Some(Bytes::from_static(b"the metrics are at /metrics\n")), None));
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::accepted(accept.unwrap_or_default());
    let mut response = Response::new(Body::Page(Some(metrics_page::text(server, format).into()), None));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    response
}
