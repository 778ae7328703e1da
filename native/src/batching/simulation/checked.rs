//! The queue of one engine beside a model of it, which is too slow to serve and too simple to be wrong: each call goes to
//! both, and they must agree.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::batching::simulation::ensure;
use crate::batching::{Batch, Batching, Limits};
use crate::status::Status;

pub type Checked<T> = Result<T, String>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Answered,
    Refused,
    Expired,
    Cancelled,
    Failed,
    GivenUp,
}

#[derive(Debug)]
pub struct Request {
    pub engine: usize,
    pub number: u64,
    pub peer: u64,
    pub num_images: usize,
    pub deadline_us: u64,
    /// Rule 3 says that it will be answered in time.
    pub is_promised: bool,
    pub num_taken: usize,
    pub num_run: usize,
    pub end: Option<End>,
}

impl Request {
    fn num_waiting(&self) -> usize {
        self.num_images - self.num_taken
    }

    /// The first end is what the client hears; with a batch that fails or is given up come others.
    fn settle(&mut self, end: End, now_us: u64) -> Checked<()> {
        if self.end.is_none() {
            let is_late = end == End::Expired || (end == End::Answered && now_us > self.deadline_us);
            ensure!(!(self.is_promised && is_late), "promised to be in time, but {end:?} at {now_us}: {self:?}");
            self.end = Some(end);
        }
        Ok(())
    }
}

/// A request, and its images from where to where.
type Part = (usize, usize, usize);

pub struct CheckedBatching {
    pub core: Batching<usize>,
    limits: Limits,
    waiting: Vec<usize>,
    running: Option<(Vec<Part>, u64)>,
    refusal: Option<Status>,
    is_abandoned: bool,
    pub num_failed: usize,
    pub finished_us: u64,
}

impl CheckedBatching {
    pub fn new(core: Batching<usize>, limits: Limits, finished_us: u64) -> Self {
        let (waiting, running, refusal) = (Vec::new(), None, None);
        Self { core, limits, waiting, running, refusal, is_abandoned: false, num_failed: 0, finished_us }
    }

    pub fn is_idle(&self) -> bool {
        self.running.is_none()
    }

    pub fn is_empty(&self) -> bool {
        self.is_idle() && self.waiting.is_empty()
    }

    pub fn num_waiting(&self, all: &[Request]) -> usize {
        self.waiting.iter().map(|&id| all[id].num_waiting()).sum()
    }

    pub fn submit(&mut self, id: usize, all: &mut [Request], now_us: u64) -> Checked<Result<(), Status>> {
        let request = &all[id];
        let (num_images, deadline_us, peer) = (request.num_images, request.deadline_us, request.peer);
        let is_full = !self.has_room(request, all);
        let result = self.core.submit(id, num_images, deadline_us, peer, now_us);
        let word = result.as_ref().err().map(|status| status.message.split(':').next().unwrap_or_default());
        let expected = match &self.refusal {
            Some(reason) => reason.message.split(':').next(),
            None if now_us >= deadline_us => Some("EXPIRED"),
            None if is_full => Some("QUEUE_FULL"),
            None => word.filter(|&word| word == "DEADLINE_TOO_SHORT" && !self.is_empty()),
        };
        ensure!(word == expected, "submitted {id}: {result:?}, expected {expected:?}");
        if let Err(status) = result {
            all[id].settle(End::Refused, now_us)?;
            return Ok(Err(status));
        }
        all[id].number = result.unwrap_or_default();
        self.waiting.push(id);
        Ok(Ok(()))
    }

    fn has_room(&self, request: &Request, all: &[Request]) -> bool {
        let limit = self.limits.max_queue_size;
        let after = self.num_waiting(all) + request.num_images;
        let mut peers: Vec<u64> = self.waiting.iter().map(|&id| all[id].peer).collect();
        peers.sort_unstable();
        peers.dedup();
        let of_peer = self.waiting.iter().map(|&id| &all[id]).filter(|other| other.peer == request.peer);
        let held: usize = of_peer.map(Request::num_waiting).sum();
        let is_greedy = held > 0 && held + request.num_images > limit / 4 / peers.len().max(1);
        after <= limit && !(4 * after > 3 * limit && is_greedy)
    }

    pub fn take(&mut self, all: &mut [Request], now_us: u64) -> Checked<Option<Arc<Batch<usize>>>> {
        let was_idle = self.is_idle();
        let taken = self.core.take(now_us);
        for &id in &taken.expired {
            ensure!(was_idle && self.waiting.contains(&id), "{id} expired, and did not wait");
            let may_be_dropped = now_us >= all[id].deadline_us || self.waiting.len() > 1;
            ensure!(may_be_dropped, "{id} was dropped before its deadline, and nobody else waited");
            self.waiting.retain(|&other| other != id);
            all[id].settle(End::Expired, now_us)?;
        }
        let expected = if was_idle { self.next_batch(all) } else { Vec::new() };
        let parts: Vec<Part> = taken.batch.iter().flat_map(|batch| &batch.parts).map(key).collect();
        ensure!(parts == expected, "took {parts:?}, expected {expected:?}");
        let Some(batch) = taken.batch else { return Ok(None) };
        let num_images: usize = parts.iter().map(|(_, start, stop)| stop - start).sum();
        let size = self.limits.max_batch_size;
        ensure!(num_images == batch.num_images && num_images <= size, "a batch of {num_images} in {size}: {batch:?}");
        for &(id, start, stop) in &parts {
            let request = &mut all[id];
            ensure!(request.end.is_none() && now_us < request.deadline_us, "took {request:?}");
            ensure!(start == request.num_taken, "took {start} to {stop} of {request:?}");
            request.num_taken = stop;
        }
        self.waiting.retain(|&id| all[id].num_waiting() > 0);
        self.running = Some((parts, now_us));
        Ok(Some(batch))
    }

