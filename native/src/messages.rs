//! The messages of a call, as they come: in time, within their bounds, inflated.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Body as _;
use hyper::body::Incoming;

use crate::aside::done_in_background;
use crate::budget::Hold;
use crate::call::{Call, MAX_OTHER_BYTES};
use crate::connection::Peer;
use crate::framing::{Decoder, Encoding, Raw, inflated};
use crate::http::{Decoding, GrpcWeb};
use crate::server::Server;
use crate::shared::Clock;
use crate::status::{Code, Status};

/// What is inflated on the spot; more goes to a thread that may take its time.
const SMALL_COMPRESSED_BYTES: usize = 1024;

/// The messages of a call, as they come.
pub struct Messages {
    server: Arc<Server>,
    peer: Arc<Peer>,
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
        let (server, peer, deadline_us) = (call.server.clone(), call.peer.clone(), call.deadline_us);
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
        let (server, peer) = (self.server.clone(), self.peer.clone());
        in_time(&server, &peer, poll_fn(|context| self.poll_next(context))).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Raw>, Status>> {
        loop {
            if let Some(raw) = self.decoder.next()? {
                self.server.budgets.unread_bytes.check_is_little(raw.bytes.len())?;
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
            none => *none = Some(self.server.budgets.unread_bytes.take(self.peer.number, num_bytes)?),
        }
        Ok(())
    }

    /// What a message holds. It is accounted for until somebody has come to inflate it.
    pub async fn inflated(&mut self, raw: Raw) -> Result<Bytes, Status> {
        let (bytes, encoding, limit) = (raw.bytes, self.encoding, self.decoder.limit);
        if !raw.is_compressed {
            return Ok(bytes);
        }
        self.server.budgets.check_takes_compressed()?;
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
    peer: &Peer,
    reading: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    let timeout = server.settings.message_timeout();
    let place = server.waiting.enter(peer.number);
    tokio::select! {
        biased;
        read = reading => read,
        () = place.is_taken() => {
            peer.note_vain_call();
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
    let (message, _hold) = done_in_background(move || {
        if clock.now_us() >= deadline_us {
            let what = "the deadline passed before the message was decompressed";
            return (Err(Status::expired("EXPIRED", what)), hold);
        }
        (inflated(&bytes, encoding, limit), hold)
    })
    .await?;
    message
}
