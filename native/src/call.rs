//! One call: its place among those under way, its deadline, its messages, and what it is counted as in the end.
#![forbid(unsafe_code)]

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body::Body as _;
use hyper::body::Incoming;

use crate::aside::done_aside;
use crate::budget::Hold;
use crate::connection::Peer;
use crate::framing::{Decoder, Encoding, Raw, inflated};
use crate::http::{Decoding, GrpcWeb};
use crate::metrics::Method;
use crate::records::Begun;
use crate::server::Server;
use crate::shared::Clock;
use crate::status::{Code, Status};

/// What is inflated on the spot; more goes to a thread that may take its time.
const SMALL_COMPRESSED_BYTES: usize = 1024;

/// Messages without images are no larger.
const MAX_OTHER_BYTES: usize = 64 << 10;

/// A client that has left answers lying for so long gets no others.
const STUCK_US: u64 = 500_000;

/// From its headers to its answer. Dropped before that, the client has gone.
pub struct Call {
    pub server: Arc<Server>,
    pub peer: Arc<Peer>,
    pub method: Method,
    pub deadline_us: u64,
    pub is_lone: bool,
    /// Where somebody wants to hear of it.
    pub record: Option<Box<Begun>>,
    is_counted: bool,
    place: Option<Hold>,
}

impl Call {
    pub fn begin<B>(server: Arc<Server>, peer: Arc<Peer>, method: Method, request: &Request<B>) -> Self {
        let num_others = server.num_calls.fetch_add(1, Relaxed);
        peer.num_calls.fetch_add(1, Relaxed);
        let now_us = server.now_us();
        peer.last_use_us.store(now_us, Relaxed);
        peer.has_called.store(true, Relaxed);
        let settings = &server.settings;
        let timeout_us = request.headers().get("grpc-timeout").and_then(|value| timeout_us(value.as_bytes()));
        let default_us = (settings.default_deadline_s * 1e6) as u64;
        let limit_us = (settings.max_deadline_s * 1e6) as u64;
        let deadline_us = now_us + timeout_us.unwrap_or(default_us).min(limit_us);
        let record = server.records.are_wanted.then(|| Box::new(Begun::new(request, now_us)));
        Self { server, peer, method, deadline_us, is_lone: num_others == 0, record, is_counted: false, place: None }
    }

    pub fn max_message_bytes(&self) -> usize {
        let limit = self.server.settings.max_message_bytes;
        if self.method.has_images() { limit } else { limit.min(MAX_OTHER_BYTES) }
    }

    /// The client may have said twice how long it waits: the smaller holds.
    pub fn shorten_deadline(&mut self, timeout_us: Option<u64>) {
        if let Some(timeout_us) = timeout_us.filter(|&timeout_us| timeout_us > 0) {
            self.deadline_us = self.deadline_us.min(self.server.now_us().saturating_add(timeout_us));
        }
    }

    /// Whether it is still the only one, which it may have been when it began.
    pub fn is_still_lone(&self) -> bool {
        self.is_lone && self.server.num_calls.load(Relaxed) == 1
    }

    /// A place among those whose message is there; none where as many are under way as may be, or the client does not
    /// take the answers that it has.
    pub fn take_place(&mut self) -> Result<(), Status> {
        if self.peer.is_stuck(self.server.now_us(), STUCK_US) {
            let what = "answers to this connection wait to be taken";
            return Err(Status::overloaded("UNREAD_ANSWERS", what, "read them, and open HTTP/2's windows"));
        }
        self.place = Some(self.server.budgets.calls.take(self.peer.number, 1)?);
        Ok(())
    }

    pub fn count(&mut self, code: Code) {
        self.is_counted = true;
        self.server.metrics().count_call(self.method, code);
        if let Some(record) = self.record.take() {
            self.server.records.keep(*record, code, self.server.now_us());
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.server.num_calls.fetch_sub(1, Relaxed);
        self.peer.num_calls.fetch_sub(1, Relaxed);
        if !self.is_counted {
            let is_late = self.server.now_us() >= self.deadline_us;
            self.count(if is_late { Code::DeadlineExceeded } else { Code::Cancelled });
        }
    }
}

/// The header grpc-timeout: up to eight digits and a unit.
fn timeout_us(value: &[u8]) -> Option<u64> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    match unit {
        b'H' => Some(number * 3_600_000_000),
        b'M' => Some(number * 60_000_000),
        b'S' => Some(number * 1_000_000),
        b'm' => Some(number * 1_000),
        b'u' => Some(number),
        b'n' => Some(number / 1_000),
        _ => None,
    }
}

/// The messages of a call, as they come.
pub struct Messages {
    server: Arc<Server>,
    peer: u64,
    deadline_us: u64,
    body: Incoming,
    /// Of gRPC-Web in base64.
    text: Option<Decoding>,
    decoder: Decoder,
    encoding: Encoding,
    is_first: bool,
    is_at_end: bool,
    /// What has come of a message that is not whole, or not inflated.
    hold: Option<Hold>,
}

