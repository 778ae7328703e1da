//! Between the calls and the model: the device's thread, and the way there and back.
//!
//! ```text
//! calls:   submit -> queue -> (dispatch) -.              .-> (deliver) -> answers
//! device:                                 '-> run, encode -'
//! ```
//!
//! What travels is a whole batch: the device's thread is woken once for what came in together, and wakes the calls' thread
//! once for what it has answered. A lone request does not travel at all: where nothing else is under way and the model
//! is known to be quick, the thread that read it runs it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::batching::{Batch, Batching, Limits};
use crate::job::{Job, Settled, Wanted, Work};
use crate::log;
use crate::model::{IMAGE_BYTES, Model, Ran};
use crate::probe::Probe;
use crate::response::{NUM_CLASSES, ResponseWriter, TimeSplit};
use crate::shared::{Bell, Shared, locked};
use crate::status::{Code, Status};

/// What the device's thread is to do.
pub enum Next {
    Batch(Arc<Batch<Arc<Job>>>),
    /// Until the bell rings, or for so long.
    Wait(Duration),
    End,
}

pub struct Engine {
    shared: Arc<Shared>,
    batching: Mutex<Batching<Arc<Job>>>,
    model: Box<dyn Model>,
    writer: ResponseWriter,
    probe: Probe,
    /// Longer than this the thread that serves all connections does not stand still for one request.
    max_inline_us: u64,
    /// For the device's thread.
    pub has_work: Bell,
    /// A request asks for its dispatch.
    is_called: AtomicBool,
    /// The device's thread ends when nothing waits.
    is_closed: AtomicBool,
    /// And frees what the model holds.
    is_retired: AtomicBool,
}

impl Engine {
    pub fn new(
        shared: Arc<Shared>,
        limits: Limits,
        model: Box<dyn Model>,
        writer: ResponseWriter,
        probe: Probe,
        max_inline_us: u64,
    ) -> Self {
        Self {
            shared,
            batching: Mutex::new(Batching::new(limits)),
            model,
            writer,
            probe,
            max_inline_us,
            has_work: Bell::default(),
            is_called: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            is_retired: AtomicBool::new(false),
        }
    }

    fn now_us(&self) -> u64 {
        self.shared.clock.now_us()
    }

    pub fn num_waiting(&self) -> usize {
        self.batching().num_waiting()
    }

    pub fn num_waiting_requests(&self) -> usize {
        self.batching().num_waiting_requests()
    }

    /// Runs the images in one batch or several. A caller that goes away gives up its place.
    pub async fn classify(self: &Arc<Self>, work: Work) -> Settled {
        let (reply, answer) = oneshot::channel();
        let _place = self.admit(work, reply)?;
        let lost = || Status::internal("INTERNAL", "the request was lost", "see the server's log");
        answer.await.unwrap_or_else(|_| Err(lost()))
    }

    /// Err where no request of this connection with this deadline would be admitted, however small.
    pub fn check_has_room(&self, deadline_us: u64, peer: u64) -> Result<(), Status> {
        let now_us = self.now_us();
        self.batching().check(1, deadline_us, peer, now_us)
    }

    /// Queues it, and sees to it that somebody comes for it: this thread where it is the quickest.
    fn admit(self: &Arc<Self>, work: Work, reply: oneshot::Sender<Settled>) -> Result<Place, Status> {
        let Work { images, wanted, deadline_us, peer, is_lone } = work;
        let num_images = images.len() / IMAGE_BYTES;
        let job = Arc::new(Job::new(images, wanted, Some(reply)));
        let now_us = self.now_us();
        let mut batching = self.batching();
        let number = batching.submit(job, num_images, deadline_us, peer, now_us)?;
        let is_quick = batching.is_quick(num_images, self.max_inline_us);
        let at_once = if is_lone && is_quick { batching.take(now_us).batch } else { None };
        let is_needed = at_once.is_none() && batching.is_idle();
        let is_full = batching.has_full_batch();
        drop(batching);
        match at_once {
            Some(batch) => self.run_here(&batch),
            None if is_needed && is_full => self.has_work.ring(), // what else has come in may be much
            None if is_needed => self.call(),
            None => {}
        }
        Ok(Place { engine: self.clone(), number })
    }

