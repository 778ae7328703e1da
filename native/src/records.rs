//! Calls that have ended, for Python to tell of: kept only where somebody wants to hear of them.

use std::sync::{Mutex, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use http::Request;

use crate::response::TimeSplit;
use crate::shared::locked;
use crate::status::Code;

/// Python comes by four times a second. What it does not fetch in time is counted and forgotten.
const MAX_KEPT: usize = 50_000;
/// Longest that a path or a header is kept of.
const MAX_PATH: usize = 200;

/// What Python's CallRecord has: method, status, version, images, end (Unix time in ns), the microseconds of the call, of
/// the queue and of the run, the batch, and traceparent.
pub type Record = (String, u8, String, usize, u64, u64, u64, u64, u64, String);

/// A call that is to be told of.
#[derive(Debug)]
pub struct Begun {
    path: String,
    traceparent: String,
    began_us: u64,
    /// Once the model has run for it.
    pub ran: OnceLock<Ran>,
}

#[derive(Debug, Default)]
pub struct Ran {
    pub version: String,
    pub num_images: usize,
    pub time: TimeSplit,
}

impl Begun {
    pub fn new<B>(request: &Request<B>, now_us: u64) -> Self {
        let path = request.uri().path().trim_start_matches('/').chars().take(MAX_PATH).collect();
        let header = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
        let header = header.filter(|header| header.len() <= MAX_PATH);
        Self { path, traceparent: header.unwrap_or_default().into(), began_us: now_us, ran: OnceLock::new() }
    }

    fn ended(self, code: Code, now_us: u64) -> Record {
        let ended_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        let Ran { version, num_images, time } = self.ran.into_inner().unwrap_or_default();
        let took_us = now_us - self.began_us;
        let TimeSplit { queue_us, inference_us, batch_size } = time;
        let (path, traceparent) = (self.path, self.traceparent);
        (path, code as u8, version, num_images, ended_ns, took_us, queue_us, inference_us, batch_size, traceparent)
    }
}

#[derive(Debug)]
pub struct Records {
    pub are_wanted: bool,
    kept: Mutex<(Vec<Record>, u64)>,
}

impl Records {
    pub fn new(are_wanted: bool) -> Self {
        Self { are_wanted, kept: Mutex::default() }
    }

    pub fn keep(&self, begun: Begun, code: Code, now_us: u64) {
        let (records, num_lost) = &mut *locked(&self.kept);
        if records.len() < MAX_KEPT {
            records.push(begun.ended(code, now_us));
        } else {
            *num_lost += 1;
        }
    }

    /// Those since the last time, and how many more there were.
    pub fn take(&self) -> (Vec<Record>, u64) {
        std::mem::take(&mut *locked(&self.kept))
    }
}
