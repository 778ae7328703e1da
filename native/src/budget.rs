//! What all calls may hold of something together, and one connection of that. Whoever holds little finds room.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use crate::settings::Settings;
use crate::shared::locked;
use crate::status::Status;

const MAX_STREAMS: usize = 256;
const LITTLE_BYTES: usize = 64 << 10;
/// Of a request's largest cost: a photograph of a phone, or a PNG of 4 megapixels.
const LITTLE_COST: usize = 4;

/// A bound. A refusal is `WORD: <number> <noun>, ...`.
#[derive(Debug)]
pub struct Budget {
    pub limit: usize,
    /// At most so much for one connection.
    pub share: usize,
    /// The last quarter is for those who hold no more than this.
    pub little: usize,
    pub word: &'static str,
    pub noun: &'static str,
    pub cure: &'static str,
    /// Memory is short: only who holds little has room.
    is_tight: AtomicBool,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    total: usize,
    of_peer: HashMap<u64, usize>,
}

impl Budget {
    fn new(
        limit: usize,
        share: usize,
        little: usize,
        word: &'static str,
        noun: &'static str,
        cure: &'static str,
    ) -> Arc<Self> {
        let (is_tight, held) = Default::default();
        Arc::new(Self { limit, share, little, word, noun, cure, is_tight, held })
    }

    /// So much of it, until the hold is dropped.
    pub fn take(self: &Arc<Self>, peer: u64, amount: usize) -> Result<Hold, Status> {
        let mut hold = Hold { budget: self.clone(), peer, amount: 0 };
        hold.set(amount)?;
        Ok(hold)
    }

    /// Err where memory is short, and so much is more than a little.
    pub fn check_is_little(&self, amount: usize) -> Result<(), Status> {
        if amount > self.little && self.is_tight.load(Relaxed) {
            let unit = self.noun.split(' ').next().unwrap_or_default();
            let most = self.little;
            let what =
                format!("little memory is left, and {amount} {unit} exceed the {most} that are still taken at once");
            return Err(no_memory(what));
        }
        Ok(())
    }

    fn has_room(&self, total: usize, own: usize, amount: usize) -> bool {
        let (all, all_own) = (total + amount, own + amount);
        let is_within = all <= self.limit && all_own <= self.share;
        // Where nobody holds anything, the largest of requests is taken.
        total == 0 || (is_within && (4 * all <= 3 * self.limit || all_own <= self.little))
    }
}

#[derive(Debug)]
pub struct Hold {
    budget: Arc<Budget>,
    peer: u64,
    amount: usize,
}

impl Hold {
    /// Holds so much instead; of a refusal, as much as before.
    pub fn set(&mut self, amount: usize) -> Result<(), Status> {
        let budget = &*self.budget;
        let mut held = locked(&budget.held);
        let others = held.total - self.amount;
        let own = held.of_peer.get(&self.peer).map_or(0, |own| own - self.amount);
        if amount > self.amount {
            budget.check_is_little(own + amount)?;
        }
        if amount > self.amount && !budget.has_room(others, own, amount) {
            let Budget { limit, word, noun, cure, .. } = budget;
            let what = format!("{others} {noun}, {own} of this connection; {amount} more are too many of {limit}");
            return Err(Status::overloaded(word, what, cure));
        }
        held.total = others + amount;
        match own + amount {
            0 => held.of_peer.remove(&self.peer),
            own => held.of_peer.insert(self.peer, own),
        };
        self.amount = amount;
        Ok(())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let _ = self.set(0); // less is never refused
    }
}

fn no_memory(what: String) -> Status {
    Status::overloaded("MEMORY_SHORT", what, "try again later, or give the container more memory")
}

/// All of them.
#[derive(Debug)]
pub struct Budgets {
    /// Memory is so short that no call is taken.
    is_closed: AtomicBool,
    /// Calls whose message has come.
    pub calls: Arc<Budget>,
    /// Messages that are not whole, or not inflated.
    pub unread_bytes: Arc<Budget>,
    pub pictures: Arc<Budget>,
    pub picture_bytes: Arc<Budget>,
    /// What decoding takes, in pixels weighed by their format.
    pub picture_costs: Arc<Budget>,
    /// Health watchers and reflections. A health check is none of them and always has a place.
    pub streams: Arc<Budget>,
}