    fn run_here(&self, batch: &Batch<Arc<Job>>) {
        let result = self.model.run(batch);
        for (job, outcome) in self.conclude(batch, result) {
            self.shared.settle(&job, outcome);
        }
    }

    /// The device is to be woken behind what has come in with this request: what arrived together goes together.
    fn call(&self) {
        self.is_called.store(true, Relaxed);
        self.shared.dispatch.notify_one();
    }

    /// Wakes the device, if a request has asked for it.
    pub fn dispatch(&self) {
        if self.is_called.swap(false, Relaxed) {
            self.has_work.ring();
        }
    }

    /// The life of the device's thread.
    pub fn work(&self) {
        while let Some(batch) = self.next_batch() {
            self.run(&batch);
        }
        self.end();
    }

    /// Runs a batch, and sees to it that its calls hear of it.
    pub fn run(&self, batch: &Batch<Arc<Job>>) {
        let result = self.model.run(batch);
        let outcomes = self.conclude(batch, result);
        self.shared.settle_soon(outcomes);
    }

    /// What the device's thread does last.
    pub fn end(&self) {
        if self.is_retired.load(Relaxed) {
            self.model.free();
        }
    }

    /// Ends the device's thread behind its last batch. Nobody will ask for anything any more.
    pub fn retire(&self) {
        let batching = self.batching(); // or the thread might look before, and sleep behind it
        self.is_retired.store(true, Relaxed);
        self.is_closed.store(true, Relaxed);
        drop(batching);
        self.has_work.ring();
    }

    fn next_batch(&self) -> Option<Arc<Batch<Arc<Job>>>> {
        let mut batching = self.batching();
        let mut has_waited = false;
        loop {
            let patience = match self.next(&mut batching, has_waited) {
                Next::Batch(batch) => return Some(batch),
                Next::End => return None,
                Next::Wait(patience) => patience,
            };
            (batching, has_waited) = self.has_work.wait(batching, patience);
        }
    }

    /// What the device's thread does next; `has_waited` says that nothing came for as long as it was to wait.
    pub fn next(&self, batching: &mut Batching<Arc<Job>>, has_waited: bool) -> Next {
        let taken = batching.take(self.now_us());
        if !taken.expired.is_empty() {
            self.shared.settle_soon(taken.expired.into_iter().map(|job| (job, Err(expired()))).collect());
        }
        match taken.batch {
            Some(batch) => Next::Batch(batch),
            None if self.is_closed.load(Relaxed) => Next::End,
            None if has_waited && batching.is_empty() => {
                Next::Batch(batching.rehearse(self.probe.job(), 1, self.now_us()))
            }
            None => Next::Wait(self.probe.patience()),
        }
    }

    /// Books a batch that has run, and makes the answers; answer i belongs to image i of the batch.
    fn conclude(&self, batch: &Batch<Arc<Job>>, result: Result<Ran, Status>) -> Vec<(Arc<Job>, Settled)> {
        let now_us = self.now_us();
        let is_probe = self.probe.is_of(batch);
        let result = if is_probe { self.probe.checked(result).inspect_err(log::failure) } else { result };
        let given_up = self.finish(batch, &result, now_us);
        let took_us = now_us - batch.began_us;
        let outcomes = match result {
            Ok(_) if is_probe => Vec::new(), // nobody has asked, and nothing is counted
            Ok(ran) => self.answers(batch, &ran, took_us),
            Err(status) => {
                self.shared.metrics.failed_batches.fetch_add(1, Relaxed);
                batch.parts.iter().map(|part| (part.payload.clone(), Err(status.clone()))).collect()
            }
        };
        if let Some(reason) = given_up {
            self.give_up(reason); // before anybody hears of the failure, health says so too
        }
        outcomes
    }

