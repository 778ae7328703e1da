//! What engine.rs does with its queue, without its threads.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::checked::{Checked, CheckedBatching, Request};
use super::ensure;
use super::life::{BEGIN_US, Event, Life};
use crate::batching::{Batch, Batching};
use crate::status::Status;

/// Long before the pace is believed less.
const RECENT_US: u64 = 400_000;
const MAX_INLINE_US: u64 = 1_000;

pub struct Engine {
    pub queue: CheckedBatching,
    pub batch: Option<(Arc<Batch<usize>>, bool)>,
    pub is_woken: bool,
    pub is_closed: bool,
}

impl Life {
    /// Measures its pace, as engine.rs does before it serves.
    pub fn start_engine(&mut self) {
        let limits = self.scenario.limits.clone();
        let size = limits.max_batch_size;
        let mut core = Batching::new(limits.clone());
        for num_images in [1, size.div_ceil(2), size] {
            core.rehearse(usize::MAX, num_images, self.now_us - self.scenario.batch_us(num_images));
            core.finish(true, self.now_us);
        }
        let queue = CheckedBatching::new(core, limits, self.now_us);
        self.engines.push(Engine { queue, batch: None, is_woken: false, is_closed: false });
    }

    /// As Engine::admit.
    pub fn arrive(&mut self) -> Checked<()> {
        let (id, engine, now_us) = (self.all.len(), self.engines.len() - 1, self.now_us);
        let deadline_us = self.scenario.deadline_us(now_us, &mut self.random);
        let num_images = self.random.index(1, self.scenario.max_images);
        let peer = self.random.between(1, self.scenario.num_peers);
        let queue = &mut self.engines[engine].queue;
        let is_promised = self.scenario.is_calm && !queue.is_empty() && now_us - queue.finished_us <= RECENT_US;
        let (number, num_taken, num_run, end) = (u64::MAX, 0, 0, None);
        let request = Request { engine, number, peer, num_images, deadline_us, is_promised, num_taken, num_run, end };
        self.all.push(request);
        let result = queue.submit(id, &mut self.all, now_us)?;
        self.note(|| format!("submitted {id}, {num_images} images until {}: {result:?}", deadline_us - BEGIN_US));
        if let Err(status) = result {
            return self.check_refusal(&status, engine, num_images, deadline_us);
        }
        ensure!(!self.is_draining, "admitted in a drain");
        self.open.push(id);
        self.may_leave(id);
        let is_quick = self.engines[engine].queue.core.is_quick(num_images, MAX_INLINE_US);
        if self.open.len() == 1 && is_quick && self.random.is_one_in(2) {
            return self.run_here(engine);
        }
        self.wake(engine);
        Ok(())
    }

    /// Whoever has plenty of time is not told that he has too little.
    fn check_refusal(&self, status: &Status, engine: usize, num_images: usize, deadline_us: u64) -> Checked<()> {
        let size = self.scenario.limits.max_batch_size;
        let num_ahead = self.engines[engine].queue.num_waiting(&self.all) + num_images + 2 * size;
        let plenty_us = 4 * num_ahead as u64 * self.scenario.batch_us(1) + 4 * self.scenario.batch_us(size) + 5_000;
        let is_hasty = self.now_us + plenty_us > deadline_us;
        let is_right = is_hasty || !self.scenario.is_calm || !status.message.starts_with("DEADLINE");
        ensure!(is_right, "{plenty_us} us would be plenty: {status:?}");
        Ok(())
    }

    /// The client goes away by and by, or the call ends at its deadline.
    fn may_leave(&mut self, id: usize) {
        let left_us = self.all[id].deadline_us - self.now_us;
        if self.scenario.cancellation > 0 && self.random.is_one_in(self.scenario.cancellation) {
            let delay_us = self.random.between(0, left_us);
            self.at(delay_us, Event::Leave(id));
        }
        if self.random.is_one_in(2) {
            let lag_us = self.lag_us();
            self.at(left_us + 1 + lag_us, Event::Leave(id));
        }
    }

    fn wake(&mut self, engine: usize) {
        if self.engines[engine].queue.is_idle() && !self.engines[engine].is_woken {
            self.engines[engine].is_woken = true;
            let lag_us = self.lag_us();
            self.at(lag_us, Event::Wake(engine));
        }
    }

    /// On the thread of the connections: what happens meanwhile is seen behind it.
    fn run_here(&mut self, engine: usize) -> Checked<()> {
        if let Some(took_us) = self.begin(engine)? {
            self.now_us += took_us;
            self.conclude(engine)?;
        }
        Ok(())
    }

    /// The device's thread looks for work.
    pub fn turn(&mut self, engine: usize) -> Checked<()> {
        if self.engines[engine].batch.is_none()
            && let Some(took_us) = self.begin(engine)?
        {
            self.at(took_us, Event::Finish(engine));
        }
        Ok(())
    }

    fn begin(&mut self, engine: usize) -> Checked<Option<u64>> {
        let Some(batch) = self.engines[engine].queue.take(&mut self.all, self.now_us)? else { return Ok(None) };
        let (took_us, is_ok) = self.scenario.run(batch.num_images, &mut self.random);
        self.note(|| {
            format!("took {:?}", batch.parts.iter().map(|part| (part.payload, part.stop)).collect::<Vec<_>>())
        });
        self.engines[engine].batch = Some((batch, is_ok));
        Ok(Some(took_us))
    }

    /// As Engine::conclude.
    pub fn conclude(&mut self, engine: usize) -> Checked<()> {
        let Some((batch, is_ok)) = self.engines[engine].batch.take() else { return Err("nothing ran".into()) };
        self.note(|| format!("{} images: {}", batch.num_images, if is_ok { "ran" } else { "failed" }));
        let given_up = self.engines[engine].queue.finish(&batch, is_ok, &mut self.all, self.now_us)?;
        given_up.map_or(Ok(()), |reason| self.give_up(&reason))
    }

    /// The process ends, and another takes its place unless it was to end anyway.
    pub fn give_up(&mut self, reason: &Status) -> Checked<()> {
        if self.failure.is_some() {
            return Ok(());
        }
        self.note(|| reason.message.clone());
        self.failure = Some(reason.clone());
        for engine in self.engines.iter_mut().filter(|engine| !engine.is_closed) {
            engine.is_closed = true;
            engine.queue.abandon(reason, &mut self.all, self.now_us)?;
        }
        if !self.is_draining {
            self.at(10 * self.scenario.tick_us, Event::Restart);
        }
        Ok(())
    }
}
