//! One unary call over HTTP/2, and the connection that it goes over; a broken one is made anew for the next call.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, header};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Mutex;
use tokio::time::timeout_at;

pub const DEADLINE_EXCEEDED: u8 = 4;
const UNKNOWN: u8 = 2;
const INTERNAL: u8 = 13;
const UNAVAILABLE: u8 = 14;
const PREFIX: usize = 5;
/// A server that has not yet said how many streams it takes gets no more.
const FIRST_STREAMS: usize = 100;
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 1 << 24;
/// Calls that were given up: what the server still says to them is passed over.
const RESET_STREAMS: usize = 1 << 20;

/// A gRPC status, and the reply or else the status's message.
type Outcome = (u8, Bytes);

pub struct Connection {
    target: String,
    uri: Result<Uri, String>,
    headers: HeaderMap,
    sender: Mutex<Option<SendRequest<Bytes>>>,
}

impl Connection {
    pub fn new(target: &str, method: &str) -> Arc<Self> {
        let authority = if target.starts_with("unix:") { "localhost" } else { target };
        let uri = Uri::builder().scheme("http").authority(authority).path_and_query(method).build();
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        let uri = uri.map_err(|error| format!("{target}{method}: {error}"));
        Arc::new(Self { target: target.into(), uri, headers, sender: Mutex::new(None) })
    }

    /// Makes the call, and gives it up at its deadline.
    pub async fn ask(&self, framed: Bytes, deadline: Instant) -> Outcome {
        match timeout_at(deadline.into(), self.exchange(framed, deadline)).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(why)) => (UNAVAILABLE, why.into()),
            Err(_) => (DEADLINE_EXCEEDED, Bytes::from_static(b"no answer until the deadline")),
        }
    }

    async fn exchange(&self, framed: Bytes, deadline: Instant) -> Result<Outcome, String> {
        let told = |error: h2::Error| error.to_string();
        let (response, mut stream) = self.open(deadline).await?;
        stream.send_data(framed, true).map_err(told)?;
        let (head, mut body) = response.await.map_err(told)?.into_parts();
        let message = whole(&mut body).await.map_err(told)?;
        let trailers = body.trailers().await.map_err(told)?;
        let told = trailers.as_ref().unwrap_or(&head.headers); // without a body there may be no trailers either
        Ok(match told.get("grpc-status").map(|code| code.to_str().unwrap_or("").parse()) {
            Some(Ok(0)) => unframed(message),
            Some(Ok(code)) => (code, told.get("grpc-message").map_or(Bytes::new(), |text| owned(text.as_bytes()))),
            _ => (UNKNOWN, format!("HTTP status {} without a gRPC status", head.status).into()),
        })
    }

    /// Opens a stream. A connection on which none can be opened any more, for it broke or is going away, has not seen
    /// the call: that goes over the next one.
    async fn open(&self, deadline: Instant) -> Result<(ResponseFuture, SendStream<Bytes>), String> {
        let mut held = self.sender.lock().await;
        if let Some(sender) = held.as_ref()
            && let Ok(opened) = sender.clone().send_request(self.request(deadline)?, false)
        {
            return Ok(opened);
        }
        let mut sender = self.connect().await.map_err(|error| format!("{}: {error}", self.target))?;
        *held = Some(sender.clone());
        sender.send_request(self.request(deadline)?, false).map_err(|error| error.to_string())
    }

    fn request(&self, deadline: Instant) -> Result<Request<()>, String> {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone()?;
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().insert("grpc-timeout", timeout_from(left));
        Ok(request)
    }

    async fn connect(&self) -> io::Result<SendRequest<Bytes>> {
        if let Some(path) = self.target.strip_prefix("unix:") {
            return handshake(UnixStream::connect(path).await?).await;
        }
        let stream = TcpStream::connect(&self.target).await?;
        stream.set_nodelay(true)?;
        handshake(stream).await
    }
}

async fn handshake<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: T) -> io::Result<SendRequest<Bytes>> {
    let handshake = Builder::new()
        .enable_push(false)
        .initial_max_send_streams(FIRST_STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_reset_streams(RESET_STREAMS)
        .max_local_error_reset_streams(None)
        .handshake(stream);
    let (sender, connection) = handshake.await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    Ok(sender)
}

/// All that comes before the trailers; in one piece it is not copied.
async fn whole(body: &mut RecvStream) -> Result<Bytes, h2::Error> {
    let mut message = Bytes::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        message = if message.is_empty() { piece } else { [message, piece].concat().into() };
    }
    Ok(message)
}

fn unframed(mut message: Bytes) -> Outcome {
    let prefix: Option<[u8; PREFIX]> = message.get(..PREFIX).and_then(|prefix| prefix.try_into().ok());
    match prefix {
        Some([0, length @ ..]) if u32::from_be_bytes(length) as usize == message.len() - PREFIX => {
            (0, message.split_off(PREFIX))
        }
        _ => (INTERNAL, format!("{} bytes that are not one plain message", message.len()).into()),
    }
}

/// gRPC allows eight digits.
fn timeout_from(left: Duration) -> HeaderValue {
    let (us, ms) = (left.as_micros(), left.as_millis());
    let text = if us < 100_000_000 { format!("{us}u") } else { format!("{}m", ms.min(99_999_999)) };
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("1S"))
}

fn owned(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_have_eight_digits_at_the_most() {
        let told = |left| timeout_from(left).to_str().map(str::to_owned).unwrap_or_default();
        assert_eq!(told(Duration::from_micros(15_000)), "15000u");
        assert_eq!(told(Duration::from_secs(100)), "100000m");
        assert_eq!(told(Duration::MAX), "99999999m");
    }

    #[test]
    fn a_reply_is_one_plain_message() {
        assert_eq!(unframed(Bytes::from_static(b"\0\0\0\0\x02hi")), (0, Bytes::from_static(b"hi")));
        for broken in [&b""[..], b"\0\0\0", b"\0\0\0\0\x03hi", b"\0\0\0\0\x01hi", b"\x01\0\0\0\x02hi"] {
            assert_eq!(unframed(owned(broken)).0, INTERNAL);
        }
    }
}
