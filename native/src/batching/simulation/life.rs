//! One life of a server: its events in their order, and what happens at each.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::panic::AssertUnwindSafe;

use super::checked::{Checked, Request};
use super::engine::Engine;
use super::ensure;
use super::scenario::{Random, Scenario};
use crate::status::Status;

pub const BEGIN_US: u64 = 1_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    Burst,
    Wake(usize),
    Finish(usize),
    Leave(usize),
    Tick,
    Restart,
}

pub struct Life {
    pub random: Random,
    pub scenario: Scenario,
    pub now_us: u64,
    pub events: BinaryHeap<Reverse<(u64, usize, Event)>>,
    pub num_events: usize,
    pub engines: Vec<Engine>, // the last one is current
    pub all: Vec<Request>,
    pub open: Vec<usize>,
    pub failure: Option<Status>,
    pub is_draining: bool,
    pub trace: Option<Vec<String>>,
}

impl Life {
    pub fn new(seed: u64, is_traced: bool) -> Self {
        let mut random = Random(seed);
        let scenario = Scenario::draw(&mut random);
        let (events, all, open, engines) = (BinaryHeap::new(), Vec::new(), Vec::new(), Vec::new());
        let (now_us, trace) = (BEGIN_US, is_traced.then(Vec::new));
        let (failure, is_draining, num_events) = (None, false, 0);
        let mut life =
            Self { random, scenario, now_us, events, num_events, engines, all, open, failure, is_draining, trace };
        life.start_engine();
        life.at(0, Event::Burst);
        life.at(life.scenario.tick_us, Event::Tick);
        life
    }

    pub fn outcome(&mut self) -> Checked<()> {
        let panicked = |_| Err("the core panicked, as is told above".into());
        std::panic::catch_unwind(AssertUnwindSafe(|| self.live())).unwrap_or_else(panicked)
    }

    fn live(&mut self) -> Checked<()> {
        while let Some(Reverse((time_us, _, event))) = self.events.pop() {
            self.now_us = self.now_us.max(time_us);
            self.note(|| format!("{event:?}"));
            self.step(event)?;
            self.check()?;
        }
        let unfinished: Vec<_> = self.all.iter().filter(|request| request.end.is_none()).collect();
        ensure!(unfinished.is_empty(), "never ended: {unfinished:?}");
        let is_over = |engine: &Engine| engine.is_closed || engine.queue.is_empty();
        ensure!(self.engines.iter().all(is_over), "at the end an engine has work");
        Ok(())
    }

    pub fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>12} us  {}", self.now_us - BEGIN_US, what()));
        }
    }

    fn step(&mut self, event: Event) -> Checked<()> {
        match event {
            Event::Burst => self.burst(),
            Event::Wake(engine) => {
                self.engines[engine].is_woken = false;
                self.turn(engine)
            }
            Event::Finish(engine) => {
                self.conclude(engine)?;
                self.turn(engine)
            }
            Event::Leave(id) => self.engines[self.all[id].engine].queue.leave(id, &mut self.all, self.now_us),
            Event::Tick => self.tick(),
            Event::Restart => {
                if !self.is_draining {
                    self.failure = None;
                    self.start_engine();
                }
                Ok(())
            }
        }
    }

    fn burst(&mut self) -> Checked<()> {
        for _ in 0..self.random.index(1, self.scenario.max_burst) {
            let num_before = self.all.len();
            if num_before == self.scenario.num_requests {
                return Ok(());
            }
            if self.scenario.swap == Some(num_before) && self.failure.is_none() && !self.is_draining {
                self.note(|| "swap".into());
                self.start_engine();
            }
            if self.scenario.drain == Some(num_before) {
                self.note(|| "drain".into());
                self.is_draining = true;
                let engines = self.engines.iter_mut().filter(|engine| !engine.is_closed);
                engines.for_each(|engine| engine.queue.refuse(Status::draining()));
            }
            self.arrive()?;
        }
        let factor = if self.random.is_one_in(20) { 40 } else { 2 };
        let gap_us = self.random.between(0, factor * self.scenario.gap_us);
        self.at(gap_us, Event::Burst);
        Ok(())
    }

    fn tick(&mut self) -> Checked<()> {
        for engine in 0..self.engines.len() {
            if let Some(reason) = self.engines[engine].queue.tick(&mut self.all, self.now_us)? {
                self.give_up(&reason)?;
            }
        }
        if !self.open.is_empty() || self.all.len() < self.scenario.num_requests {
            let delay_us = self.scenario.tick_us + self.lag_us();
            self.at(delay_us, Event::Tick);
        }
        Ok(())
    }

    fn check(&mut self) -> Checked<()> {
        for engine in &self.engines {
            engine.queue.check(&self.all)?;
            let stands_still = engine.batch.is_none() && !engine.is_woken && !engine.is_closed;
            let num_waiting = engine.queue.core.num_waiting();
            ensure!(!stands_still || num_waiting == 0, "a free device waits, and {num_waiting} images for it");
        }
        let (ended, open) = std::mem::take(&mut self.open).into_iter().partition(|&id| self.all[id].end.is_some());
        self.open = open;
        let ended: Vec<usize> = ended;
        for id in ended {
            self.note(|| format!("{id} has ended"));
            let lag_us = self.lag_us();
            self.at(lag_us, Event::Leave(id)); // the call gives up its place
        }
        Ok(())
    }

    pub fn at(&mut self, delay_us: u64, event: Event) {
        self.num_events += 1;
        self.events.push(Reverse((self.now_us + delay_us, self.num_events, event)));
    }

    pub fn lag_us(&mut self) -> u64 {
        self.random.between(0, self.scenario.max_lag_us)
    }
}
