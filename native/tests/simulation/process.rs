//! A server's process: its versions come and go, and at its end nobody is left without an answer.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use tokio::task::AbortHandle;

use super::device::SimulatedModel;
use super::registry::{Call, Device, End};
use super::scenario::Scenario;
use super::world::{State, World};
use crate::engine::Engine;
use crate::life::{Life, Phase};
use crate::model::IMAGE_BYTES;
use crate::probe::Probe;
use crate::response::ResponseWriter;
use crate::shared::{Shared, locked};
use crate::versions::{Model, Served, Versions};

const MAX_INLINE_US: u64 = 1_000;
const NUM_SWAPS: usize = 3;

pub struct Process {
    pub number: usize,
    pub life: Arc<Life>,
    /// Versions to come, which have been rehearsed: that goes on beside what serves, and would stop the clock here.
    prepared: Mutex<Vec<(Served, SimulatedModel)>>,
    devices: Mutex<Vec<AbortHandle>>,
}

/// Starts a process, and another when it has ended, until one is told to drain.
pub async fn supervise(world: Arc<World>) {
    while !world.state().is_draining {
        let process = Arc::new(Process::new(&world));
        world.state().process = Some(process.clone());
        let outcome = process.life.clone().live(|| ()).await;
        process.check_outcome(&world, &outcome);
        world.clock.sleep_us(1).await; // for the last answers to be heard
        process.end(&world, outcome);
        world.clock.sleep_us(10 * world.scenario.tick_us).await;
    }
}

impl Process {
    fn new(world: &Arc<World>) -> Self {
        let number = {
            let mut state = world.state();
            state.num_processes += 1;
            let number = state.num_processes - 1;
            state.note(|| format!("process {number}"));
            number
        };
        let shared = Arc::new(Shared::new());
        let (first, model) = rehearsed(world, &shared, number);
        let has_swaps = world.scenario.swap.is_some_and(|swap| swap + 20 >= world.state().calls.len());
        let num_swaps = if has_swaps { NUM_SWAPS } else { 0 };
        let prepared = (0..num_swaps).map(|_| rehearsed(world, &shared, number)).collect();
        let device = tokio::spawn(model.work(first.engine.clone(), shared.clone())).abort_handle();
        let (lame_duck_us, drain_timeout_us) = (world.scenario.lame_duck_us, world.scenario.drain_timeout_us);
        let life = Life::new(Versions::new(first), shared, lame_duck_us, drain_timeout_us);
        life.set_warm();
        Self { number, life: Arc::new(life), prepared: Mutex::new(prepared), devices: Mutex::new(vec![device]) }
    }

    /// As python.rs does it.
    pub fn swap(&self, world: &World) {
        if !self.life.is_serving() {
            return; // nor does a server load one then
        }
        let Some((served, model)) = locked(&self.prepared).pop() else { return };
        world.state().note(|| format!("swap to version {}", served.model.version));
        let device = tokio::spawn(model.work(served.engine.clone(), self.life.shared.clone()));
        locked(&self.devices).push(device.abort_handle());
        let versions = [served.model.version.clone(), self.life.versions.current().model.version.clone()];
        self.life.versions.swap(served);
        let loaded: Vec<String> =
            self.life.versions.loaded().iter().map(|served| served.model.version.clone()).collect();
        world.state().ensure(loaded == versions, || format!("{loaded:?} are loaded, not {versions:?}"));
    }

    /// It ends with a reason where there is one, and not before its time.
    fn check_outcome(&self, world: &World, outcome: &Result<(), String>) {
        let (mut state, life, scenario) = (world.state(), &self.life, &world.scenario);
        let lived_us = state.now_us.saturating_sub(state.drains_from_us);
        let holds = match (outcome, life.shared.failure()) {
            (Ok(()), failure) => failure.is_none() && lived_us >= scenario.lame_duck_us,
            (Err(told), Some(failure)) => *told == failure.message && self.has_reason(&state, scenario, told),
            (Err(told), None) => {
                told.starts_with("DRAIN_TIMEOUT") && lived_us >= scenario.lame_duck_us + scenario.drain_timeout_us
            }
        };
        let has_left = *life.phase().borrow() == Phase::Leaving && (outcome.is_ok() || !scenario.is_calm);
        state.ensure(holds && has_left, || format!("process {} ended so: {outcome:?}", self.number));
    }

    /// Some device has failed three times in a row, or hung.
    fn has_reason(&self, state: &State, scenario: &Scenario, told: &str) -> bool {
        let hang_us = scenario.limits.hang_timeout_us;
        let hangs = |device: &Device| state.now_us - device.began_us.unwrap_or(state.now_us) > hang_us;
        let mut devices = state.devices.iter().filter(|device| device.process == self.number);
        match told.starts_with("BACKEND_HUNG") {
            true => devices.any(|device| device.longest_us > hang_us || hangs(device)),
            false => devices.any(|device| device.num_failed == 3),
        }
    }

