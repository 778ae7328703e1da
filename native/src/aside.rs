//! Work that takes long, on threads of its own.
#![forbid(unsafe_code)]

use tokio::task::JoinSet;

use crate::status::Status;

/// What the work returns. Whoever goes away before it has begun takes it back: it is never done.
pub async fn done_aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    let mut works = JoinSet::new();
    works.spawn_blocking(work);
    let done = works.join_next().await.and_then(Result::ok);
    done.ok_or_else(|| Status::internal("INTERNAL", "the server failed on this request", "see the server's log"))
}
