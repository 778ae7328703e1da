//! Calls of which the headers have come and the message has not: of too many, the oldest ends.
//!
//! Waiting costs a stranger nothing, and so those whose message is on its way are to have room.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use crate::engine::locked;

#[derive(Debug)]
pub struct Waiting {
    pub limit: usize,
    places: Mutex<Places>,
}

#[derive(Debug, Default)]
struct Places {
    next_number: u64,
    by_age: BTreeMap<u64, Arc<Notify>>,
}

impl Waiting {
    pub fn new(limit: usize) -> Self {
        Self { limit, places: Mutex::default() }
    }

    /// A place, which may cost another call its own.
    pub fn enter(&self) -> Place<'_> {
        let mut places = locked(&self.places);
        if places.by_age.len() >= self.limit
            && let Some((_, oldest)) = places.by_age.pop_first()
        {
            oldest.notify_one();
        }
        let (number, end) = (places.next_number, Arc::new(Notify::new()));
        places.next_number += 1;
        places.by_age.insert(number, end.clone());
        Place { waiting: self, number, end }
    }
}

pub struct Place<'a> {
    waiting: &'a Waiting,
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
        locked(&self.waiting.places).by_age.remove(&self.number);
    }
}
