//! The whole body of a request, within the bounds that messages have.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, EXPECT};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::call::Call;
use crate::framing::{Encoding, too_large};
use crate::messages::{in_time, inflated_aside};
use crate::status::{Code, Status};

/// So much of a refused body is taken.
const MAX_PASSED_BYTES: usize = 64 << 10;
const MAX_PASSING: Duration = Duration::from_millis(250);

/// Decompressed, if it was compressed.
pub async fn whole(call: &mut Call, headers: &HeaderMap, incoming: &mut Incoming) -> Result<Bytes, Status> {
    let encoding = encoding_of(headers)?;
    let limit = call.max_message_bytes();
    let said = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    let (server, peer) = (call.server.clone(), call.peer.clone());
    let mut hold = server.budgets.unread_bytes.take(peer.number, 0)?;
    let read = in_time(&server, &peer, async {
        let mut body = Collected::default();
        if let Some(length) = said.filter(|&length| length > limit) {
            pass_over(incoming, limit).await;
            return Err(too_large(format!("the body has {length} bytes"), limit));
        }
        while let Some(frame) = poll_fn(|context| Pin::new(&mut *incoming).poll_frame(context)).await {
            let gone = |_| Status::new(Code::Cancelled, "CANCELLED", "the client has gone", "");
            if let Ok(piece) = frame.map_err(gone)?.into_data() {
                body.push(piece);
            }
            if body.len() > limit {
                pass_over(incoming, limit).await;
                return Err(too_large(format!("the body has more than {limit} bytes"), limit));
            }
            hold.set(body.len())?;
        }
        Ok(body.finish())
    });
    let body = read.await?;
    call.take_place()?;
    if encoding == Encoding::Identity {
        return Ok(body);
    }
    server.budgets.check_takes_compressed()?;
    inflated_aside(server.clock(), call.deadline_us, body, encoding, limit, Some(hold)).await
}

/// Reads on, as far as that is not much: over HTTP/1 a client that still sends hears of a refusal only if that is taken.
async fn pass_over(incoming: &mut Incoming, most: usize) {
    let mut num_bytes = 0;
    while num_bytes <= most
        && let Some(Ok(frame)) = poll_fn(|context| Pin::new(&mut *incoming).poll_frame(context)).await
    {
        num_bytes += frame.data_ref().map_or(0, Bytes::len);
    }
}

/// Of a request that was refused before its body had come: over HTTP/1 a connection whose body nobody takes is closed, and
/// its client's next request would fail. What comes slowly is not waited for.
pub async fn pass_rest(headers: &HeaderMap, incoming: &mut Incoming) {
    if !headers.contains_key(EXPECT) {
        let _ = timeout(MAX_PASSING, pass_over(incoming, MAX_PASSED_BYTES)).await;
    }
}

fn encoding_of(headers: &HeaderMap) -> Result<Encoding, Status> {
    let Some(name) = headers.get(CONTENT_ENCODING) else { return Ok(Encoding::Identity) };
    Encoding::from_name(name.as_bytes()).map_err(|_| {
        let what = "a body in this content-encoding cannot be read";
        Status::invalid("BAD_ENCODING", what, "send identity, gzip or deflate")
    })
}

/// One piece is not copied.
#[derive(Default)]
struct Collected {
    one: Bytes,
    many: BytesMut,
}

impl Collected {
    fn len(&self) -> usize {
        self.one.len() + self.many.len()
    }

    fn push(&mut self, piece: Bytes) {
        if self.len() == 0 {
            self.one = piece;
        } else {
            self.many.extend_from_slice(&std::mem::take(&mut self.one));
            self.many.extend_from_slice(&piece);
        }
    }

    fn finish(self) -> Bytes {
        if self.many.is_empty() { self.one } else { self.many.freeze() }
    }
}
