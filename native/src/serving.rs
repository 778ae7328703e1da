//! The thread that all connections live in, and the loops that accept them.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use crate::io::Listener;
use crate::life::Phase;
use crate::scrapes;
use crate::server::Server;

/// Beside those that wait for decoders.
const BLOCKING_THREADS: usize = 2;

/// New connections in a row, behind which calls have their turn.
const ACCEPTED_AT_ONCE: usize = 4;

/// Serves until the drain has ended.
pub fn run(server: Arc<Server>, calls: Vec<OwnedFd>, scrapes: Vec<OwnedFd>) {
    let runtime = match runtime(BLOCKING_THREADS + server.settings.num_decoders) {
        Ok(runtime) => runtime,
        Err(error) => return server.end(Err(format!("NO_RUNTIME: {error}"))),
    };
    let outcome = runtime.block_on(async {
        for socket in calls {
            tokio::spawn(accept(server.clone(), Listener::new(socket).map_err(bad_socket)?));
        }
        for socket in scrapes {
            tokio::spawn(scrapes::serve(server.clone(), Listener::new(socket).map_err(bad_socket)?));
        }
        server.clone().live().await
    });
    runtime.shutdown_timeout(Duration::from_millis(100)); // what listens is closed by then
    server.end(outcome);
}

/// One thread is enough: it saves the hand-overs between several.
fn runtime(blocking_threads: usize) -> std::io::Result<Runtime> {
    Builder::new_current_thread().max_blocking_threads(blocking_threads).enable_all().build()
}

fn bad_socket(error: std::io::Error) -> String {
    format!("BAD_SOCKET: {error}")
}

async fn accept(server: Arc<Server>, listener: Listener) {
    let mut phase = server.life.phase();
    for number in 1_usize.. {
        if number.is_multiple_of(ACCEPTED_AT_ONCE) {
            tokio::task::yield_now().await;
        }
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = phase.wait_for(|&phase| phase == Phase::Leaving) => return,
        };
        match accepted {
            Ok(io) => drop(tokio::spawn(server.clone().serve(io, listener.is_unix()))),
            // No file is left for it, or the client has gone: the next may do better.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}
