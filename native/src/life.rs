//! The server's life behind its doors: warm up, serve, drain. No connection, no protocol and no Python is in it, so
//! simulations live it too.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::sync::{Notify, watch};

use crate::shared::Shared;
use crate::status::Status;
use crate::versions::Versions;

/// How often it looks for what takes too long: less often while no call is under way.
const TICK_US: u64 = 20_000;
const IDLE_TICK_US: u64 = 100_000;
/// How often a drain looks whether it is over.
const DRAIN_TICK_US: u64 = 2_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Warming,
    Serving,
    /// New calls are told to go elsewhere.
    Draining,
    /// Connections are told to (GOAWAY), and nobody is let in any more.
    Leaving,
}

pub struct Life {
    pub versions: Versions,
    pub shared: Arc<Shared>,
    /// Calls under way.
    pub num_calls: AtomicUsize,
    phase: watch::Sender<Phase>,
    stop: Notify,
    lame_duck_us: u64,
    drain_timeout_us: u64,
}

impl Life {
    pub fn new(versions: Versions, shared: Arc<Shared>, lame_duck_us: u64, drain_timeout_us: u64) -> Self {
        let (num_calls, phase, stop) = (AtomicUsize::new(0), watch::Sender::new(Phase::Warming), Notify::new());
        Self { versions, shared, num_calls, phase, stop, lame_duck_us, drain_timeout_us }
    }

    pub fn now_us(&self) -> u64 {
        self.shared.clock.now_us()
    }

    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    pub fn is_serving(&self) -> bool {
        *self.phase.borrow() == Phase::Serving && self.shared.failure().is_none()
    }

    pub fn check_is_serving(&self) -> Result<(), Status> {
        match *self.phase.borrow() {
            Phase::Serving => Ok(()),
            Phase::Warming => Err(Status::unavailable("NOT_WARM", "the model is still warming up", "")),
            Phase::Draining | Phase::Leaving => Err(self.shared.failure().unwrap_or_else(Status::draining)),
        }
    }

    pub fn set_warm(&self) {
        self.phase.send_if_modified(|phase| {
            let is_warming = *phase == Phase::Warming;
            *phase = if is_warming { Phase::Serving } else { *phase };
            is_warming
        });
    }

    /// Begins the drain.
    pub fn stop(&self) {
        self.stop.notify_one();
    }

    /// From the first call to the last answer: Err has the reason why something admitted was not answered.
    ///
    /// It looks after what takes too long; `look` is called as often.
    pub async fn live(self: Arc<Self>, look: impl FnMut() + Send + 'static) -> Result<(), String> {
        tokio::spawn(self.clone().dispatch_forever());
        tokio::spawn(self.shared.clone().deliver_forever());
        tokio::spawn(self.clone().look_after_forever(look));
        tokio::select! {
            biased;
            () = self.stop.notified() => {}
            () = self.shared.failed.notified() => {}
        }
        self.drain().await
    }

    async fn dispatch_forever(self: Arc<Self>) {
        loop {
            self.shared.dispatch.notified().await;
            self.versions.engines().iter().for_each(|engine| engine.dispatch());
        }
    }

    async fn look_after_forever(self: Arc<Self>, mut look: impl FnMut()) {
        loop {
            let is_idle = self.num_calls.load(Relaxed) == 0;
            self.shared.clock.sleep_us(if is_idle { IDLE_TICK_US } else { TICK_US }).await;
            self.versions.engines().iter().for_each(|engine| engine.tick());
            look();
        }
    }

    async fn drain(&self) -> Result<(), String> {
        self.phase.send_replace(Phase::Draining);
        self.shared.clock.sleep_us(self.lame_duck_us).await;
        self.phase.send_replace(Phase::Leaving);
        let in_time = self.last_calls().await;
        let reason = match &in_time {
            Ok(()) => self.shared.failure().unwrap_or_else(Status::draining),
            Err(_) => Status::unavailable("DRAIN_TIMEOUT", "the server shut down first", "retry elsewhere"),
        };
        self.versions.engines().iter().for_each(|engine| engine.abandon(reason.clone()));
        self.shared.failure().map_or(in_time, |failure| Err(failure.message))
    }

    /// Waits for the calls under way. Err if some are left when the time is over.
    async fn last_calls(&self) -> Result<(), String> {
        let deadline_us = self.now_us() + self.drain_timeout_us;
        while self.num_calls.load(Relaxed) > 0 && self.shared.failure().is_none() {
            if self.now_us() >= deadline_us {
                let num_requests = self.num_calls.load(Relaxed);
                let timeout_s = self.drain_timeout_us as f64 / 1e6;
                return Err(format!("DRAIN_TIMEOUT: {num_requests} requests were unanswered after {timeout_s} s"));
            }
            self.shared.clock.sleep_us(DRAIN_TICK_US).await;
        }
        Ok(())
    }
}
