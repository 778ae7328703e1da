//! Answers of HTTP: their statuses, headers, and compression.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use http::header::{
    ACCEPT_ENCODING, ALLOW, CONTENT_ENCODING, CONTENT_TYPE, LOCATION, RETRY_AFTER, VARY, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde::Serialize;

use super::infer::JSON_LENGTH;
use crate::aside::{done_in_background, give_turn};
use crate::body::Body;
use crate::call::Call;
use crate::connection::Unsent;
use crate::status::{Code, Status};

/// Smaller answers would hardly become smaller.
const MIN_COMPRESSED_BYTES: usize = 1024;
/// Larger ones are compressed aside.
const SMALL_BYTES: usize = 16 << 10;

pub struct Page {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Page {
    pub fn json(document: &impl Serialize) -> Self {
        Self::of(StatusCode::OK, "application/json", serde_json::to_vec(document).unwrap_or_default().into())
    }

    pub fn json_text(text: &'static str) -> Self {
        Self::of(StatusCode::OK, "application/json", Bytes::from_static(text.as_bytes()))
    }

    /// A redirection.
    pub fn elsewhere(address: &str) -> Self {
        let mut page = Self { status: StatusCode::FOUND, ..Self::json(&serde_json::json!({"page": address})) };
        page.headers.extend(HeaderValue::from_str(address).ok().map(|address| (LOCATION, address)));
        page
    }

    pub fn of(status: StatusCode, kind: &'static str, body: Bytes) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        Self { status, headers, body }
    }

    /// With tensors behind its JSON (Triton's binary extension).
    pub fn with_binary(mut self, binary: &[u8]) -> Self {
        self.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        self.headers.insert(JSON_LENGTH, HeaderValue::from(self.body.len()));
        self.body = [&self.body, binary].concat().into();
        self
    }

    pub fn failure(failure: &Status) -> Self {
        let mut page =
            Self { status: status_of(failure), ..Self::json(&serde_json::json!({"error": failure.message})) };
        if let Some(pushback_ms) = failure.pushback_ms {
            page.headers.insert(RETRY_AFTER, HeaderValue::from(pushback_ms.div_ceil(1000)));
        }
        match page.status {
            StatusCode::UNAUTHORIZED => page.headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
            StatusCode::METHOD_NOT_ALLOWED => {
                let allowed = if failure.message.contains("send POST") { "POST" } else { "GET, HEAD" };
                page.headers.insert(ALLOW, HeaderValue::from_static(allowed))
            }
            _ => None,
        };
        page
    }

    pub async fn response(mut self, call: &Call, accepted: Accepted, is_head: bool) -> Response<Body> {
        if accepted != Accepted::Identity && self.body.len() >= MIN_COMPRESSED_BYTES {
            let body = self.body.clone();
            let compressed = if body.len() <= SMALL_BYTES {
                compressed(&body, accepted)
            } else {
                done_in_background(move || compressed(&body, accepted)).await.ok().flatten()
            };
            if let Some(compressed) = compressed {
                self.body = compressed;
                self.headers.insert(CONTENT_ENCODING, HeaderValue::from_static(accepted.name()));
                self.headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
            }
        }
        let unsent = Unsent::new(call.peer.clone(), call.server.clock());
        let body = if is_head { Body::Empty } else { Body::Page(Some(self.body), Some(unsent)) };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

/// As Triton has them; where it has none, as HTTP does.
fn status_of(failure: &Status) -> StatusCode {
    match failure.message.split(':').next().unwrap_or_default() {
        "MESSAGE_TOO_LARGE" => return StatusCode::PAYLOAD_TOO_LARGE,
        "BAD_METHOD" => return StatusCode::METHOD_NOT_ALLOWED,
        "BAD_CONTENT_TYPE" | "BAD_ENCODING" => return StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "SLOW_MESSAGE" => return StatusCode::REQUEST_TIMEOUT,
        _ => {}
    }
    match failure.code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::Cancelled => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::ResourceExhausted | Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// How the client wants the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    Identity,
    Gzip,
    Deflate,
}

impl Accepted {
    /// The first that is known, whatever its weight, unless that is 0.
    pub fn from_headers(headers: &HeaderMap) -> Self {
        let names = headers.get(ACCEPT_ENCODING).and_then(|names| names.to_str().ok()).unwrap_or_default();
        for name in names.split(',') {
            let (name, weight) = name.split_once(';').unwrap_or((name, ""));
            let is_refused = weight.trim().strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0));
            match name.trim() {
                "gzip" if !is_refused => return Self::Gzip,
                "deflate" if !is_refused => return Self::Deflate,
                _ => {}
            }
        }
        Self::Identity
    }

    fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }
}

fn compressed(body: &[u8], accepted: Accepted) -> Option<Bytes> {
    let level = Compression::fast();
    let compressed = match accepted {
        Accepted::Identity => return None,
        Accepted::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), level);
            write_in_pieces(&mut encoder, body).ok()?;
            encoder.finish().ok()?
        }
        Accepted::Deflate => {
            let mut encoder = ZlibEncoder::new(Vec::new(), level);
            write_in_pieces(&mut encoder, body).ok()?;
            encoder.finish().ok()?
        }
    };
    Some(compressed.into())
}

fn write_in_pieces(encoder: &mut impl Write, body: &[u8]) -> std::io::Result<()> {
    body.chunks(SMALL_BYTES).try_for_each(|piece| {
        give_turn();
        encoder.write_all(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_known_encoding_is_taken_unless_it_is_refused() {
        for (names, expected) in [
            ("gzip, deflate, br", Accepted::Gzip),
            ("br;q=1.0, deflate;q=0.5", Accepted::Deflate),
            ("gzip;q=0, deflate", Accepted::Deflate),
            ("*", Accepted::Identity),
            ("", Accepted::Identity),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(names));
            assert_eq!(Accepted::from_headers(&headers), expected, "{names}");
        }
    }
}