impl Messages {
    pub fn new(call: &Call, body: Incoming, headers: &HeaderMap) -> Result<Self, Status> {
        let encoding = match headers.get("grpc-encoding") {
            Some(name) => Encoding::from_name(name.as_bytes())?,
            None => Encoding::Identity,
        };
        let (server, peer, deadline_us) = (call.server.clone(), call.peer.number, call.deadline_us);
        let decoder = Decoder::new(call.max_message_bytes());
        let text = (GrpcWeb::from_headers(headers) == Some(GrpcWeb::Text)).then(Decoding::default);
        let (is_first, is_at_end, hold) = (true, false, None);
        Ok(Self { server, peer, deadline_us, body, text, decoder, encoding, is_first, is_at_end, hold })
    }

    /// They are waited for, as the client sends them before it hears anything, and not kept.
    pub fn skip(&mut self) {
        self.decoder.skip();
    }

    /// The next one; None where there is none any more.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        match self.next_raw().await? {
            Some(raw) => self.inflated(raw).await.map(Some),
            None => Ok(None),
        }
    }

    /// The next one, as it came. Only the first must come soon: a conversation may have pauses.
    pub async fn next_raw(&mut self) -> Result<Option<Raw>, Status> {
        // Nearly always it came with the headers, and there is nothing to wait for.
        let raw = match poll_fn(|context| Poll::Ready(self.poll_next(context))).await {
            Poll::Ready(raw) => raw,
            Poll::Pending if self.is_first => self.next_in_time().await,
            Poll::Pending => poll_fn(|context| self.poll_next(context)).await,
        }?;
        self.is_first = false;
        Ok(raw)
    }

    async fn next_in_time(&mut self) -> Result<Option<Raw>, Status> {
        let (server, peer) = (self.server.clone(), self.peer);
        in_time(&server, peer, poll_fn(|context| self.poll_next(context))).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Raw>, Status>> {
        loop {
            if let Some(raw) = self.decoder.next()? {
                if !raw.is_compressed {
                    self.hold = None;
                }
                return Poll::Ready(Ok(Some(raw)));
            }
            if self.is_at_end {
                return Poll::Ready(Ok(None));
            }
            self.hold(self.decoder.num_bytes())?;
            match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => self.is_at_end = true,
                Poll::Ready(Some(Err(_))) => {
                    return Poll::Ready(Err(Status::new(Code::Cancelled, "CANCELLED", "the client has gone", "")));
                }
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(piece) = frame.into_data() {
                        self.decoder.push(match &mut self.text {
                            Some(text) => text.push(&piece)?,
                            None => piece,
                        });
                    }
                }
            }
        }
    }

    fn hold(&mut self, num_bytes: usize) -> Result<(), Status> {
        match &mut self.hold {
            Some(hold) => hold.set(num_bytes)?,
            None if num_bytes == 0 => {}
            none => *none = Some(self.server.budgets.unread_bytes.take(self.peer, num_bytes)?),
        }
        Ok(())
    }

    /// What a message holds. It is accounted for until somebody has come to inflate it.
    pub async fn inflated(&mut self, raw: Raw) -> Result<Bytes, Status> {
        let (bytes, encoding, limit) = (raw.bytes, self.encoding, self.decoder.limit);
        if !raw.is_compressed {
            return Ok(bytes);
        }
        if bytes.len() <= SMALL_COMPRESSED_BYTES || limit <= MAX_OTHER_BYTES {
            self.hold = None;
            return inflated(&bytes, encoding, limit);
        }
        self.hold(bytes.len())?;
        inflated_aside(self.server.clock(), self.deadline_us, bytes, encoding, limit, self.hold.take()).await
    }
}

/// Waits for what the client must send soon.
pub async fn in_time<T>(
    server: &Server,
    peer: u64,
    reading: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    let timeout = server.settings.message_timeout();
    let place = server.waiting.enter(peer);
    tokio::select! {
        biased;
        read = reading => read,
        () = place.is_taken() => {
            let what = format!("{} calls wait for their messages, and this one has waited longest", server.waiting.limit);
            Err(Status::overloaded("TOO_MANY_WAITING", what, "send headers and message together"))
        }
        () = tokio::time::sleep(timeout) => {
            let what = format!("no whole message came within {} s of the headers", timeout.as_secs_f64());
            Err(Status::expired("SLOW_MESSAGE", what))
        }
    }
}

/// What a message holds, on a thread that may take its time; it is held until then.
pub async fn inflated_aside(
    clock: Clock,
    deadline_us: u64,
    bytes: Bytes,
    encoding: Encoding,
    limit: usize,
    hold: Option<Hold>,
) -> Result<Bytes, Status> {
    let (message, _hold) = done_aside(move || {
        if clock.now_us() >= deadline_us {
            let what = "the deadline passed before the message was decompressed";
            return (Err(Status::expired("EXPIRED", what)), hold);
        }
        (inflated(&bytes, encoding, limit), hold)
    })
    .await?;
    message
}

#[cfg(test)]
mod tests {
    use super::timeout_us;

    #[test]
    fn timeouts_are_read_in_all_their_units() {
        let timeouts = ["1H", "2M", "3S", "4m", "5u", "6000n", "99999999H"].map(|value| timeout_us(value.as_bytes()));
        let expected = [3_600_000_000, 120_000_000, 3_000_000, 4_000, 5, 6, 99_999_999 * 3_600_000_000];
        assert_eq!(timeouts, expected.map(Some));
    }

    #[test]
    fn nonsense_is_no_timeout() {
        for value in ["", "m", "-1m", "1", "1x", "123456789m", "1.5S", "\u{663}m"] {
            assert_eq!(timeout_us(value.as_bytes()), None);
        }
    }
}
