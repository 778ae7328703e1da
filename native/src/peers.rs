//! All connections: as many as may be, and cut where they take too long.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use crate::connection::Peer;
use crate::shared::locked;

#[derive(Debug)]
pub struct Peers {
    limit: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next_number: u64,
    by_number: HashMap<u64, Arc<Peer>>,
}

impl Peers {
    pub fn new(limit: usize) -> Self {
        Self { limit, open: Mutex::default() }
    }

    pub fn is_empty(&self) -> bool {
        locked(&self.open).by_number.is_empty()
    }

    /// A new one. Of too many, the one goes that has been idle for longest, those that have made no call before
    /// others; None where none is idle.
    pub fn admit(&self, now_us: u64) -> Option<Arc<Peer>> {
        let mut open = locked(&self.open);
        if open.by_number.len() >= self.limit {
            let idle = open.by_number.values().filter(|peer| peer.is_idle());
            let worth = |peer: &&Arc<Peer>| (peer.has_called.load(Relaxed), peer.last_use_us.load(Relaxed));
            let oldest = idle.min_by_key(worth)?.clone();
            open.by_number.remove(&oldest.number);
            oldest.cut.notify_one();
        }
        let number = open.next_number;
        open.next_number += 1;
        let peer = Arc::new(Peer::new(number, now_us));
        open.by_number.insert(number, peer.clone());
        Some(peer)
    }

    pub fn leave(&self, number: u64) {
        locked(&self.open).by_number.remove(&number);
    }

    /// Cuts those that say nothing, or take no answers for so long.
    pub fn cut_overdue(&self, now_us: u64, timeout_us: u64) {
        for peer in locked(&self.open).by_number.values() {
            if peer.is_overdue(now_us, timeout_us) {
                peer.cut.notify_one();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_too_many_the_one_goes_that_has_made_no_call_and_then_the_one_that_was_idle_longest() {
        let peers = Peers::new(4);
        let called: Vec<Arc<Peer>> = (0..3).filter_map(|now_us| peers.admit(now_us)).collect();
        called.iter().for_each(|peer| peer.has_called.store(true, Relaxed));
        called[0].num_calls.store(1, Relaxed);
        for now_us in 3..5 {
            peers.admit(now_us).unwrap(); // the second instead of the first, who has not called either
        }
        let newest = peers.admit(5).unwrap();
        newest.has_called.store(true, Relaxed);
        peers.admit(6).unwrap().num_calls.store(1, Relaxed);
        let mut left: Vec<u64> = locked(&peers.open).by_number.keys().copied().collect();
        left.sort_unstable();
        assert_eq!(left, [0, 2, 5, 6]);
    }
}
