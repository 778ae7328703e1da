//! The queue of one model, and the batch that its device runs.

mod admission;
mod device;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::pace::Pace;
use crate::status::Status;
use admission::Packing;

#[derive(Clone, Debug)]
pub struct Limits {
    pub max_batch_size: usize,
    /// Images that wait.
    pub max_queue_size: usize,
    pub hang_timeout_us: u64,
}

/// A request that waits, or a part of it.
#[derive(Debug)]
struct Request<P> {
    payload: P,
    peer: u64,
    num_images: usize,
    num_taken: usize,
    arrived_us: u64,
    deadline_us: u64,
}

impl<P> Request<P> {
    fn num_waiting(&self) -> usize {
        self.num_images - self.num_taken
    }
}

/// The images `start` to `stop` of a request, as they lie in one batch.
#[derive(Debug)]
pub struct Part<P> {
    pub payload: P,
    pub start: usize,
    pub stop: usize,
    pub num_images: usize,
    pub arrived_us: u64,
}

impl<P> Part<P> {
    pub fn is_last(&self) -> bool {
        self.stop == self.num_images
    }
}

#[derive(Debug)]
pub struct Batch<P> {
    pub parts: Vec<Part<P>>,
    pub num_images: usize,
    pub began_us: u64,
}

/// What a device gets, and who has waited too long for it.
#[derive(Debug)]
pub struct Taken<P> {
    pub batch: Option<Arc<Batch<P>>>,
    pub expired: Vec<P>,
}

/// Requests come in by `submit`, leave by `take`, `cancel` or `expire`, and `finish` says how their batch went.
#[derive(Debug)]
pub struct Batching<P> {
    limits: Limits,
    pace: Pace,
    waiting: BTreeMap<u64, Request<P>>, // by their numbers: first in, first out
    num_waiting: usize,                 // images
    waiting_of_peer: HashMap<u64, usize>,
    /// Of what waits; None if it is to be counted anew.
    packing: Option<Packing>,
    running: Option<Arc<Batch<P>>>,
    next_number: u64,
    num_failed: usize, // batches in a row
    refusal: Option<Status>,
}

impl<P: Clone> Batching<P> {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            pace: Pace::default(),
            waiting: BTreeMap::new(),
            num_waiting: 0,
            waiting_of_peer: HashMap::new(),
            packing: None,
            running: None,
            next_number: 0,
            num_failed: 0,
            refusal: None,
        }
    }

    /// Images that no batch has taken yet.
    pub fn num_waiting(&self) -> usize {
        self.num_waiting
    }

    pub fn num_waiting_requests(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_idle(&self) -> bool {
        self.running.is_none()
    }

    /// As many images wait as one batch can hold.
    pub fn has_full_batch(&self) -> bool {
        self.num_waiting >= self.limits.max_batch_size
    }

    /// Whether nothing waits or runs.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.running.is_none()
    }

    /// Whether so many images go into one batch, which has taken no longer than this so far.
    pub fn is_quick(&self, num_images: usize, limit_us: u64) -> bool {
        let took_us = self.pace.line_us(num_images as f64) as u64;
        num_images <= self.limits.max_batch_size && (1..=limit_us).contains(&took_us)
    }

    /// Frees the place of a request whose client is gone, or has had its answer.
    pub fn cancel(&mut self, number: u64) {
        self.remove(number);
    }

    /// Removes those whose deadlines have passed; for times in which no batch is taken.
    pub fn expire(&mut self, now_us: u64) -> Vec<P> {
        let late = self.waiting.iter().filter(|(_, request)| now_us >= request.deadline_us);
        let numbers: Vec<u64> = late.map(|(&number, _)| number).collect();
        numbers.into_iter().filter_map(|number| self.remove(number)).map(|request| request.payload).collect()
    }

    /// From now on `submit` is answered so; what was admitted is still run.
    pub fn refuse(&mut self, reason: Status) {
        self.refusal = Some(reason);
    }

    /// Refuses what comes, and returns all that waits or runs, to be told the reason.
    pub fn abandon(&mut self, reason: Status) -> Vec<P> {
        self.refuse(reason);
        let running = self.running.iter().flat_map(|batch| &batch.parts);
        let mut all: Vec<P> = running.map(|part| part.payload.clone()).collect();
        all.extend(std::mem::take(&mut self.waiting).into_values().map(|request| request.payload));
        self.waiting_of_peer.clear();
        self.packing = None;
        self.num_waiting = 0;
        all
    }

    fn remove(&mut self, number: u64) -> Option<Request<P>> {
        let request = self.waiting.remove(&number)?;
        self.give_back(request.peer, request.num_waiting());
        self.packing = None;
        Some(request)
    }

    fn give_back(&mut self, peer: u64, num_images: usize) {
        self.num_waiting -= num_images;
        if let Some(held) = self.waiting_of_peer.get_mut(&peer) {
            *held -= num_images;
            if *held == 0 {
                self.waiting_of_peer.remove(&peer);
            }
        }
    }
}