    fn end(&self, world: &World, outcome: Result<(), String>) {
        locked(&self.devices).iter().for_each(AbortHandle::abort);
        let mut state = world.state();
        state.process = None;
        state.note(|| format!("process {} has ended: {outcome:?}", self.number));
        let calls: Vec<Call> =
            state.calls.iter().filter(|call| call.is_admitted && call.process == Some(self.number)).copied().collect();
        let lost = calls.iter().find(|call| call.end.is_none());
        state.ensure(lost.is_none(), || format!("never heard of its end: {lost:?}"));
        let num_given_up = calls.iter().filter(|call| call.end == Some(End::GivenUp)).count();
        state.ensure(outcome.is_err() || num_given_up == 0, || format!("{num_given_up} were given up in a drain"));
        let engines = self.life.versions.engines();
        let num_left: usize = engines.iter().map(|engine| engine.num_waiting() + engine.num_waiting_requests()).sum();
        state.ensure(num_left == 0, || format!("{num_left} still wait at the end"));
        self.check_metrics(&mut state, &calls);
        self.check_freed(world, &mut state);
    }

    fn check_metrics(&self, state: &mut State, calls: &[Call]) {
        let metrics = &self.life.shared.metrics;
        let counted = [&metrics.batches, &metrics.failed_batches, &metrics.images, &metrics.undelivered];
        let counted = counted.map(|count| count.load(Relaxed));
        let mut seen = [0; 4];
        for device in state.devices.iter().filter(|device| device.process == self.number) {
            seen[0] += device.num_batches;
            seen[1] += device.num_failed_batches;
            seen[2] += device.num_images;
        }
        let is_unheard = |call: &&Call| call.end == Some(End::Cancelled) && call.num_run == call.num_images;
        let unheard = calls.iter().filter(is_unheard).filter(|call| !call.has_failed);
        let num_unheard = unheard.clone().count() as u64;
        let num_earlier = unheard.filter(|call| call.run_us + 1 < state.now_us).count() as u64;
        // Whose batch ended with the process, or behind its failure, was told something else before.
        let is_right = (num_earlier..=num_unheard).contains(&counted[3]) || self.life.shared.failure().is_some();
        seen[3] = if is_right { counted[3] } else { num_unheard };
        let what = "batches, failed ones, images, answers undelivered";
        state.ensure(counted == seen, || format!("counted {counted:?}: {what}; there were {seen:?}"));
    }

    /// Versions behind the last two have freed their devices, and no other has.
    fn check_freed(&self, world: &World, state: &mut State) {
        let loaded: Vec<String> =
            self.life.versions.loaded().iter().map(|served| served.model.version.clone()).collect();
        let num_prepared = locked(&self.prepared).len();
        let (mut num_loaded, mut num_others) = (0, 0);
        for (number, device) in state.devices.iter().enumerate().filter(|(_, device)| device.process == self.number) {
            match loaded.contains(&number.to_string()) {
                true => num_loaded += usize::from(!device.is_freed),
                false => num_others += usize::from(!device.is_freed && device.began_us.is_none()),
            }
        }
        let are_late = world.scenario.max_lag_us > 0 || self.life.shared.failure().is_some(); // they end by and by
        let are_late = are_late || self.life.num_calls.load(Relaxed) > 0; // calls that still hold a version
        let holds = num_loaded == loaded.len() && (are_late || num_others == num_prepared);
        state.ensure(holds, || format!("of {loaded:?} {num_loaded} hold their devices, and {num_others} others"));
    }
}

/// A version that has measured its model, as it does before it serves.
fn rehearsed(world: &Arc<World>, shared: &Arc<Shared>, process: usize) -> (Served, SimulatedModel) {
    let number = {
        let mut state = world.state();
        state.devices.push(Device { process, ..Device::default() });
        state.devices.len() - 1
    };
    let model = SimulatedModel::new(world.clone(), number);
    let limits = world.scenario.limits.clone();
    let size = limits.max_batch_size;
    let version = number.to_string();
    let writer = ResponseWriter::new("lenet5", &version, &[]);
    let probe = Probe::new(vec![0; IMAGE_BYTES].into(), world.scenario.probe_after_s);
    let engine = Engine::new(shared.clone(), limits, Box::new(model.clone()), writer, probe, MAX_INLINE_US);
    engine.rehearse(&[1, size.div_ceil(2), size]).expect("a rehearsal has no faults");
    world.state().devices[number].is_rehearsed = true;
    let (name, none) = ("lenet5".to_owned(), Vec::new);
    let model_of =
        Model { name, version, classes: Vec::new(), description: none(), config: none(), labels: Vec::new() };
    (Served { model: model_of, engine: Arc::new(engine) }, model)
}
