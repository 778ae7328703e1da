//! What the engines of all versions share with their server: the clock, the counts, the way back to the calls, and how
//! the device fails.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::job::{Job, Settled};
use crate::metrics::Metrics;
use crate::status::Status;

/// Microseconds since the server was made, by tokio's clock, which a test may set.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

/// tokio's timers count milliseconds: in tests one of them is called a microsecond, for simulations need finer ones.
pub const SCALE: u64 = if cfg!(test) { 1_000 } else { 1 };

impl Clock {
    pub fn now_us(self) -> u64 {
        self.0.elapsed().as_micros() as u64 / SCALE
    }

    pub async fn sleep_us(self, us: u64) {
        sleep(Duration::from_micros(us * SCALE)).await;
    }
}

#[derive(Debug)]
pub struct Shared {
    pub clock: Clock,
    pub metrics: Metrics,
    settled: Mutex<Vec<(Arc<Job>, Settled)>>,
    deliver: Notify,
    /// Told when an engine is asked for a dispatch.
    pub dispatch: Notify,
    failure: Mutex<Option<Status>>,
    /// Told when the device is given up.
    pub failed: Notify,
}

impl Shared {
    pub fn new() -> Self {
        Self {
            clock: Clock(Instant::now()),
            metrics: Metrics::new(),
            settled: Mutex::default(),
            deliver: Notify::new(),
            dispatch: Notify::new(),
            failure: Mutex::default(),
            failed: Notify::new(),
        }
    }

    pub fn settle(&self, job: &Job, outcome: Settled) {
        if !job.settle(outcome) {
            self.metrics.undelivered.fetch_add(1, Relaxed);
        }
    }

    pub fn settle_soon(&self, outcomes: Vec<(Arc<Job>, Settled)>) {
        if !outcomes.is_empty() {
            locked(&self.settled).extend(outcomes);
            self.deliver.notify_one();
        }
    }

    /// Hands over what devices have answered.
    pub async fn deliver_forever(self: Arc<Self>) {
        loop {
            self.deliver.notified().await;
            let settled = std::mem::take(&mut *locked(&self.settled));
            for (job, outcome) in settled {
                self.settle(&job, outcome);
            }
        }
    }

    /// Why the device was given up.
    pub fn failure(&self) -> Option<Status> {
        locked(&self.failure).clone()
    }

    /// Whether this is the first reason for which it is given up: then it is kept, for health to see.
    pub fn fail(&self, reason: &Status) -> bool {
        let mut failure = locked(&self.failure);
        let is_first = failure.is_none();
        failure.get_or_insert_with(|| reason.clone());
        is_first
    }
}

/// Wakes a device's thread; in a simulation, which has none, a task.
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

/// A thread that panicked while it held a lock has its say in the log; the numbers behind it are whole.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