    /// Whole requests in their order, as many as fit; one that is larger than any batch is split.
    fn next_batch(&self, all: &[Request]) -> Vec<Part> {
        let (mut parts, mut room) = (Vec::new(), self.limits.max_batch_size);
        for (id, request) in self.waiting.iter().map(|&id| (id, &all[id])) {
            let is_large = request.num_images > self.limits.max_batch_size;
            if room == 0 || (!parts.is_empty() && request.num_waiting() > room && !is_large) {
                break;
            }
            let count = request.num_waiting().min(room);
            parts.push((id, request.num_taken, request.num_taken + count));
            room -= count;
        }
        parts
    }

    /// Some(reason) if the device is to be given up.
    pub fn finish(
        &mut self,
        batch: &Batch<usize>,
        is_ok: bool,
        all: &mut [Request],
        now_us: u64,
    ) -> Checked<Option<Status>> {
        let given_up = self.core.finish(is_ok, now_us);
        let parts: Vec<Part> = batch.parts.iter().map(key).collect();
        let running = self.running.take();
        ensure!(running.as_ref().is_some_and(|(expected, _)| *expected == parts), "{parts:?} ran, not {running:?}");
        for (part, &(id, start, stop)) in batch.parts.iter().zip(&parts) {
            let request = &mut all[id];
            ensure!(start == request.num_run, "ran {start} to {stop} of {request:?}");
            request.num_run = stop;
            ensure!(part.is_last() == (stop == request.num_images), "{part:?} of {request:?}");
            match is_ok {
                true if part.is_last() => request.settle(End::Answered, now_us)?,
                true => {}
                false => request.settle(End::Failed, now_us)?,
            }
        }
        self.waiting.retain(|&id| is_ok || all[id].num_taken == 0); // the rest of one that has failed
        self.num_failed = if is_ok { 0 } else { self.num_failed + 1 };
        self.finished_us = now_us;
        ensure!(given_up.is_some() == (self.num_failed == 3), "{given_up:?} behind {} failures", self.num_failed);
        Ok(given_up)
    }

    /// The call of a request is over, however that came.
    pub fn leave(&mut self, id: usize, all: &mut [Request], now_us: u64) -> Checked<()> {
        self.core.cancel(all[id].number);
        self.waiting.retain(|&other| other != id);
        all[id].settle(End::Cancelled, now_us)
    }

    /// Some(reason) if the device hangs.
    pub fn tick(&mut self, all: &mut [Request], now_us: u64) -> Checked<Option<Status>> {
        let is_late = |id: &usize| now_us >= all[*id].deadline_us;
        let late: Vec<usize> = self.waiting.iter().copied().filter(is_late).collect();
        let expired = self.core.expire(now_us);
        ensure!(expired == late, "expired {expired:?}, expected {late:?}");
        self.waiting.retain(|id| !late.contains(id));
        for id in late {
            all[id].settle(End::Expired, now_us)?;
        }
        let hang = self.core.hang(now_us);
        let hangs = self.running.as_ref().is_some_and(|(_, began_us)| now_us - began_us > self.limits.hang_timeout_us);
        ensure!(hang.is_some() == hangs, "{hang:?} of {:?}", self.running);
        Ok(hang)
    }

    pub fn refuse(&mut self, reason: Status) {
        self.core.refuse(reason.clone());
        self.refusal = Some(reason);
    }

    pub fn abandon(&mut self, reason: &Status, all: &mut [Request], now_us: u64) -> Checked<()> {
        let told = self.core.abandon(reason.clone());
        let running = self.running.iter().flat_map(|(parts, _)| parts).map(|(id, ..)| *id);
        let expected: Vec<usize> = running.chain(std::mem::take(&mut self.waiting)).collect();
        ensure!(told == expected, "told {told:?}, expected {expected:?}");
        (self.refusal, self.is_abandoned) = (Some(reason.clone()), true);
        told.into_iter().try_for_each(|id| all[id].settle(End::GivenUp, now_us))
    }

    /// What must hold between any two events.
    pub fn check(&self, all: &[Request]) -> Checked<()> {
        let (num_images, num_requests) = (self.num_waiting(all), self.waiting.len());
        let counted = (self.core.num_waiting(), self.core.num_waiting_requests());
        ensure!(counted == (num_images, num_requests), "counts {counted:?}, and {num_images} of {:?}", self.waiting);
        ensure!(num_images <= self.limits.max_queue_size, "{num_images} images wait");
        ensure!(self.core.is_idle() == self.is_idle(), "idle: {}", self.core.is_idle());
        ensure!(self.core.is_empty() == self.is_empty(), "empty: {}", self.core.is_empty());
        let is_full = num_images >= self.limits.max_batch_size;
        ensure!(self.core.has_full_batch() == is_full, "{num_images} images are a full batch: {}", !is_full);
        Ok(())
    }
}

fn key(part: &crate::batching::queue::Part<usize>) -> Part {
    (part.payload, part.start, part.stop)
}
