//! A connection's bytes on their way, watched: for floods of frames, and for a client that takes nothing any more.
#![forbid(unsafe_code)]

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::{Io, Peer};
use crate::frame_watch::FrameWatch;
use crate::shared::Clock;

/// Reads in a row, behind which other connections have their turn.
const MAX_READS: usize = 2;

pub struct GuardedIo {
    io: Box<dyn Io>,
    clock: Clock,
    peer: Arc<Peer>,
    watch: FrameWatch,
    num_reads: usize, // without a pause
}

impl GuardedIo {
    pub fn new(io: Box<dyn Io>, clock: Clock, peer: Arc<Peer>, is_unix: bool) -> Self {
        let watch = FrameWatch::new(clock.now_us(), is_unix);
        Self { io, clock, peer, watch, num_reads: 0 }
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

impl AsyncRead for GuardedIo {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.num_reads == MAX_READS {
            self.num_reads = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let num_before = into.filled().len();
        let read = Pin::new(&mut self.io).poll_read(context, into);
        self.num_reads = if read.is_pending() { 0 } else { self.num_reads + 1 };
        ready!(read)?;
        let now_us = self.clock.now_us();
        if self.peer.is_leaving.load(Relaxed) {
            self.watch.leave();
        }
        if !self.watch.see(&mut into.filled_mut()[num_before..], now_us) {
            return Poll::Ready(Err(io::Error::other("a flood of frames")));
        }
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
