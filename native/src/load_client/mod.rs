//! The other end of the wire: a client that offers load. Python hands over many calls at once, and takes in bulk what
//! became of them; nothing is repeated, and nothing is held back but by the server's own bound on streams.
//!
//! From the outside in: python -> LoadClient -> call; replies reads in bulk what was answered.

mod call;
mod python;
mod replies;

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Builder;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::shared::locked;
use call::Connection;
pub use python::add_to;

/// Answers that wake whoever waits for them even while there is more to read.
const MANY: usize = 64;

/// A call to be made now, unless it is later than `latest`; `framed` has gRPC's prefix.
pub struct Call {
    number: i64,
    framed: Bytes,
    latest: Instant,
    deadline: Instant,
}

/// What became of calls, a column each, in this machine's byte order. A failed call's reply is the status's message.
#[derive(Default)]
pub struct Answers {
    numbers: Vec<u8>,
    sent_ns: Vec<u8>,
    done_ns: Vec<u8>,
    codes: Vec<u8>,
    replies: Vec<u8>,
    ends: Vec<u8>,
}

/// Where the answers are until they are taken.
#[derive(Default)]
struct Shelf {
    answers: Mutex<(Answers, bool)>, // and whether somebody waits for them
    filled: Condvar,
}

/// What the client's thread and its callers share.
struct Shared {
    shelf: Shelf,
    /// The monotonic clock at one moment, by two names: Rust does not tell its nanoseconds.
    epoch: (Instant, i64),
}

pub struct LoadClient {
    shared: Arc<Shared>,
    running: Mutex<Option<Running>>,
}

struct Running {
    calls: UnboundedSender<Vec<Call>>,
    thread: JoinHandle<()>,
}

impl LoadClient {
    /// `now_ns`: what the caller's monotonic clock says now.
    pub fn start(target: &str, method: &str, num_connections: usize, now_ns: i64) -> io::Result<Self> {
        let shared = Arc::new(Shared { shelf: Shelf::default(), epoch: (Instant::now(), now_ns) });
        let connections = (0..num_connections.max(1)).map(|_| Connection::new(target, method)).collect();
        let (calls, arriving) = unbounded_channel();
        let theirs = shared.clone();
        let parking = shared.clone();
        let runtime =
            Builder::new_current_thread().enable_all().on_thread_park(move || parking.shelf.tell(1)).build()?;
        let thread = thread::Builder::new()
            .name("load".into())
            .spawn(move || runtime.block_on(make_calls(theirs, arriving, connections)))?;
        Ok(Self { shared, running: Mutex::new(Some(Running { calls, thread })) })
    }

    /// Makes the calls; False if the client is closed.
    pub fn submit(&self, calls: Vec<Call>) -> bool {
        locked(&self.running).as_ref().is_some_and(|running| running.calls.send(calls).is_ok())
    }

    pub fn instant(&self, ns: i64) -> Instant {
        let (epoch, epoch_ns) = self.shared.epoch;
        let distance = Duration::from_nanos(ns.abs_diff(epoch_ns));
        if ns < epoch_ns { epoch.checked_sub(distance).unwrap_or(epoch) } else { epoch + distance }
    }

    /// What has been answered since the last time; waits for the first of it.
    pub fn take(&self, timeout: Duration) -> Answers {
        let shelf = &self.shared.shelf;
        let mut held = locked(&shelf.answers);
        if held.0.numbers.is_empty() {
            held.1 = true;
            let waited = shelf.filled.wait_timeout_while(held, timeout, |(_, is_waiting)| *is_waiting);
            held = waited.unwrap_or_else(PoisonError::into_inner).0;
            held.1 = false;
        }
        std::mem::take(&mut held.0)
    }

    /// Gives up what is under way.
    pub fn close(&self) {
        let running = locked(&self.running).take();
        if let Some(Running { calls, thread }) = running {
            drop(calls);
            let _ = thread.join();
        }
    }
}

async fn make_calls(
    shared: Arc<Shared>,
    mut arriving: UnboundedReceiver<Vec<Call>>,
    connections: Vec<Arc<Connection>>,
) {
    let mut turn = connections.iter().cycle();
    while let Some(calls) = arriving.recv().await {
        for (call, connection) in calls.into_iter().zip(&mut turn) {
            tokio::spawn(make(shared.clone(), connection.clone(), call));
        }
    }
}

async fn make(shared: Arc<Shared>, connection: Arc<Connection>, call: Call) {
    let sent = Instant::now();
    let (code, reply) = match sent < call.latest {
        true => connection.ask(call.framed, call.deadline).await,
        false => (call::DEADLINE_EXCEEDED, Bytes::from_static(b"too late to be sent")),
    };
    shared.put(call.number, sent, code, &reply);
}

impl Shared {
    fn ns(&self, instant: Instant) -> [u8; 8] {
        (self.epoch.1 + (instant - self.epoch.0).as_nanos() as i64).to_ne_bytes()
    }

    fn put(&self, number: i64, sent: Instant, code: u8, reply: &[u8]) {
        let (sent_ns, done_ns) = (self.ns(sent), self.ns(Instant::now()));
        let mut held = locked(&self.shelf.answers);
        let answers = &mut held.0;
        answers.numbers.extend(number.to_ne_bytes());
        answers.sent_ns.extend(sent_ns);
        answers.done_ns.extend(done_ns);
        answers.codes.push(code);
        answers.replies.extend_from_slice(reply);
        let end = answers.replies.len() as i64;
        answers.ends.extend(end.to_ne_bytes());
        drop(held);
        self.shelf.tell(MANY);
    }
}

impl Shelf {
    /// Wakes who waits, if there are so many answers: once for all that were read together, when there is no more.
    fn tell(&self, least: usize) {
        let mut held = locked(&self.answers);
        if held.1 && held.0.codes.len() >= least {
            held.1 = false;
            self.filled.notify_one();
        }
    }
}