    fn finish(&self, batch: &Batch<Arc<Job>>, result: &Result<Ran, Status>, now_us: u64) -> Option<Status> {
        let works = result.as_ref().map_or_else(|status| status.code == Code::ResourceExhausted, |_| true);
        let last = batch.parts.last().map_or(0, |part| part.stop - part.start);
        let places = batch.num_images - last..batch.num_images;
        let mut batching = self.batching();
        if result.as_ref().map_or(true, |ran| ran.failure(places).is_some()) {
            batching.remove_begun();
        }
        batching.finish(works, now_us) // a device that lacks memory works
    }

    /// The answers to those requests whose last part this was, and the failures of those of which an image failed.
    fn answers(&self, batch: &Batch<Arc<Job>>, ran: &Ran, took_us: u64) -> Vec<(Arc<Job>, Settled)> {
        let metrics = &self.shared.metrics;
        metrics.batches.fetch_add(1, Relaxed);
        metrics.batch_size.observe(batch.num_images as u64);
        metrics.inference.observe(took_us);
        metrics.compute_us.fetch_add(took_us * batch.parts.len() as u64, Relaxed);
        let (mut answers, mut next) = (Vec::with_capacity(batch.parts.len()), 0);
        for part in &batch.parts {
            let places = next..next + part.stop - part.start;
            next = places.end;
            if let Some(status) = ran.failure(places.clone()) {
                answers.push((part.payload.clone(), Err(status.clone())));
                continue;
            }
            let rows = &ran.logits[places.start * NUM_CLASSES..places.end * NUM_CLASSES];
            let queue_us = batch.began_us.saturating_sub(part.arrived_us);
            metrics.queue.observe(queue_us);
            let time = TimeSplit { queue_us, inference_us: took_us, batch_size: batch.num_images as u64 };
            if let Some(answer) = part.payload.answer(&self.writer, rows, time, part.is_last()) {
                metrics.images.fetch_add(part.num_images as u64, Relaxed);
                answers.push((part.payload.clone(), Ok(answer)));
            }
        }
        answers
    }

    /// Looks after what no batch will: requests whose time is over, and a device that hangs.
    pub fn tick(&self) {
        let now_us = self.now_us();
        let (late, hang) = {
            let mut batching = self.batching();
            (batching.expire(now_us), batching.hang(now_us))
        };
        self.shared.settle_soon(late.into_iter().map(|job| (job, Err(expired()))).collect());
        if let Some(reason) = hang {
            self.give_up(reason);
        }
    }

    /// A batch that has run for too long, and `tick` has not seen it: it runs on the very thread that ticks.
    pub fn unnoticed_hang(&self) -> Option<Status> {
        let a_second_ago_us = self.now_us().saturating_sub(1_000_000);
        self.shared.failure().map_or_else(|| self.batching().hang(a_second_ago_us), |_| None)
    }

    fn give_up(&self, reason: Status) {
        if self.shared.fail(&reason) {
            self.abandon(reason);
            self.shared.failed.notify_one();
        }
    }

    /// Fails all that was admitted and not answered, and refuses what comes; the device's thread ends.
    pub fn abandon(&self, reason: Status) {
        let jobs = {
            let mut batching = self.batching();
            self.is_closed.store(true, Relaxed);
            batching.abandon(reason.clone())
        };
        self.has_work.ring();
        self.shared.settle_soon(jobs.into_iter().map(|job| (job, Err(reason.clone()))).collect());
    }

    /// Measures the model, so that the first requests are admitted by what it takes.
    pub fn rehearse(&self, sizes: &[usize]) -> Result<(), Status> {
        for &size in sizes {
            let job = Arc::new(Job::new(self.probe.images(size), Wanted::Logits, None));
            let batch = self.batching().rehearse(job, size, self.now_us());
            let result = self.model.run(&batch);
            self.batching().finish(result.is_ok(), self.now_us());
            let ran = result?;
            if size == 1 {
                self.probe.expect(&ran);
            }
        }
        Ok(())
    }

    pub fn batching(&self) -> MutexGuard<'_, Batching<Arc<Job>>> {
        locked(&self.batching)
    }
}

/// A place in the queue, given up at the end of the call, however it ends.
struct Place {
    engine: Arc<Engine>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.engine.batching().cancel(self.number);
    }
}

fn expired() -> Status {
    Status::expired("EXPIRED", "the deadline passed while the request was queued")
}
