//! Where the server is heard, on sockets that it got from its supervisor; and what a connection's bytes come through.

use std::io::Result;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use socket2::Socket;
use tokio::io::{AsyncRead, AsyncWrite, Interest, Ready};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::server::TlsStream;

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

pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {
    /// Whether the client sends nothing any more but what is here already.
    fn has_hung_up(&self) -> bool;
}

impl Io for TcpStream {
    fn has_hung_up(&self) -> bool {
        is_read_closed(self.ready(Interest::READABLE))
    }
}

impl Io for UnixStream {
    fn has_hung_up(&self) -> bool {
        is_read_closed(self.ready(Interest::READABLE))
    }
}

impl Io for TlsStream<Box<dyn Io>> {
    fn has_hung_up(&self) -> bool {
        self.get_ref().0.has_hung_up()
    }
}

/// As far as is known without waiting.
fn is_read_closed(ready: impl Future<Output = Result<Ready>>) -> bool {
    let found = pin!(ready).poll(&mut Context::from_waker(Waker::noop()));
    matches!(found, Poll::Ready(Ok(ready)) if ready.is_read_closed())
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn who_has_hung_up_is_known_while_bytes_of_him_are_unread() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        client.write_all(b"bytes").await.unwrap();
        server.readable().await.unwrap();
        assert!(!server.has_hung_up());
        drop(client);
        server.ready(Interest::PRIORITY).await.unwrap(); // which a closed side is too
        assert!(server.has_hung_up());
    }
}
