//! Calls of which the headers have come and the message has not. Waiting costs a stranger nothing: so of too many, one
//! ends, the oldest of the connection that has the most, and those whose messages are on their way have room.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use crate::shared::locked;

#[derive(Debug)]
pub struct Waiting {
    pub limit: usize,
    places: Mutex<Places>,
}

/// The places of each connection, by their age.
#[derive(Debug, Default)]
struct Places {
    next_number: u64,
    num_taken: usize,
    of_peer: HashMap<u64, BTreeMap<u64, Arc<Notify>>>,
}

impl Waiting {
    pub fn new(limit: usize) -> Self {
        Self { limit, places: Mutex::default() }
    }

    /// A place, which may cost another call its own.
    pub fn enter(&self, peer: u64) -> Place<'_> {
        let mut places = locked(&self.places);
        if places.num_taken >= self.limit {
            places.free_one(peer, self.limit);
        }
        let (number, end) = (places.next_number, Arc::new(Notify::new()));
        places.next_number += 1;
        places.num_taken += 1;
        places.of_peer.entry(peer).or_default().insert(number, end.clone());
        Place { waiting: self, peer, number, end }
    }
}

impl Places {
    /// Who asks for more than his share pays for it himself, which is also found without looking at all others.
    fn free_one(&mut self, peer: u64, limit: usize) {
        let share = limit / self.of_peer.len().max(1);
        let own = self.of_peer.get(&peer).map_or(0, BTreeMap::len);
        let largest = || self.of_peer.iter().max_by_key(|(_, places)| places.len()).map(|(&peer, _)| peer);
        let pays = if own > 0 && own >= share { Some(peer) } else { largest() };
        let oldest = pays.and_then(|pays| Some((pays, *self.of_peer.get(&pays)?.first_key_value()?.0)));
        if let Some((pays, number)) = oldest
            && let Some(end) = self.leave(pays, number)
        {
            end.notify_one();
        }
    }

    fn leave(&mut self, peer: u64, number: u64) -> Option<Arc<Notify>> {
        let places = self.of_peer.get_mut(&peer)?;
        let end = places.remove(&number)?;
        self.num_taken -= 1;
        if places.is_empty() {
            self.of_peer.remove(&peer);
        }
        Some(end)
    }
}

pub struct Place<'a> {
    waiting: &'a Waiting,
    peer: u64,
    number: u64,
    end: Arc<Notify>,
}

impl Place<'_> {
    /// Another call has it now.
    pub async fn is_taken(&self) {
        self.end.notified().await;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        locked(&self.waiting.places).leave(self.peer, self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn num_of(waiting: &Waiting, peer: u64) -> usize {
        locked(&waiting.places).of_peer.get(&peer).map_or(0, BTreeMap::len)
    }

    #[test]
    fn a_connection_that_asks_for_too_many_pays_for_them_and_a_modest_one_keeps_its_place() {
        let waiting = Waiting::new(10);
        let _modest = waiting.enter(1);
        let _greedy: Vec<Place<'_>> = (0..50).map(|_| waiting.enter(2)).collect();
        assert_eq!((num_of(&waiting, 1), num_of(&waiting, 2)), (1, 9));
        let _newcomer = waiting.enter(3);
        assert_eq!((num_of(&waiting, 1), num_of(&waiting, 2), num_of(&waiting, 3)), (1, 8, 1));
    }

    #[test]
    fn places_that_are_left_are_free() {
        let waiting = Waiting::new(2);
        drop((waiting.enter(1), waiting.enter(1), waiting.enter(1)));
        assert_eq!(locked(&waiting.places).num_taken, 0);
    }
}
