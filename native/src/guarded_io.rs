//! A connection's bytes on their way, watched: for floods of frames, and for a client that takes nothing any more.
//!
//! Connections that push frames which are no calls, or make calls in vain, are read slowly: together they get a bounded
//! share of the thread. Those that have no answer yet are read by turns: see turns.rs.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::connection::Peer;
use crate::crowd::{Crowd, Rank};
use crate::frame_watch::FrameWatch;
use crate::io::Io;
use crate::shared::Clock;
use crate::turns::Ticket;

/// Reads in a row, behind which other connections have their turn.
const MAX_READS: usize = 2;
/// Of a connection that has no answer yet, in its turn: it may be one of many that only make work until they are cut.
const NEW_BYTES: usize = 4 << 10;
/// Of one that pushes, and the pause behind each frame of it: a frame takes about a microsecond.
const PUSHED_BYTES: usize = 2 << 10;
const PAUSE_US: usize = 20;

pub struct GuardedIo {
    io: Box<dyn Io>,
    clock: Clock,
    peer: Arc<Peer>,
    watch: FrameWatch,
    num_reads: usize, // without a pause
    crowd: Arc<Crowd>,
    ticket: Ticket,
    is_pushing: bool,
    rank: Option<Rank>, // among those that push and have something to be read
    pause: Option<Pin<Box<Sleep>>>,
}

impl GuardedIo {
    pub fn new(io: Box<dyn Io>, clock: Clock, peer: Arc<Peer>, crowd: Arc<Crowd>, is_unix: bool) -> Self {
        let watch = FrameWatch::new(clock.now_us(), is_unix);
        let ticket = Ticket::new(crowd.turns.clone());
        let (is_pushing, rank, pause) = (false, None, None);
        Self { io, clock, peer, watch, num_reads: 0, crowd, ticket, is_pushing, rank, pause }
    }

    /// It has had an answer, and does not push: it need not wait for its turn.
    fn is_friend(&self) -> bool {
        self.peer.has_answer.load(Relaxed) && !self.is_pushing
    }

    /// Has the next bytes wait, the longer the more others push too.
    fn slow_down(&mut self) {
        self.watch.note_vain_calls(self.peer.take_vain_calls());
        let pushed = self.watch.num_pushed(self.peer.has_answer.load(Relaxed));
        self.is_pushing = pushed.is_some();
        self.count(self.is_pushing);
        self.pause = pushed.filter(|&num_frames| num_frames > 0).map(|num_frames| {
            let pause_us = num_frames * PAUSE_US * self.crowd.num_pushing();
            Box::pin(sleep(Duration::from_micros(pause_us as u64)))
        });
    }

    fn count(&mut self, is_counted: bool) {
        match self.rank {
            None if is_counted => self.rank = Some(self.crowd.enter(&self.peer)),
            Some(rank) if !is_counted => {
                self.crowd.leave(rank);
                self.rank = None;
            }
            _ => {}
        }
    }

    /// Whether what is left need not be read: nobody is there to hear of it.
    fn is_deserted(&self) -> bool {
        (self.is_pushing || self.watch.is_http2()) && self.io.has_hung_up()
    }

    fn read(&mut self, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let num_bytes = match (self.is_pushing, self.peer.has_answer.load(Relaxed)) {
            (true, _) => PUSHED_BYTES,
            (false, false) => NEW_BYTES,
            (false, true) => return Pin::new(&mut self.io).poll_read(context, into),
        };
        let num_bytes = num_bytes.min(into.remaining());
        let mut few = ReadBuf::new(into.initialize_unfilled_to(num_bytes));
        ready!(Pin::new(&mut self.io).poll_read(context, &mut few))?;
        let num_read = few.filled().len();
        into.advance(num_read);
        Poll::Ready(Ok(()))
    }

    fn noted<T>(&self, written: Poll<T>) -> Poll<T> {
        let blocked_since_us = &self.peer.blocked_since_us;
        let was_blocked = blocked_since_us.load(Relaxed) > 0;
        if written.is_pending() != was_blocked {
            blocked_since_us.store(if was_blocked { 0 } else { self.clock.now_us().max(1) }, Relaxed);
        }
        written
    }
}

impl Drop for GuardedIo {
    fn drop(&mut self) {
        self.count(false);
    }
}

impl AsyncRead for GuardedIo {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(context));
            self.pause = None;
        }
        if !self.is_friend() && self.is_deserted() {
            return Poll::Ready(Err(io::Error::other("the client has gone")));
        }
        if self.num_reads >= if self.is_friend() { MAX_READS } else { 1 } {
            self.num_reads = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if !self.is_friend() {
            ready!(self.ticket.poll_turn(context));
        }
        let num_before = into.filled().len();
        let read = self.read(context, into);
        self.num_reads = if read.is_pending() { 0 } else { self.num_reads + 1 };
        if read.is_pending() {
            self.count(false); // who has pushed and is silent slows nobody down
        }
        ready!(read)?;
        let now_us = self.clock.now_us();
        if self.peer.is_leaving.load(Relaxed) {
            self.watch.leave();
        }
        if !self.watch.see(&mut into.filled_mut()[num_before..], now_us) {
            return Poll::Ready(Err(io::Error::other("a flood of frames")));
        }
        self.slow_down();
        self.peer.has_begun.store(self.watch.has_begun(), Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for GuardedIo {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        self.noted(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(context, pieces);
        self.noted(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
