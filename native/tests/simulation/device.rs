//! The device of one version, with its faults, and the thread that owns it: here a task.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, LazyLock, Mutex};
use std::task::{Context, Waker};

use bytes::Bytes;
use tokio::time::advance;

use super::client::row_of;
use super::world::{World, us};
use crate::batching::Batch;
use crate::engine::{Engine, Next};
use crate::job::Job;
use crate::model::{IMAGE_BYTES, Model, Ran};
use crate::shared::{Shared, locked};
use crate::status::{Code, Status};

/// More than a life has. An image is known by its place among them; nobody reads what is there, and no memory is touched.
const NUM_IMAGES: usize = 1_000_000;
static IMAGES: LazyLock<Bytes> = LazyLock::new(|| vec![0; NUM_IMAGES * IMAGE_BYTES].into());

pub fn images(first: usize, count: usize) -> Bytes {
    IMAGES.slice(first * IMAGE_BYTES..(first + count) * IMAGE_BYTES)
}

/// The first of these, None if they are no client's.
pub fn place(images: &Bytes) -> Option<usize> {
    let begin = IMAGES.as_ptr() as usize;
    let address = images.as_ptr() as usize;
    (begin..begin + IMAGES.len()).contains(&address).then(|| (address - begin) / IMAGE_BYTES)
}

#[derive(Clone)]
pub struct SimulatedModel {
    world: Arc<World>,
    number: usize,
    /// Drawn when a batch began: how it will end.
    drawn: Arc<Mutex<Option<Fault>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    Failure,
    NoMemory,
}

impl SimulatedModel {
    pub fn new(world: Arc<World>, number: usize) -> Self {
        Self { world, number, drawn: Arc::default() }
    }

    /// A batch begins: how long it takes.
    fn begin(&self, batch: &Batch<Arc<Job>>) -> u64 {
        let (mut state, scenario) = (self.world.state(), &self.world.scenario);
        state.begin(scenario, self.number, batch);
        let is_safe = state.is_healed || !state.devices[self.number].is_rehearsed;
        let (took_us, fault) = if is_safe {
            (scenario.batch_us(batch.num_images), Fault::None)
        } else {
            let random = &mut state.random;
            let took_us = scenario.took_us(batch.num_images, random);
            let fault = match () {
                () if !random.is_one_in(scenario.failure) => Fault::None,
                () if random.is_one_in(4) => Fault::NoMemory,
                () => Fault::Failure,
            };
            (took_us, fault)
        };
        state.note(|| format!("device {}: {} images for {took_us} us, {fault:?}", self.number, batch.num_images));
        *locked(&self.drawn) = Some(fault);
        took_us
    }

    fn outcome(&self, batch: &Batch<Arc<Job>>, fault: Fault) -> Result<Ran, Status> {
        match fault {
            Fault::None => self.ran(batch),
            Fault::NoMemory => Err(Status::new(Code::ResourceExhausted, "NO_MEMORY", "the device lacks memory", "")),
            Fault::Failure => Err(Status::internal("BACKEND_FAILED", "the model could not be run on this batch", "")),
        }
    }

    /// As PythonModel has it: images that fail have no logits, and where all do, the batch has failed.
    fn ran(&self, batch: &Batch<Arc<Job>>) -> Result<Ran, Status> {
        let (state, mut logits, mut failures) = (self.world.state(), Vec::new(), BTreeMap::new());
        for part in &batch.parts {
            let begin = place(&part.payload.images);
            let call = state.call_of(part).map(|id| &state.calls[id]);
            for image in part.start..part.stop {
                if call.is_some_and(|call| call.bad_image == Some(image)) {
                    let status = Status::internal("BAD_IMAGE", "the model fails on this image", "");
                    failures.insert(logits.len() / row_of(0, 0).len(), status);
                }
                logits.extend(row_of(begin.map_or(0, |begin| begin + image), self.number));
            }
        }
        if failures.len() < batch.num_images {
            Ok(Ran::of(logits, failures))
        } else {
            Err(failures.remove(&0).expect("all"))
        }
    }

