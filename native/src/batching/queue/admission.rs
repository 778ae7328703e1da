//! Who is admitted: there must be room, and time.

use std::sync::Arc;

use super::{Batch, Batching, Request};
use crate::status::Status;

/// For the answer's way back to the client, and for what the pace does not see: this, and a part of the time that is left,
/// for a client's clock began before ours. A device that is busy loses nothing by it: the queue is only a little shorter.
const MARGIN_US: u64 = 1_000;
const MARGIN_SHARE: u64 = 8;
/// Of the time that is left, so many eighths more are for those who hold no more of the queue than others.
const MODEST_EIGHTHS: u64 = 2;

impl<P: Clone> Batching<P> {
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
        let size = self.limits.max_batch_size;
        self.packing().add(num_images, num_images, size);
        let number = self.next_number;
        self.next_number += 1;
        self.num_waiting += num_images;
        *self.waiting_of_peer.entry(peer).or_default() += num_images;
        let request = Request { payload, peer, num_images, num_taken: 0, arrived_us: now_us, deadline_us };
        self.waiting.insert(number, request);
        Ok(number)
    }

    /// Whether a request would be admitted now.
    pub fn check(&mut self, num_images: usize, deadline_us: u64, peer: u64, now_us: u64) -> Result<(), Status> {
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        if now_us >= deadline_us {
            return Err(Status::expired("EXPIRED", "the deadline had passed on arrival"));
        }
        self.check_room(num_images, peer)?;
        self.check_time(num_images, deadline_us, peer, now_us)
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
    fn check_time(&mut self, num_images: usize, deadline_us: u64, peer: u64, now_us: u64) -> Result<(), Status> {
        if self.is_empty() {
            return Ok(()); // whatever was measured: only running it tells anew
        }
        let eighths = if self.is_greedy(num_images, peer) { 1 + MODEST_EIGHTHS } else { 1 };
        let margin_us = MARGIN_US + self.pace.margin_us() + (deadline_us - now_us) * eighths / MARGIN_SHARE;
        let expected_us = self.end_of_queue_us(num_images, now_us) + margin_us;
        if now_us + expected_us <= deadline_us {
            return Ok(());
        }
        let (left, expected) = ((deadline_us - now_us) as f64 / 1e3, expected_us as f64 / 1e3);
        let what = format!("{left:.0} ms are left, and its answer may take {expected:.0} ms");
        Err(Status::overloaded("DEADLINE_TOO_SHORT", what, "try again later, or allow more time"))
    }

    /// Whether a connection would hold more of the queue than those that wait do in the mean.
    fn is_greedy(&self, num_images: usize, peer: u64) -> bool {
        let of_peer = self.waiting_of_peer.get(&peer).copied().unwrap_or(0);
        of_peer > 0 && (of_peer + num_images) * self.waiting_of_peer.len() > self.num_waiting + num_images
    }

    /// How long it takes until so many more images would have been run: what runs, what waits, and their own batch,
    /// which those that come later may fill.
    fn end_of_queue_us(&mut self, num_images: usize, now_us: u64) -> u64 {
        let left_of = |batch: &Arc<Batch<P>>| {
            let ends_us = batch.began_us + self.pace.batch_us(batch.num_images, now_us);
            ends_us.saturating_sub(now_us)
        };
        let rest_us: u64 = self.running.as_ref().map_or(0, left_of);
        let mut packing = *self.packing();
        packing.add(num_images, num_images, self.limits.max_batch_size);
        let num_images = self.num_waiting + num_images + packing.room;
        rest_us + self.pace.batches_us(packing.num_batches, num_images, now_us)
    }

    fn packing(&mut self) -> &mut Packing {
        let size = self.limits.max_batch_size;
        self.packing.get_or_insert_with(|| {
            let mut packing = Packing::default();
            self.waiting.values().for_each(|request| packing.add(request.num_waiting(), request.num_images, size));
            packing
        })
    }
}

/// How many batches the waiting requests will be: they are not split, so these are more than their images would fill.
#[derive(Clone, Copy, Debug, Default)]
pub struct Packing {
    pub num_batches: usize,
    /// Images for which the last batch has room.
    pub room: usize,
}

impl Packing {
    /// Adds a request of `num_images`, of which some wait, as `take` does: whole, unless it is larger than any batch.
    pub fn add(&mut self, num_waiting: usize, num_images: usize, max_batch_size: usize) {
        let is_split = num_images > max_batch_size;
        let here = if num_waiting <= self.room || is_split { num_waiting.min(self.room) } else { 0 };
        self.room -= here;
        let rest = num_waiting - here;
        if rest > 0 {
            let num_more = rest.div_ceil(max_batch_size);
            self.num_batches += num_more;
            self.room = num_more * max_batch_size - rest;
        }
    }
}
