//! What wakes a device's thread; in a simulation, which has none, a task.
#![forbid(unsafe_code)]

use std::sync::{Condvar, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Debug, Default)]
pub struct Bell {
    condition: Condvar,
    #[cfg(test)]
    pub rung: tokio::sync::Notify,
}

impl Bell {
    pub fn ring(&self) {
        self.condition.notify_one();
        #[cfg(test)]
        self.rung.notify_waiters(); // as a condition it is not remembered
    }

    /// Gives up the lock until it rings; true if it did not ring in that time.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>, patience: Duration) -> (MutexGuard<'a, T>, bool) {
        let waited = self.condition.wait_timeout(guard, patience);
        let (guard, result) = waited.unwrap_or_else(PoisonError::into_inner);
        (guard, result.timed_out())
    }
}
