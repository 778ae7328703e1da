//! What the device gets, how it went, and when the device is given up.

use std::sync::Arc;

use super::{Batch, Batching, Part, Request, Taken};
use crate::status::{RETRY, Status};

/// In a row: one may be its images' fault, or want of memory that is free again at the next.
const MAX_FAILED_BATCHES: usize = 3;

impl<P: Clone> Batching<P> {
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
            self.packing = None;
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

    /// Whether a request's deadline passes before a batch of so many images ends. The last that waits and still has time
    /// is never dropped for an estimate: only running it tells.
    fn is_late(&self, request: &Request<P>, num_images: usize, now_us: u64) -> bool {
        let ends_us = now_us + self.pace.batch_us(num_images, now_us) + self.pace.margin_us();
        let has_others = || self.waiting.values().filter(|other| now_us < other.deadline_us).nth(1).is_some();
        now_us >= request.deadline_us || (ends_us >= request.deadline_us && has_others())
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
        self.remove_begun();
        let what = format!("{MAX_FAILED_BATCHES} batches in a row failed");
        (self.num_failed == MAX_FAILED_BATCHES).then(|| Status::unavailable("BACKEND_BROKEN", what, RETRY))
    }

    /// Of a request that has failed nothing more is run: its rest, if it has one, is first in the queue.
    pub fn remove_begun(&mut self) {
        let first = self.waiting.first_key_value().filter(|(_, request)| request.num_taken > 0);
        if let Some((&number, _)) = first {
            self.remove(number);
        }
    }

    /// Some(reason) where a batch runs for longer than a device may take.
    pub fn hang(&self, now_us: u64) -> Option<Status> {
        let limit_us = self.limits.hang_timeout_us;
        let hangs = |batch: &Arc<Batch<P>>| now_us.saturating_sub(batch.began_us) > limit_us;
        let what = format!("a batch ran longer than {} s", limit_us as f64 / 1e6);
        self.running.as_ref().is_some_and(hangs).then(|| Status::unavailable("BACKEND_HUNG", what, RETRY))
    }
}
