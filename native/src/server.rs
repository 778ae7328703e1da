//! What connections share, and how they end with the server's life.

use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use http::HeaderMap;
use pyo3::prelude::*;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use crate::budget::Budgets;
use crate::connection;
use crate::crowd::Crowd;
use crate::io::Io;
use crate::life::Life;
use crate::linger::Linger;
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::records::Records;
use crate::settings::Settings;
use crate::shared::{Clock, Shared, locked};
use crate::status::Status;
use crate::tls::Identity;
use crate::tokens::Tokens;
use crate::versions::{Served, Versions};
use crate::waiting::Waiting;

pub struct Server {
    pub settings: Settings,
    pub life: Arc<Life>,
    pub decode: Py<PyAny>,
    /// Of those who wait for a decoder, the first has the next.
    pub decoders: Arc<Semaphore>,
    pub picture_cost: Py<PyAny>,
    pub check_images: Py<PyAny>,
    /// None speaks plain text; None lets everybody call.
    pub identity: Mutex<Option<Arc<Identity>>>,
    pub tokens: Mutex<Option<Arc<Tokens>>>,
    pub waiting: Waiting,
    pub budgets: Budgets,
    pub crowd: Arc<Crowd>,
    pub records: Records,
    pub linger: Linger,
    peers: Peers,
    outcome: Mutex<Option<Result<(), String>>>,
    ended: Condvar,
}

impl Server {
    pub fn new(
        settings: Settings,
        shared: Arc<Shared>,
        first: Served,
        decode: Py<PyAny>,
        picture_cost: Py<PyAny>,
        check_images: Py<PyAny>,
    ) -> Self {
        let [lame_duck_us, drain_timeout_us] =
            [settings.lame_duck_s, settings.drain_timeout_s].map(|s| (s * 1e6).round() as u64);
        let life = Life::new(Versions::new(first), shared, lame_duck_us, drain_timeout_us);
        Self {
            identity: Mutex::default(),
            tokens: Mutex::default(),
            peers: Peers::new(settings.max_connections),
            waiting: Waiting::new(settings.max_waiting_for_messages()),
            budgets: Budgets::new(&settings),
            decoders: Arc::new(Semaphore::new(settings.num_decoders)),
            records: Records::new(settings.has_records),
            life: Arc::new(life),
            settings,
            decode,
            picture_cost,
            check_images,
            crowd: Arc::default(),
            linger: Linger::default(),
            outcome: Mutex::new(None),
            ended: Condvar::new(),
        }
    }

    pub fn metrics(&self) -> &Metrics {
        &self.life.shared.metrics
    }

    pub fn clock(&self) -> Clock {
        self.life.shared.clock
    }

    pub fn now_us(&self) -> u64 {
        self.life.now_us()
    }

    /// Images that wait for a batch, of all versions.
    pub fn num_waiting(&self) -> usize {
        self.life.versions.engines().iter().map(|engine| engine.num_waiting()).sum()
    }

    pub fn num_waiting_requests(&self) -> usize {
        self.life.versions.engines().iter().map(|engine| engine.num_waiting_requests()).sum()
    }

    /// Whether a call may begin: there must be memory for it too.
    pub fn check_takes_calls(&self) -> Result<(), Status> {
        self.life.check_is_serving()?;
        self.budgets.check_is_open()
    }

    /// Some(how it ended) once it has: Err has the reason why something admitted was not answered.
    pub fn wait(&self, timeout: Duration) -> Option<Result<(), String>> {
        let deadline = Instant::now() + timeout;
        let mut outcome = locked(&self.outcome);
        loop {
            if outcome.is_some() {
                return outcome.clone();
            }
            if let Some(hang) = self.life.versions.engines().iter().find_map(|engine| engine.unnoticed_hang()) {
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

    /// From the first connection to the last answer.
    pub async fn live(self: Arc<Self>) -> Result<(), String> {
        tokio::spawn(self.crowd.turns.clone().usher_forever());
        if thread::available_parallelism().is_ok_and(|num_cores| num_cores.get() > 1) {
            let server = self.clone(); // with one core it would only keep the client from asking
            tokio::spawn(async move { server.linger.stay_awake_forever(server.clock()).await });
        }
        let server = self.clone();
        let outcome = self.life.clone().live(move || server.cut_overdue()).await;
        let last_word = Instant::now() + Duration::from_secs(1); // for the last answers to be sent
        while !self.peers.is_empty() && Instant::now() < last_word {
            sleep(Duration::from_millis(2)).await;
        }
        outcome
    }

    /// Ends connections that take too long.
    fn cut_overdue(&self) {
        self.peers.cut_overdue(self.now_us(), (self.settings.write_timeout_s * 1e6) as u64);
    }

    /// Err if the call must carry a token, and carries none that is known.
    pub fn check_token(&self, headers: &HeaderMap) -> Result<(), Status> {
        let tokens = locked(&self.tokens).clone();
        tokens.map_or(Ok(()), |tokens| tokens.check(headers))
    }

    /// Tells who waits.
    pub fn end(&self, outcome: Result<(), String>) {
        *locked(&self.outcome) = Some(outcome);
        self.ended.notify_all();
    }

    /// In seconds since 1970; None without TLS.
    pub fn certificate_expires_s(&self) -> Option<u64> {
        locked(&self.identity).as_ref().map(|identity| identity.expires_s)
    }

    /// Serves a connection, unless there are as many as may be and none that is idle could make room.
    pub async fn serve(self: Arc<Self>, io: Box<dyn Io>, is_unix: bool) {
        let Some(peer) = self.peers.admit(self.now_us()) else { return };
        let number = peer.number;
        let identity = locked(&self.identity).clone().filter(|_| !is_unix);
        let io = match identity {
            Some(identity) => identity.accept(io).await,
            None => Some(io),
        };
        if let Some(io) = io {
            connection::serve(self.clone(), io, is_unix, peer).await;
        }
        self.peers.leave(number);
    }
}
