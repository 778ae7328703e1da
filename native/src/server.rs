//! The server's life: listen, warm up, serve, drain.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::sleep;

use crate::budget::Budgets;
use crate::connection;
use crate::crowd::Crowd;
use crate::io::Io;
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::records::Records;
use crate::settings::Settings;
use crate::shared::{Clock, Shared, locked};
use crate::status::Status;
use crate::tls::Tls;
use crate::tokens::Tokens;
use crate::versions::{Served, Versions};
use crate::waiting::Waiting;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Warming,
    Serving,
    /// New calls are told to go elsewhere.
    Draining,
    /// Connections are told to (GOAWAY), and nobody is let in any more.
    Leaving,
}

pub struct Server {
    pub settings: Settings,
    pub versions: Versions,
    pub shared: Arc<Shared>,
    pub decode: Py<PyAny>,
    /// Of those who wait for a decoder, the first has the next.
    pub decoders: Arc<Semaphore>,
    pub picture_cost: Py<PyAny>,
    pub check_images: Py<PyAny>,
    tls: Option<Tls>,
    pub tokens: Option<Tokens>,
    pub waiting: Waiting,
    pub budgets: Budgets,
    /// Calls under way.
    pub num_calls: AtomicUsize,
    pub crowd: Arc<Crowd>,
    pub records: Records,
    phase: watch::Sender<Phase>,
    stop: Notify,
    peers: Peers,
    outcome: Mutex<Option<Result<(), String>>>,
    ended: Condvar,
}

impl Server {
    /// Err where TLS's files or the tokens cannot be read.
    pub fn new(
        settings: Settings,
        shared: Arc<Shared>,
        first: Served,
        decode: Py<PyAny>,
        picture_cost: Py<PyAny>,
        check_images: Py<PyAny>,
    ) -> std::io::Result<Self> {
        Ok(Self {
            tls: settings.open_tls()?,
            tokens: settings.open_tokens()?,
            peers: Peers::new(settings.max_connections),
            waiting: Waiting::new(settings.max_waiting_for_messages()),
            budgets: Budgets::new(&settings),
            decoders: Arc::new(Semaphore::new(settings.num_decoders)),
            records: Records::new(settings.has_records),
            settings,
            versions: Versions::new(first),
            shared,
            decode,
            picture_cost,
            check_images,
            num_calls: AtomicUsize::new(0),
            crowd: Arc::default(),
            phase: watch::Sender::new(Phase::Warming),
            stop: Notify::new(),
            outcome: Mutex::new(None),
            ended: Condvar::new(),
        })
    }

    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    pub fn clock(&self) -> Clock {
        self.shared.clock
    }

    pub fn now_us(&self) -> u64 {
        self.shared.clock.now_us()
    }

    /// Images that wait for a batch, of all versions.
    pub fn num_waiting(&self) -> usize {
        self.versions.engines().iter().map(|engine| engine.num_waiting()).sum()
    }

    pub fn num_waiting_requests(&self) -> usize {
        self.versions.engines().iter().map(|engine| engine.num_waiting_requests()).sum()
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

    /// Whether a call may begin: there must be memory for it too.
    pub fn check_takes_calls(&self) -> Result<(), Status> {
        self.check_is_serving()?;
        self.budgets.check_is_open()
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

    /// Some(how it ended) once it has: Err has the reason why something admitted was not answered.
    pub fn wait(&self, timeout: Duration) -> Option<Result<(), String>> {
        let deadline = Instant::now() + timeout;
        let mut outcome = locked(&self.outcome);
        loop {
            if outcome.is_some() {
                return outcome.clone();
            }
            if let Some(hang) = self.versions.engines().iter().find_map(|engine| engine.unnoticed_hang()) {
                return Some(Err(hang.message));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            outcome = self
                .ended
                .wait_timeout(outcome, left)
                .map(|(outcome, _)| outcome)
                .unwrap_or_else(|poisoned| poisoned.into_inner().0);
        }
    }

    pub fn num_answered(&self) -> u64 {
        self.metrics().num_answered()
    }

    /// From the first connection to the last answer.
    pub async fn live(self: Arc<Self>) -> Result<(), String> {
        tokio::spawn(self.clone().dispatch_forever());
        tokio::spawn(self.shared.clone().deliver_forever());
        tokio::spawn(self.clone().look_after_forever());
        tokio::spawn(self.crowd.turns.clone().usher_forever());
        tokio::select! {
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

    /// Tells who waits.
    pub fn end(&self, outcome: Result<(), String>) {
        *locked(&self.outcome) = Some(outcome);
        self.ended.notify_all();
    }

    async fn drain(&self) -> Result<(), String> {
        self.phase.send_replace(Phase::Draining);
        sleep(self.settings.lame_duck()).await;
        self.phase.send_replace(Phase::Leaving);
        let deadline = Instant::now() + self.settings.drain_timeout();
        let mut in_time = Ok(());
        while self.num_calls.load(Relaxed) > 0 && self.shared.failure().is_none() {
            if Instant::now() >= deadline {
                let num_requests = self.num_calls.load(Relaxed);
                let timeout_s = self.settings.drain_timeout_s;
                in_time = Err(format!("DRAIN_TIMEOUT: {num_requests} requests were unanswered after {timeout_s} s"));
                break;
            }
            sleep(Duration::from_millis(2)).await;
        }
        let reason = match &in_time {
            Ok(()) => self.shared.failure().unwrap_or_else(Status::draining),
            Err(_) => Status::unavailable("DRAIN_TIMEOUT", "the server shut down first", "retry elsewhere"),
        };
        self.versions.engines().iter().for_each(|engine| engine.abandon(reason.clone()));
        let last_word = Instant::now() + Duration::from_secs(1); // for the last answers to be sent
        while !self.peers.is_empty() && Instant::now() < last_word {
            sleep(Duration::from_millis(2)).await;
        }
        match self.shared.failure() {
            Some(failure) => Err(failure.message),
            None => in_time,
        }
    }

    /// Ends what takes too long. Idle, it looks ten times a second.
    async fn look_after_forever(self: Arc<Self>) {
        let mut looked = Instant::now();
        loop {
            if looked.elapsed() > Duration::from_secs(1) {
                looked = Instant::now();
                self.tls.iter().for_each(Tls::look);
                self.tokens.iter().for_each(Tokens::look);
            }
            let is_idle = self.num_calls.load(Relaxed) == 0;
            sleep(Duration::from_millis(if is_idle { 100 } else { 20 })).await;
            self.versions.engines().iter().for_each(|engine| engine.tick());
            self.peers.cut_overdue(self.now_us(), (self.settings.write_timeout_s * 1e6) as u64);
        }
    }

    /// In seconds since 1970; None without TLS.
    pub fn certificate_expires_s(&self) -> Option<u64> {
        self.tls.as_ref().map(Tls::expires_s)
    }

    /// Serves a connection, unless there are as many as may be and none that is idle could make room.
    pub async fn serve(self: Arc<Self>, io: Box<dyn Io>, is_unix: bool) {
        let Some(peer) = self.peers.admit(self.now_us()) else { return };
        let number = peer.number;
        let io = match &self.tls {
            Some(tls) if !is_unix => tls.accept(io).await,
            _ => Some(io),
        };
        if let Some(io) = io {
            connection::serve(self.clone(), io, is_unix, peer).await;
        }
        self.peers.leave(number);
    }
}
