//! All connections: as many as may be, and cut where they take too long.

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

/// What of idle connections is least goes first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Worth {
    has_answer: bool,
    has_called: bool,
    last_use_us: u64,
    number: u64,
}

impl Worth {
    fn of(peer: &Arc<Peer>) -> Self {
        Self {
            has_answer: peer.has_answer.load(Relaxed),
            has_called: peer.has_called.load(Relaxed),
            last_use_us: peer.last_use_us.load(Relaxed),
            number: peer.number,
        }
    }
}

impl Peers {
    pub fn new(limit: usize) -> Self {
        Self { limit, open: Mutex::default() }
    }

    pub fn is_empty(&self) -> bool {
        locked(&self.open).by_number.is_empty()
    }

    /// A new one. Of too many, the one goes that has been idle for longest, those that have had no answer or made no
    /// call before others, and a few of them at once: looking for them takes time. None where none is idle.
    pub fn admit(&self, now_us: u64) -> Option<Arc<Peer>> {
        let mut open = locked(&self.open);
        if open.by_number.len() >= self.limit {
            let idle = open.by_number.values().filter(|peer| peer.is_idle()).map(Worth::of);
            let (friends, mut strangers): (Vec<_>, Vec<_>) = idle.partition(|worth| worth.has_answer);
            strangers.sort_unstable();
            strangers.truncate((self.limit / 32).max(1));
            let going = if strangers.is_empty() { vec![friends.into_iter().min()?] } else { strangers };
            for peer in going.iter().filter_map(|worth| open.by_number.remove(&worth.number)) {
                peer.cut.notify_one();
            }
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

    #[test]
    fn strangers_go_before_those_that_have_an_answer_and_a_few_at_once() {
        let peers = Peers::new(64);
        let honest = peers.admit(0).unwrap();
        honest.has_answer.store(true, Relaxed);
        for now_us in 1..1000 {
            peers.admit(now_us).unwrap().has_called.store(true, Relaxed);
        }
        let open = locked(&peers.open);
        assert!(open.by_number.contains_key(&honest.number));
        assert!((63..=64).contains(&open.by_number.len()));
    }
}
