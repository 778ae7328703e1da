//! A connection's bytes on their way, watched: since when the system takes no more of them.
#![forbid(unsafe_code)]

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::{Io, Peer};
use crate::engine::Engine;

pub struct GuardedIo {
    io: Box<dyn Io>,
    engine: Arc<Engine>,
    peer: Arc<Peer>,
}

impl GuardedIo {
    pub fn new(io: Box<dyn Io>, engine: Arc<Engine>, peer: Arc<Peer>) -> Self {
        Self { io, engine, peer }
    }

    fn noted<T>(&self, written: Poll<T>) -> Poll<T> {
        let blocked_since_us = &self.peer.blocked_since_us;
        let was_blocked = blocked_since_us.load(Relaxed) > 0;
        if written.is_pending() != was_blocked {
            blocked_since_us.store(if was_blocked { 0 } else { self.engine.now_us().max(1) }, Relaxed);
        }
        written
    }
}

impl AsyncRead for GuardedIo {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, into)
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
