//! What a connection's bytes come through: TCP, a Unix socket, TLS.
#![forbid(unsafe_code)]

use std::io::Result;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, Interest, Ready};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

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
    use tokio::net::TcpListener;

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