impl Budgets {
    pub fn new(settings: &Settings) -> Self {
        let (bytes, pictures) = (settings.max_encoded_bytes, settings.max_queue_size);
        let (calls, later) = (settings.max_concurrent_requests, "try again later");
        let bytes_share = settings.max_message_bytes.max(bytes / 2);
        Self {
            is_closed: AtomicBool::new(false),
            calls: Budget::new(calls, calls, 2, "TOO_MANY_CALLS", "calls are under way", later),
            unread_bytes: Budget::new(
                bytes,
                bytes_share,
                LITTLE_BYTES,
                "TOO_MANY_BYTES",
                "bytes of unread messages wait",
                later,
            ),
            pictures: Budget::new(
                pictures,
                settings.max_images_per_request.max(pictures / 2),
                16,
                "QUEUE_FULL",
                "pictures wait to be decoded",
                "try again later, or raise --max-queue-size",
            ),
            picture_bytes: Budget::new(bytes, bytes_share, LITTLE_BYTES, "QUEUE_FULL", "bytes of pictures wait", later),
            picture_costs: Budget::new(
                settings.max_waiting_picture_cost,
                settings.max_waiting_picture_cost / 4,
                settings.max_picture_cost / LITTLE_COST,
                "QUEUE_FULL",
                "pixels of pictures wait to be decoded",
                later,
            ),
            streams: Budget::new(
                MAX_STREAMS,
                MAX_STREAMS / 4,
                4,
                "TOO_MANY_STREAMS",
                "health watchers and reflections are open",
                "try again later, or check instead of watching",
            ),
        }
    }

    /// How short memory is: serving/container_memory.py's Pressure.
    pub fn set_pressure(&self, pressure: u8) {
        for budget in [&self.unread_bytes, &self.pictures, &self.picture_bytes, &self.picture_costs] {
            budget.is_tight.store(pressure >= 1, Relaxed);
        }
        self.is_closed.store(pressure >= 2, Relaxed);
    }

    /// Err where memory is short: what is small may be inflated to much.
    pub fn check_takes_compressed(&self) -> Result<(), Status> {
        if self.unread_bytes.is_tight.load(Relaxed) {
            return Err(no_memory("little memory is left, and nothing compressed is taken".into()));
        }
        Ok(())
    }

    /// Err where there is no memory left for any call.
    pub fn check_is_open(&self) -> Result<(), Status> {
        if self.is_closed.load(Relaxed) {
            return Err(no_memory("no memory is left for calls".into()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget() -> Arc<Budget> {
        Budget::new(100, 50, 5, "FULL", "things are there", "wait")
    }

    // fault: S55
    #[test]
    fn one_connection_has_its_share_and_whoever_holds_little_finds_room() {
        let budget = budget();
        let _greedy = budget.take(1, 50).unwrap();
        let refusal = budget.take(1, 1).unwrap_err();
        let expected = "FULL: 50 things are there, 50 of this connection; 1 more are too many of 100 (wait)";
        assert_eq!(refusal.message, expected);
        let _second = budget.take(2, 25).unwrap();
        assert!(budget.take(3, 6).is_err()); // the last quarter has begun
        let _modest: Vec<Hold> = (3..8).map(|peer| budget.take(peer, 5).unwrap()).collect();
        assert!(budget.take(9, 1).is_err());
    }

    // fault: S55
    #[test]
    fn where_memory_is_short_only_what_is_little_has_room() {
        let budget = budget();
        let before = budget.take(1, 40).unwrap();
        budget.is_tight.store(true, Relaxed);
        let refusal = budget.take(2, 6).unwrap_err();
        assert!(refusal.message.starts_with("MEMORY_SHORT: "), "{}", refusal.message);
        let _little = budget.take(2, 5).unwrap();
        drop(before); // what was taken before is kept, and given back
        assert_eq!(locked(&budget.held).total, 5);
    }

    #[test]
    fn alone_the_largest_is_taken_and_what_is_dropped_or_shrinks_is_free() {
        let budget = budget();
        let mut large = budget.take(1, 101).unwrap();
        assert!(budget.take(2, 1).is_err());
        large.set(10).unwrap();
        drop((budget.take(2, 50).unwrap(), large));
        let held = locked(&budget.held);
        assert_eq!((held.total, held.of_peer.len()), (0, 0));
    }
}
