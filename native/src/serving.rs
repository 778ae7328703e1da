//! The runtime that all connections live in, and the loops that accept them.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use crate::listeners::Listener;
use crate::scrapes;
use crate::server::{Phase, Server};

/// Two: enough to overlap, and a bound on the memory that decoding takes at any moment.
const BLOCKING_THREADS: usize = 2;

/// Serves until the drain has ended.
pub fn run(server: Arc<Server>, calls: Vec<Listener>, scrapes: Vec<Listener>) {
    let runtime = match runtime(server.settings.io_threads) {
        Ok(runtime) => runtime,
        Err(error) => return server.end(Err(format!("NO_RUNTIME: {error}"))),
    };
    let outcome = runtime.block_on(async {
        for listener in calls {
            tokio::spawn(accept(server.clone(), listener));
        }
        for listener in scrapes {
            tokio::spawn(scrapes::serve(server.clone(), listener));
        }
        server.clone().live().await
    });
    runtime.shutdown_timeout(Duration::from_millis(100)); // what listens is closed by then
    server.end(outcome);
}

/// One thread where one is enough: it saves the hand-overs between them.
fn runtime(num_threads: usize) -> std::io::Result<Runtime> {
    let mut builder = match num_threads {
        0 | 1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder.worker_threads(num_threads.max(1)).max_blocking_threads(BLOCKING_THREADS).thread_name("calls");
    builder.enable_all().build()
}

async fn accept(server: Arc<Server>, listener: Listener) {
    let Ok(listener) = listener.into_tokio() else { return };
    let mut phase = server.phase();
    loop {
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
