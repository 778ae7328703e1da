//! Where the server is heard: TCP, unix sockets, and sockets that were opened before this process began.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{Error, ErrorKind, Result};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use socket2::{Domain, Protocol, Socket, Type};

use crate::connection::Io;

const BACKLOG: i32 = 1024;

/// A socket that listens.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, UnixPath),
}

/// The file is removed with it.
#[derive(Debug)]
pub struct UnixPath(Option<PathBuf>);

impl Drop for UnixPath {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

/// All that an address means: a name may have several. Port 0 lets the system choose one for all of them.
pub fn open(address: &str) -> Result<Vec<Listener>> {
    if let Some(path) = address.strip_prefix("unix:") {
        return Ok(vec![open_unix(Path::new(path))?]);
    }
    let (mut listeners, mut chosen): (Vec<Listener>, u16) = (Vec::new(), 0);
    for mut found in address.to_socket_addrs()? {
        if chosen != 0 {
            found.set_port(chosen);
        }
        match open_tcp(found) {
            Ok(listener) => {
                chosen = listener.local_addr()?.port();
                listeners.push(Listener::Tcp(listener));
            }
            // The host has several addresses, and this one is none of this machine's.
            Err(error) if !listeners.is_empty() && error.kind() != ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    if listeners.is_empty() { Err(Error::new(ErrorKind::AddrNotAvailable, "it has no address")) } else { Ok(listeners) }
}

/// A socket that another process opened, and that listens already.
pub fn inherited(socket: OwnedFd) -> Result<Listener> {
    let socket = Socket::from(socket);
    if socket.local_addr()?.is_unix() {
        return Ok(Listener::Unix(OwnedFd::from(socket).into(), UnixPath(None)));
    }
    Ok(Listener::Tcp(socket.into()))
}

fn open_tcp(address: SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn open_unix(path: &Path) -> Result<Listener> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if is_socket {
        if UnixStream::connect(path).is_ok() {
            return Err(Error::new(ErrorKind::AddrInUse, "another server listens there"));
        }
        fs::remove_file(path)?; // of one that did not come to remove it
    }
    Ok(Listener::Unix(UnixListener::bind(path)?, UnixPath(Some(path.to_owned()))))
}

impl Listener {
    /// As gRPC's clients write it.
    pub fn address(&self) -> Result<String> {
        match self {
            Self::Tcp(listener) => Ok(listener.local_addr()?.to_string()),
            Self::Unix(listener, _) => {
                let address = listener.local_addr()?;
                Ok(format!("unix:{}", address.as_pathname().unwrap_or(Path::new("")).display()))
            }
        }
    }

    /// For use in the runtime that is entered.
    pub fn into_tokio(self) -> Result<Accepting> {
        match self {
            Self::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                Ok(Accepting::Tcp(tokio::net::TcpListener::from_std(listener)?))
            }
            Self::Unix(listener, path) => {
                listener.set_nonblocking(true)?;
                Ok(Accepting::Unix(tokio::net::UnixListener::from_std(listener)?, path))
            }
        }
    }
}

pub enum Accepting {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener, #[allow(dead_code)] UnixPath),
}

impl Accepting {
    pub fn is_unix(&self) -> bool {
        matches!(self, Self::Unix(..))
    }

    /// The next connection.
    pub async fn accept(&self) -> Result<Box<dyn Io>> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Self::Unix(listener, _) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}
