//! The bodies of our answers: one message and its trailers, a stream of messages, or a page.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::mpsc;

use crate::connection::Unsent;
use crate::status::Status;

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// Of a longer answer the last byte goes by itself. HTTP/2 takes a piece whole as soon as the client has room for one byte
/// of it, and the next only once that has been sent: so what is not taken is noticed, and does not pile up.
const UNNOTICED_BYTES: usize = 1024;

/// Messages of a stream, with their prefixes; an error ends it.
pub type Messages = mpsc::Receiver<Result<Bytes, Status>>;

pub enum Body {
    /// The headers have said it all.
    Empty,
    /// Plain HTTP; some who ask may not take it.
    Page(Option<Bytes>, Option<Unsent>),
    Message(Option<Bytes>, Option<Unsent>),
    Stream(Option<Messages>),
}

impl Body {
    pub fn map_page(&mut self, map: impl FnOnce(Bytes) -> Bytes) {
        if let Self::Page(page, _) = self {
            *page = page.take().map(map);
        }
    }

    fn trailers_of(outcome: Option<&Status>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(Some(Ok(Frame::trailers(trailers(outcome)))))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Page(page, unsent) => {
                if let Some(piece) = next_piece(page) {
                    return Poll::Ready(Some(Ok(Frame::data(piece))));
                }
                unsent.take().into_iter().for_each(Unsent::note_sent);
                Poll::Ready(None)
            }
            Self::Message(message, unsent) => {
                if let Some(piece) = next_piece(message) {
                    return Poll::Ready(Some(Ok(Frame::data(piece))));
                }
                if let Some(unsent) = unsent.take() {
                    unsent.note_sent();
                    return Self::trailers_of(None);
                }
                Poll::Ready(None)
            }
            Self::Stream(stream) => {
                let Some(messages) = stream else { return Poll::Ready(None) };
                let Poll::Ready(next) = messages.poll_recv(context) else { return Poll::Pending };
                if let Some(Ok(message)) = next {
                    return Poll::Ready(Some(Ok(Frame::data(message))));
                }
                *stream = None;
                Self::trailers_of(next.and_then(Result::err).as_ref())
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Page(rest, unsent) | Self::Message(rest, unsent) => rest.is_none() && unsent.is_none(),
            Self::Stream(stream) => stream.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Page(Some(page), _) => SizeHint::with_exact(page.len() as u64),
            Self::Empty => SizeHint::with_exact(0),
            _ => SizeHint::default(),
        }
    }
}

fn next_piece(rest: &mut Option<Bytes>) -> Option<Bytes> {
    let mut bytes = rest.take()?;
    if bytes.len() > UNNOTICED_BYTES {
        *rest = Some(bytes.split_off(bytes.len() - 1));
    }
    Some(bytes)
}

/// A call's answer: `message` has its prefix.
pub fn answer(message: Bytes, unsent: Unsent) -> Response<Body> {
    grpc(Body::Message(Some(message), Some(unsent)))
}

pub fn stream(messages: Messages) -> Response<Body> {
    grpc(Body::Stream(Some(messages)))
}

/// Trailers-Only: one frame of headers is the whole answer.
pub fn failure(status: &Status) -> Response<Body> {
    let mut response = grpc(Body::Empty);
    response.headers_mut().extend(trailers(Some(status)));
    response
}

fn grpc(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(http::header::CONTENT_TYPE, GRPC);
    response
}

pub fn trailers(failure: Option<&Status>) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(4);
    let Some(status) = failure else {
        trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
        return trailers;
    };
    trailers.insert(GRPC_STATUS, HeaderValue::from(status.code as u16));
    if let Ok(message) = HeaderValue::from_str(&percent_encoded(&status.message)) {
        trailers.insert(GRPC_MESSAGE, message);
    }
    if let Some(pushback_ms) = status.pushback_ms {
        trailers.insert(PUSHBACK, HeaderValue::from(pushback_ms));
    }
    trailers
}

fn percent_encoded(message: &str) -> String {
    let mut encoded = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(byte as char),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}
