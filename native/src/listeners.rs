//! Where the server is heard: sockets that listen already, which the process got from its supervisor.
#![forbid(unsafe_code)]

use std::io::Result;
use std::os::fd::OwnedFd;

use socket2::Socket;
use tokio::net::{TcpListener, UnixListener};

use crate::connection::Io;

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
