//! One client's connection: HTTP/2 or HTTP/1, watched for answers that it does not take.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use http::Response;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::sync::Notify;

use crate::body::Body;
use crate::guarded_io::GuardedIo;
use crate::io::Io;
use crate::life::Phase;
use crate::routes;
use crate::server::Server;
use crate::shared::Clock;

const MAX_STREAMS: u32 = 128;
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
const MAX_HEADER_BYTES: u32 = 8 << 10;
const MANY_UNSENT: usize = 32;
/// Calls at once of a client that has taken no answer yet: further ones may be in vain, for all that is known.
const MANY_FIRST_CALLS: usize = 32;
const MAX_SILENCE_US: u64 = 10_000_000;
const PING_AFTER: Duration = Duration::from_secs(30);
/// Clients of HTTP/1 keep connections for a while. One that is slow is idle too: when there are too many, it goes.
const HTTP1_IDLE_TIMEOUT: Duration = Duration::from_secs(75);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// What is known of a connection.
#[derive(Debug, Default)]
pub struct Peer {
    pub number: u64,
    /// Calls that are being handled.
    pub num_calls: AtomicUsize,
    /// Answers that the client has not taken, and since when it has taken none of them; times are the server's.
    num_unsent: AtomicUsize,
    unsent_since_us: AtomicU64,
    /// Since when the system takes no more bytes for it; 0 while it does.
    pub blocked_since_us: AtomicU64,
    pub last_use_us: AtomicU64,
    /// It has made a call.
    pub has_called: AtomicBool,
    /// It has taken an answer.
    pub has_answer: AtomicBool,
    /// It has said what it speaks.
    pub has_begun: AtomicBool,
    /// Calls that were work for nothing since this was last asked.
    num_vain_calls: AtomicUsize,
    /// It is told to go.
    pub is_leaving: AtomicBool,
    pub cut: Notify,
}

impl Peer {
    pub fn new(number: u64, now_us: u64) -> Self {
        Self { number, last_use_us: now_us.into(), ..Self::default() }
    }

    pub fn begin_call(&self, now_us: u64) {
        let num_others = self.num_calls.fetch_add(1, Relaxed) + self.num_unsent.load(Relaxed);
        self.last_use_us.store(now_us, Relaxed);
        self.has_called.store(true, Relaxed);
        if num_others >= MANY_FIRST_CALLS && !self.has_answer.load(Relaxed) {
            self.note_vain_call();
        }
    }

    /// A call has made work for nothing: of a method that there is not, or whose message did not come.
    pub fn note_vain_call(&self) {
        self.num_vain_calls.fetch_add(1, Relaxed);
    }

    pub fn take_vain_calls(&self) -> usize {
        self.num_vain_calls.swap(0, Relaxed)
    }

    /// Whether it has left answers lying for so long.
    pub fn is_stuck(&self, now_us: u64, timeout_us: u64) -> bool {
        let is_old = |since_us: u64| now_us.saturating_sub(since_us) > timeout_us;
        let blocked_since_us = self.blocked_since_us.load(Relaxed);
        let has_unsent = self.num_unsent.load(Relaxed) > 0 && is_old(self.unsent_since_us.load(Relaxed));
        has_unsent || (blocked_since_us > 0 && is_old(blocked_since_us))
    }

    /// Whether nothing is under way to or from it.
    pub fn is_idle(&self) -> bool {
        self.num_calls.load(Relaxed) == 0 && self.num_unsent.load(Relaxed) == 0
    }

    /// Whether it is to be cut: it takes no answers, the sooner the more there are, or says nothing.
    pub fn is_overdue(&self, now_us: u64, timeout_us: u64) -> bool {
        let has_many = self.num_unsent.load(Relaxed) >= MANY_UNSENT;
        let is_silent = !self.has_begun.load(Relaxed) && now_us - self.last_use_us.load(Relaxed) > MAX_SILENCE_US;
        self.is_stuck(now_us, if has_many { timeout_us / 5 } else { timeout_us }) || is_silent
    }
}

/// An answer on its way to the client.
pub struct Unsent {
    peer: Arc<Peer>,
    clock: Clock,
}

impl Unsent {
    pub fn new(peer: Arc<Peer>, clock: Clock) -> Self {
        if peer.num_unsent.fetch_add(1, Relaxed) == 0 {
            peer.unsent_since_us.store(clock.now_us(), Relaxed);
        }
        Self { peer, clock }
    }

    /// The client has taken it: who is slow, and reads all the time, is not stuck.
    pub fn note_sent(self) {
        self.peer.has_answer.store(true, Relaxed);
        if self.peer.num_unsent.load(Relaxed) > 1 {
            self.peer.unsent_since_us.store(self.clock.now_us(), Relaxed);
        }
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        self.peer.num_unsent.fetch_sub(1, Relaxed);
    }
}

/// Serves it to its end: the client's, ours (GOAWAY, and what is under way is answered), or a cut.
pub async fn serve(server: Arc<Server>, io: Box<dyn Io>, is_unix: bool, peer: Arc<Peer>) {
    let guarded = GuardedIo::new(io, server.clock(), peer.clone(), server.crowd.clone(), is_unix);
    let (for_calls, of_peer) = (server.clone(), peer.clone());
    let service = hyper::service::service_fn(move |request| {
        let answer = routes::answer(for_calls.clone(), of_peer.clone(), request);
        async { Ok::<Response<Body>, Infallible>(answer.await) }
    });
    let builder = builder();
    let mut connection = pin!(builder.serve_connection(TokioIo::new(guarded), service));
    let mut phase = server.life.phase();
    tokio::select! {
        biased;
        _ = connection.as_mut() => return,
        () = peer.cut.notified() => return,
        _ = phase.wait_for(|&phase| phase == Phase::Leaving) => {}
    }
    peer.is_leaving.store(true, Relaxed);
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        _ = connection => {}
        () = peer.cut.notified() => {}
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(MAX_HEADER_BYTES)
        .max_pending_accept_reset_streams(MAX_STREAMS as usize)
        .max_local_error_reset_streams(256)
        .max_send_buf_size(64 << 10)
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HTTP1_IDLE_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES as usize * 2);
    builder
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::Shared;

    #[test]
    fn many_calls_at_once_are_in_vain_until_an_answer_has_been_taken() {
        let peer = Arc::new(Peer::new(0, 0));
        (0..MANY_FIRST_CALLS + 3).for_each(|_| peer.begin_call(0));
        assert_eq!(peer.take_vain_calls(), 3);
        Unsent::new(peer.clone(), Shared::new().clock).note_sent();
        peer.begin_call(0);
        assert_eq!(peer.take_vain_calls(), 0);
    }
}
