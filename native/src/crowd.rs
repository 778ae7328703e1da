//! Connections that push: they send many frames that are no calls, or make many calls in vain.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use crate::connection::Peer;
use crate::shared::locked;
use crate::turns::Turns;

/// Connections that are read slowly; of more, one is cut.
const MAX_PUSHING: usize = 128;

/// What all connections share.
#[derive(Debug, Default)]
pub struct Crowd {
    pub turns: Arc<Turns>,
    pushing: Mutex<BTreeMap<Rank, Arc<Peer>>>,
}

/// Whether it has had an answer, and its number.
pub type Rank = (bool, u64);

impl Crowd {
    /// Counts it until it leaves. Of too many, the oldest is cut, one without an answer before others: who makes new
    /// connections all the time would fill the server with those that are read slowly.
    pub fn enter(&self, peer: &Arc<Peer>) -> Rank {
        let rank = (peer.has_answer.load(Relaxed), peer.number);
        let mut pushing = locked(&self.pushing);
        pushing.insert(rank, peer.clone());
        if pushing.len() > MAX_PUSHING
            && let Some((_, oldest)) = pushing.pop_first()
        {
            oldest.cut.notify_one();
        }
        rank
    }

    pub fn leave(&self, rank: Rank) {
        locked(&self.pushing).remove(&rank);
    }

    pub fn num_pushing(&self) -> usize {
        locked(&self.pushing).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_too_many_that_push_the_oldest_goes_and_one_without_an_answer_first() {
        let crowd = Crowd::default();
        let peers: Vec<_> = (0..=MAX_PUSHING as u64).map(|number| Arc::new(Peer::new(number, 0))).collect();
        peers[0].has_answer.store(true, Relaxed);
        let ranks: Vec<_> = peers.iter().map(|peer| crowd.enter(peer)).collect();
        peers[1].cut.notified().await;
        assert_eq!(crowd.num_pushing(), MAX_PUSHING);
        ranks.into_iter().for_each(|rank| crowd.leave(rank));
        assert_eq!(crowd.num_pushing(), 0);
    }
}
