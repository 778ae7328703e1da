//! Stays awake for a client that asks again as soon as it has its answer.
//!
//! To sleep between its calls is dear: the processor halts, which on a virtual machine is an exit to its host, and wakes
//! up with cold caches. So while one client is alone, and its pauses are short, the thread looks for its next call without
//! sleeping, for a bounded time: Linux does the same in its governor haltpoll (Documentation/virt/guest-halt-polling.rst).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use tokio::sync::Notify;
use tokio::task::yield_now;

use crate::shared::Clock;

/// Pauses as short as this on average are waited for.
const SHORT_US: u64 = 160;
/// The longest wait for one call.
const LONGEST_US: u64 = 240;
/// The mean is over so many calls. Of a longer pause no more than this counts: a second of it would count for thousands.
const NUM_CALLS: u64 = 16;
const MOST_US: u64 = 4_000;

#[derive(Debug)]
pub struct Linger {
    /// A call is under way; since when none has been, where none is.
    is_busy: AtomicBool,
    since_us: AtomicU64,
    /// NUM_CALLS times the mean of the last pauses between calls.
    pauses_us: AtomicU64,
    /// Told when the next call is worth being waited for.
    waits: Notify,
}

impl Default for Linger {
    fn default() -> Self {
        let (is_busy, since_us, pauses_us) = (false.into(), 0.into(), (NUM_CALLS * MOST_US).into());
        Self { is_busy, since_us, pauses_us, waits: Notify::new() }
    }
}

impl Linger {
    /// A call has begun, and so many others are under way.
    pub fn begin(&self, num_others: usize, now_us: u64) {
        if num_others > 0 {
            self.pauses_us.store(NUM_CALLS * MOST_US, Relaxed);
            return; // calls come together more often where they are not looked for all the time
        }
        self.is_busy.store(true, Relaxed);
        let pause_us = now_us.saturating_sub(self.since_us.load(Relaxed)).min(MOST_US);
        let pauses_us = self.pauses_us.load(Relaxed);
        self.pauses_us.store(pauses_us - pauses_us / NUM_CALLS + pause_us, Relaxed);
    }

    /// The last call under way has ended.
    pub fn end(&self, now_us: u64) {
        self.since_us.store(now_us, Relaxed);
        self.is_busy.store(false, Relaxed);
        if self.is_next_near() {
            self.waits.notify_one();
        }
    }

    fn is_next_near(&self) -> bool {
        self.pauses_us.load(Relaxed) < NUM_CALLS * SHORT_US
    }

    pub async fn stay_awake_forever(&self, clock: Clock) {
        loop {
            self.waits.notified().await;
            self.stay_awake(clock).await;
        }
    }

    /// Until a call begins, or for so long.
    async fn stay_awake(&self, clock: Clock) {
        let until_us = self.since_us.load(Relaxed) + LONGEST_US;
        while !self.is_busy.load(Relaxed) && clock.now_us() < until_us {
            yield_now().await; // by way of the sockets, without waiting there
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::Shared;

    /// Calls of 50 us each, with these pauses before them.
    fn after(linger: &Linger, pauses_us: impl IntoIterator<Item = u64>) -> bool {
        let mut now_us = linger.since_us.load(Relaxed);
        for pause_us in pauses_us {
            linger.begin(0, now_us + pause_us);
            now_us += pause_us + 50;
            linger.end(now_us);
        }
        linger.is_next_near()
    }

    #[test]
    fn only_a_client_that_has_been_quick_for_a_while_is_waited_for() {
        let linger = Linger::default();
        assert!(!after(&linger, [0]) && !after(&linger, [60; 40]));
        assert!(after(&linger, [60; 60]) && after(&linger, [400, 60]));
        assert!(!after(&linger, [3_000]) && after(&linger, [60; 40]));
        assert!(!after(&linger, [170; 200]));
    }

    #[test]
    fn nobody_is_waited_for_where_calls_overlap() {
        let linger = Linger::default();
        assert!(after(&linger, [60; 120]));
        linger.begin(0, linger.since_us.load(Relaxed) + 60);
        linger.begin(1, 0);
        linger.end(0);
        assert!(!linger.is_next_near());
    }

    #[tokio::test]
    async fn it_waits_for_a_bounded_time_and_others_go_on_meanwhile() {
        let (clock, linger) = (Shared::new().clock, Linger::default());
        let next_call = async {
            yield_now().await;
            linger.begin(0, clock.now_us());
        };
        linger.end(clock.now_us());
        tokio::join!(linger.stay_awake(clock), next_call);
        assert!(clock.now_us() < LONGEST_US);
        linger.end(clock.now_us());
        linger.stay_awake(clock).await;
        assert!(clock.now_us() >= LONGEST_US);
    }
}
