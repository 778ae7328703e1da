//! gRPC-Web, which browsers speak: gRPC's messages, with the trailers as one more at the end of the body.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap};
use http::{HeaderValue, Response};

use crate::body::{Body, trailers};
use crate::status::{Code, Status};

/// The flag of a frame that has trailers.
const TRAILERS: u8 = 0x80;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Binary,
    /// In base64.
    Text,
}

impl Form {
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let kind = headers.get(CONTENT_TYPE)?.as_bytes().strip_prefix(b"application/grpc-web")?;
        if kind.starts_with(b"-text") { Some(Self::Text) } else { Some(Self::Binary) }
    }

    /// The answer to one call.
    pub fn response(self, outcome: Result<Response<Body>, Status>) -> Response<Body> {
        let mut frames = BytesMut::new();
        let outcome = outcome.map(Response::into_body).and_then(|body| match body {
            Body::Stream(_) => {
                let what = "streams are not served over gRPC-Web";
                Err(Status::new(Code::Unimplemented, "UNKNOWN_METHOD", what, "use gRPC"))
            }
            body => Ok(body),
        });
        let mut body = match outcome {
            Ok(body) => body,
            Err(status) => {
                add_trailers(&mut frames, &trailers(Some(&status)));
                Body::Page(Some(frames.split().freeze()), None)
            }
        };
        if let Body::Message(message, unsent) = &mut body {
            frames.extend_from_slice(&message.take().unwrap_or_default());
            add_trailers(&mut frames, &trailers(None));
            body = Body::Page(Some(frames.freeze()), unsent.take());
        }
        if self == Self::Text {
            body.map_page(|page| STANDARD.encode(page).into());
        }
        let kind = if self == Self::Text { "application/grpc-web-text+proto" } else { "application/grpc-web+proto" };
        let mut response = Response::new(body);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    }
}

fn add_trailers(frames: &mut BytesMut, trailers: &HeaderMap) {
    let mut text = Vec::new();
    for (name, value) in trailers {
        text.extend_from_slice(name.as_str().as_bytes());
        text.extend_from_slice(b": ");
        text.extend_from_slice(value.as_bytes());
        text.extend_from_slice(b"\r\n");
    }
    frames.put_u8(TRAILERS);
    frames.put_u32(text.len() as u32);
    frames.put_slice(&text);
}

/// Base64 as it comes, however it is cut; each part may have an end of its own.
#[derive(Debug, Default)]
pub struct Decoding {
    rest: Vec<u8>,
}

impl Decoding {
    pub fn push(&mut self, piece: &[u8]) -> Result<Bytes, Status> {
        let mut decoded = BytesMut::new();
        for &byte in piece {
            self.rest.push(byte);
            if self.rest.len() == 4 {
                let bytes = STANDARD.decode(&self.rest).map_err(|_| {
                    Status::invalid("MALFORMED", "the body is no base64", "send application/grpc-web instead")
                })?;
                decoded.extend_from_slice(&bytes);
                self.rest.clear();
            }
        }
        Ok(decoded.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_however_it_is_cut_and_in_parts() {
        let text = [STANDARD.encode("ab"), STANDARD.encode("cdef")].concat();
        for size in 1..text.len() {
            let mut decoding = Decoding::default();
            let parts: Vec<Bytes> = text.as_bytes().chunks(size).map(|piece| decoding.push(piece).unwrap()).collect();
            assert_eq!(parts.concat(), b"abcdef");
        }
        assert!(Decoding::default().push(b"*+-~").is_err());
    }
}
