//! Work that takes long, on threads of its own.

use std::cell::Cell;
use std::sync::LazyLock;
use std::thread;

use rustix::process::{getpriority_process, setpriority_process};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use crate::status::Status;

/// Two overlap, and bound what inflating and reading take at any moment.
const BACKGROUND_THREADS: usize = 2;
/// Of those, beside the threads that answer.
const NICENESS: i32 = 10;

static BACKGROUND: LazyLock<Option<Runtime>> = LazyLock::new(|| {
    Builder::new_current_thread().max_blocking_threads(BACKGROUND_THREADS).on_thread_start(give_way).build().ok()
});

thread_local! {
    static IS_IN_BACKGROUND: Cell<bool> = const { Cell::new(false) };
}

/// What the work returns, which mostly waits for others. Whoever goes away before it has begun takes it back: it is
/// never done.
pub async fn done_aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    let mut works = JoinSet::new();
    works.spawn_blocking(work);
    first_of(works).await
}

/// The same for work that keeps a core busy: it gives way to answering.
pub async fn done_in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    let mut works = JoinSet::new();
    if let Some(background) = &*BACKGROUND {
        works.spawn_blocking_on(work, background.handle());
    }
    first_of(works).await
}

/// Lets others go first, where this is work in the background; it calls this about every 0.1 ms. Niceness alone is not
/// enough: Linux takes a core from who has it only at a tick, every 4 ms, if who wants it has just had its share.
pub fn give_turn() {
    if IS_IN_BACKGROUND.get() {
        thread::yield_now();
    }
}

async fn first_of<T: 'static>(mut works: JoinSet<T>) -> Result<T, Status> {
    let done = works.join_next().await.and_then(Result::ok);
    done.ok_or_else(|| Status::internal("INTERNAL", "the server failed on this request", "see the server's log"))
}

/// Has the thread run behind others: on Linux, niceness is each thread's own.
fn give_way() {
    IS_IN_BACKGROUND.set(true);
    if cfg!(target_os = "linux")
        && let Ok(usual) = getpriority_process(None)
    {
        let _ = setpriority_process(None, usual + NICENESS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_in_the_background_gives_way_and_no_other_does() {
        let niceness = || getpriority_process(None).unwrap();
        let usual = niceness();
        assert_eq!(done_aside(niceness).await.unwrap(), usual);
        assert_eq!(done_in_background(niceness).await.unwrap(), (usual + NICENESS).min(19));
        assert!(done_in_background(|| IS_IN_BACKGROUND.get()).await.unwrap());
        assert!(!IS_IN_BACKGROUND.get() && !done_aside(|| IS_IN_BACKGROUND.get()).await.unwrap());
    }
}