    /// Nobody has been told yet.
    fn note_run(&self, batch: &Batch<Arc<Job>>, result: &Result<Ran, Status>) {
        let mut state = self.world.state();
        let works = result.as_ref().map_or_else(|status| status.code == Code::ResourceExhausted, |_| true);
        let now_us = state.now_us;
        let device = &mut state.devices[self.number];
        device.longest_us = device.longest_us.max(now_us - device.began_us.take().unwrap_or(now_us));
        device.finished_us = now_us;
        device.num_failed = if works { 0 } else { device.num_failed + 1 };
        let is_probe = batch.parts.iter().all(|part| place(&part.payload.images).is_none());
        device.num_batches += u64::from(result.is_ok() && !is_probe);
        device.num_failed_batches += u64::from(result.is_err());
        let mut first = 0;
        for part in &batch.parts {
            let places = first..first + part.stop - part.start;
            first = places.end;
            let Some(id) = state.call_of(part) else { continue };
            let call = &mut state.calls[id];
            (call.num_run, call.run_us) = (part.stop, now_us);
            call.has_failed |= result.as_ref().map_or(true, |ran| ran.failure(places).is_some());
            if call.has_failed {
                state.devices[self.number].waiting.retain(|&other| other != id); // its rest is not run
            } else if part.is_last() {
                state.devices[self.number].num_images += part.num_images as u64;
            }
        }
    }

    /// What the device's thread does: see Engine::work.
    pub async fn work(self, engine: Arc<Engine>, shared: Arc<Shared>) {
        let mut has_waited = false;
        loop {
            let next = engine.next(&mut engine.batching(), has_waited);
            has_waited = false;
            match next {
                Next::Batch(batch) => {
                    let took_us = self.begin(&batch);
                    shared.clock.sleep_us(took_us).await;
                    engine.run(&batch);
                    self.check(took_us, &shared);
                }
                Next::Wait(patience) => {
                    tokio::select! {
                        biased;
                        () = engine.has_work.rung.notified() => shared.clock.sleep_us(self.world.lag_us()).await,
                        () = shared.clock.sleep_us(patience.as_micros() as u64) => has_waited = true,
                    }
                }
                Next::End => break,
            }
        }
        engine.end();
    }

    fn check(&self, took_us: u64, shared: &Shared) {
        let mut state = self.world.state();
        let failure = shared.failure();
        state.check_hang(&self.world.scenario, self.number, took_us, failure.is_some());
        let num_failed = state.devices[self.number].num_failed;
        let is_heard = num_failed < 3 || failure.is_some();
        state.ensure(is_heard, || format!("{num_failed} batches in a row failed, and nothing happened"));
        let process = state.devices[self.number].process;
        let mut devices = state.devices.iter().filter(|device| device.process == process);
        let is_broken = failure.is_some_and(|failure| failure.message.starts_with("BACKEND_BROKEN"));
        let is_right = !is_broken || devices.any(|device| device.num_failed == 3);
        state.ensure(is_right, || format!("given up, and no device has failed three times in a row: {num_failed}"));
    }
}

impl Model for SimulatedModel {
    fn run(&self, batch: &Batch<Arc<Job>>) -> Result<Ran, Status> {
        let drawn = locked(&self.drawn).take();
        let fault = drawn.unwrap_or_else(|| {
            let took_us = self.begin(batch); // on the thread of the calls, which stands still meanwhile
            let _ = pin!(advance(us(took_us))).poll(&mut Context::from_waker(Waker::noop()));
            locked(&self.drawn).take().unwrap_or(Fault::None)
        });
        let result = self.outcome(batch, fault);
        self.note_run(batch, &result);
        result
    }

    fn free(&self) {
        let mut state = self.world.state();
        let (is_freed, is_busy) = (state.devices[self.number].is_freed, state.devices[self.number].began_us.is_some());
        state.ensure(!is_freed && !is_busy, || format!("device {} was freed twice, or in a batch", self.number));
        state.devices[self.number].is_freed = true;
    }
}
