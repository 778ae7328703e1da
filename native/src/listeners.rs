//! Where the server is heard: sockets that listen already, which the process got from its supervisor.
#![forbid(unsafe_code)]

use std::io::Result;
use std::os::fd::OwnedFd;

use socket2::Socket;
use tokio::net::{TcpListener, UnixListener};

use crate::io::Io;

/// What the system takes from a client before anybody reads it; HTTP/2's windows are smaller. By itself it takes up to
/// tens of megabytes, and each connection's are copied, kept and thrown away at the server's cost.
const UNREAD_BYTES: usize = 1 << 20;

/// In the runtime that is entered.
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    pub fn new(socket: OwnedFd) -> Result<Self> {
        let socket = Socket::from(socket);
        socket.set_nonblocking(true)?;
        if socket.local_addr()?.is_unix() {
            return Ok(Self::Unix(UnixListener::from_std(OwnedFd::from(socket).into())?));
        }
        socket.set_recv_buffer_size(UNREAD_BYTES)?;
        Ok(Self::Tcp(TcpListener::from_std(socket.into())?))
    }

    pub fn is_unix(&self) -> bool {
        matches!(self, Self::Unix(_))
    }

    /// The next connection.
    pub async fn accept(&self) -> Result<Box<dyn Io>> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Self::Unix(listener) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}
