//! What a life's clients, devices and processes share: its scenario, its clock, and what was seen of it so far.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::process::Process;
use super::registry::{Call, Device, End};
use super::scenario::{Random, Scenario};
use crate::shared::{Clock, SCALE, Shared, locked};
use crate::versions::Served;

/// Of what happened before a rule was broken.
const TOLD: usize = 40;

#[derive(Debug)]
pub struct Lived {
    pub lived_us: u64,
    pub ends: Vec<End>,
    pub num_promised: u64,
    pub trace: Vec<String>,
}

pub struct World {
    pub scenario: Scenario,
    pub clock: Clock,
    state: Mutex<State>,
}

pub struct State {
    pub now_us: u64,
    pub random: Random,
    pub calls: Vec<Call>,
    pub devices: Vec<Device>,
    pub process: Option<Arc<Process>>,
    pub num_processes: usize,
    pub is_draining: bool,
    pub drains_from_us: u64,
    /// There are no faults any more.
    pub is_healed: bool,
    broken: Option<String>,
    trace: Option<Vec<String>>,
}

impl World {
    pub fn new(seed: u64, is_traced: bool) -> Self {
        let mut random = Random(seed);
        let scenario = Scenario::draw(&mut random);
        let state = State {
            now_us: 0,
            random,
            calls: Vec::new(),
            devices: Vec::new(),
            process: None,
            num_processes: 0,
            is_draining: false,
            drains_from_us: u64::MAX,
            is_healed: false,
            broken: None,
            trace: is_traced.then(Vec::new),
        };
        Self { scenario, clock: Shared::new().clock, state: Mutex::new(state) }
    }

    /// As it is now.
    pub fn state(&self) -> MutexGuard<'_, State> {
        let mut state = locked(&self.state);
        state.now_us = self.clock.now_us();
        state
    }

    pub fn draw<T>(&self, draw: impl FnOnce(&mut Random) -> T) -> T {
        draw(&mut self.state().random)
    }

    /// How late a thread wakes.
    pub fn lag_us(&self) -> u64 {
        let mut state = self.state();
        if state.is_healed { 0 } else { state.random.between(0, self.scenario.max_lag_us) }
    }

    /// Notes what a call finds that asks for room for so many images.
    pub fn ask(&self, id: usize, served: &Served, num_images: usize) {
        let device: usize = served.model.version.parse().expect("a version is its device's number");
        let counted = (served.engine.num_waiting_requests(), served.engine.num_waiting());
        self.state().ask(&self.scenario, id, device, num_images, counted);
    }

    /// Waits as long as a message or a picture takes, where one is waited for.
    pub async fn pause(&self, is_waited_for: bool) {
        if is_waited_for {
            let took_us = self.draw(|random| random.between(0, self.scenario.short_us));
            self.clock.sleep_us(took_us).await;
        }
    }

    pub fn drain(&self) {
        let mut state = self.state();
        state.note(|| "drain".into());
        (state.is_draining, state.drains_from_us) = (true, state.now_us);
        if let Some(process) = &state.process {
            process.life.stop();
        }
    }

    /// What it was, or the rule that was broken.
    pub fn outcome(&self, has_panicked: bool) -> Result<Lived, String> {
        let state = locked(&self.state);
        if let Some(broken) = &state.broken {
            return Err(state.told(broken));
        }
        if has_panicked {
            return Err(state.told("a task panicked, as is told above"));
        }
        Ok(Lived {
            lived_us: state.now_us,
            ends: state.calls.iter().filter_map(|call| call.end).collect(),
            num_promised: state.calls.iter().filter(|call| call.is_promised && call.end == Some(End::Answered)).count()
                as u64,
            trace: state.trace.clone().unwrap_or_default(),
        })
    }
}

impl State {
    pub fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = self.trace.as_mut().filter(|_| self.broken.is_none()) {
            trace.push(format!("{:>12} us  {}", self.now_us, what()));
        }
    }

    /// The first rule that is broken is the one that is told.
    pub fn ensure(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.broken.is_none() {
            self.broken = Some(format!("{:>12} us  BROKEN: {}", self.now_us, what()));
        }
    }

    /// What happened before, and this.
    fn told(&self, what: &str) -> String {
        let trace = self.trace.as_deref().unwrap_or_default();
        format!("{}\n{what}", trace[trace.len().saturating_sub(TOLD)..].join("\n"))
    }

    /// A process serves, and nothing runs on its devices.
    pub fn is_ready(&self) -> bool {
        self.process.as_ref().is_some_and(|process| {
            let mut devices = self.devices.iter().filter(|device| device.process == process.number);
            process.life.is_serving() && devices.all(|device| device.began_us.is_none())
        })
    }

    pub fn never_ended(&mut self) {
        let call = self.calls.iter().find(|call| call.end.is_none()).map(|call| format!("{call:?}"));
        self.ensure(false, || format!("never ended: {call:?}"));
    }
}

/// As tokio's timers have it: see SCALE.
pub fn us(us: u64) -> Duration {
    Duration::from_micros(us * SCALE)
}
