//! The queue of one model, and the batch that its device runs.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::pace::Pace;
use crate::status::{RETRY, Status};

/// In a row: one may be its images' fault, or want of memory that is free again at the next.
const MAX_FAILED_BATCHES: usize = 3;
/// For the answer's way back to the client, and for what the pace does not see: this, and a part of the time that is left,
/// for a client's clock began before ours. A device that is busy loses nothing by it: the queue is only a little shorter.
const MARGIN_US: u64 = 1_000;
const MARGIN_SHARE: u64 = 8;

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

    /// Admits a request, or says why not; the number is for `cancel`.
    pub fn submit(
        &mut self,
        payload: P,
        num_images: usize,
        deadline_us: u64,
        peer: u64,
        now_us: u64,
    ) -> Result<u64, Status> {
        self.check(num_images, deadline_us, peer, now_us)?;
        let number = self.next_number;
        self.next_number += 1;
        self.num_waiting += num_images;
        *self.waiting_of_peer.entry(peer).or_default() += num_images;
        let request = Request { payload, peer, num_images, num_taken: 0, arrived_us: now_us, deadline_us };
        self.waiting.insert(number, request);
        Ok(number)
    }

    /// Whether a request would be admitted now.
    pub fn check(&self, num_images: usize, deadline_us: u64, peer: u64, now_us: u64) -> Result<(), Status> {
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        if now_us >= deadline_us {
            return Err(Status::expired("EXPIRED", "the deadline had passed on arrival"));
        }
        self.check_room(num_images, peer)?;
        self.check_time(num_images, deadline_us, now_us)
    }

    fn check_room(&self, num_images: usize, peer: u64) -> Result<(), Status> {
        let (waiting, limit) = (self.num_waiting, self.limits.max_queue_size);
        let cure = "try again later, or raise --max-queue-size";
        if waiting + num_images > limit {
            let what = format!("{waiting} images wait and {num_images} more would exceed {limit}");
            return Err(Status::overloaded("QUEUE_FULL", what, cure));
        }
        // The last quarter is for those who hold little: whoever comes new finds room there.
        let of_peer = self.waiting_of_peer.get(&peer).copied().unwrap_or(0);
        let share = limit / 4 / self.waiting_of_peer.len().max(1);
        if 4 * (waiting + num_images) > 3 * limit && of_peer > 0 && of_peer + num_images > share {
            let what =
                format!("{waiting} images wait, {of_peer} of this connection, and {num_images} more are too many");
            return Err(Status::overloaded("QUEUE_FULL", what, cure));
        }
        Ok(())
    }

    /// Admission by completion: the batch must be able to end before the deadline.
    fn check_time(&self, num_images: usize, deadline_us: u64, now_us: u64) -> Result<(), Status> {
        if self.is_empty() {
            return Ok(()); // whatever was measured: only running it tells anew
        }
        let margin_us = MARGIN_US + self.pace.margin_us() + (deadline_us - now_us) / MARGIN_SHARE;
        let expected_us = self.end_of_queue_us(num_images, now_us) + margin_us;
        if now_us + expected_us <= deadline_us {
            return Ok(());
        }
        let (left, expected) = ((deadline_us - now_us) as f64 / 1e3, expected_us as f64 / 1e3);
        let what = format!("{left:.0} ms are left, the queue alone takes about {expected:.0} ms");
        Err(Status::overloaded("DEADLINE_TOO_SHORT", what, "try again later, or allow more time"))
    }

    /// How long it takes until so many more images would have been run: what runs, what waits, and they themselves.
    fn end_of_queue_us(&self, num_images: usize, now_us: u64) -> u64 {
        let left_of = |batch: &Arc<Batch<P>>| {
            let ends_us = batch.began_us + self.pace.batch_us(batch.num_images, now_us);
            ends_us.saturating_sub(now_us)
        };
        let rest_us: u64 = self.running.as_ref().map_or(0, left_of);
        let (total, size) = (self.num_waiting + num_images, self.limits.max_batch_size);
        let full_us = (total / size) as u64 * self.pace.batch_us(size, now_us);
        let last_us = if total % size == 0 { 0 } else { self.pace.batch_us(total % size, now_us) };
        rest_us + full_us + last_us
    }

    /// The next batch, if the device is free and anything waits.
    ///
    /// A request goes into one batch whole, unless it is larger than any batch. What cannot end in time is dropped.
    pub fn take(&mut self, now_us: u64) -> Taken<P> {
        let mut taken = Taken { batch: None, expired: Vec::new() };
        if self.running.is_some() {
            return taken;
        }
        let size = self.limits.max_batch_size;
        let (mut parts, mut num_images) = (Vec::new(), 0);
        while num_images < size {
            let Some((&number, first)) = self.waiting.first_key_value() else { break };
            let room = size - num_images;
            let count = first.num_waiting().min(room);
            if self.is_late(first, num_images + count, now_us) {
                taken.expired.extend(self.remove(number).map(|request| request.payload));
                continue;
            }
            if num_images > 0 && first.num_waiting() > room && first.num_images <= size {
                break;
            }
            parts.extend(self.take_part(number, count));
            num_images += count;
        }
        if num_images > 0 {
            let batch = Arc::new(Batch { parts, num_images, began_us: now_us });
            self.running = Some(batch.clone());
            taken.batch = Some(batch);
        }
        taken
    }

    /// A batch that was never queued, to measure the pace with.
    pub fn rehearse(&mut self, payload: P, num_images: usize, now_us: u64) -> Arc<Batch<P>> {
        let part = Part { payload, start: 0, stop: num_images, num_images, arrived_us: now_us };
        let batch = Arc::new(Batch { parts: vec![part], num_images, began_us: now_us });
        self.running = Some(batch.clone());
        batch
    }

    /// Whether a request's deadline passes before a batch of so many images ends. One that has begun goes on.
    fn is_late(&self, request: &Request<P>, num_images: usize, now_us: u64) -> bool {
        let others = self.waiting.len() > 1;
        let needed_us = if others { self.pace.batch_us(num_images, now_us) + self.pace.margin_us() } else { 0 };
        now_us + needed_us >= request.deadline_us
    }

    fn take_part(&mut self, number: u64, count: usize) -> Option<Part<P>> {
        let request = self.waiting.get_mut(&number)?;
        let start = request.num_taken;
        request.num_taken += count;
        let (num_images, arrived_us, peer) = (request.num_images, request.arrived_us, request.peer);
        let payload = request.payload.clone();
        let is_last = request.num_taken == num_images;
        self.give_back(peer, count);
        if is_last {
            self.waiting.remove(&number);
        }
        Some(Part { payload, start, stop: start + count, num_images, arrived_us })
    }

    /// A batch has run. Some(reason) where the device is to be given up.
    pub fn finish(&mut self, is_ok: bool, now_us: u64) -> Option<Status> {
        let batch = self.running.take()?;
        if is_ok {
            self.pace.observe(batch.num_images, now_us - batch.began_us, now_us);
            self.num_failed = 0;
            return None;
        }
        self.num_failed += 1;
        let what = format!("{MAX_FAILED_BATCHES} batches in a row failed");
        (self.num_failed == MAX_FAILED_BATCHES).then(|| Status::unavailable("BACKEND_BROKEN", what, RETRY))
    }

    /// Some(reason) where a batch runs for longer than a device may take.
    pub fn hang(&self, now_us: u64) -> Option<Status> {
        let limit_us = self.limits.hang_timeout_us;
        let hangs = |batch: &Arc<Batch<P>>| now_us.saturating_sub(batch.began_us) > limit_us;
        let what = format!("a batch ran longer than {} s", limit_us as f64 / 1e6);
        self.running.as_ref().is_some_and(hangs).then(|| Status::unavailable("BACKEND_HUNG", what, RETRY))
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
        self.num_waiting = 0;
        all
    }

    fn remove(&mut self, number: u64) -> Option<Request<P>> {
        let request = self.waiting.remove(&number)?;
        self.give_back(request.peer, request.num_waiting());
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
