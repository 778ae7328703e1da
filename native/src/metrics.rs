//! What the server counts. The names, labels and buckets of the page are in metrics_page.rs.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::shared::locked;
use crate::status::Code;

/// 100 us to 5 s.
pub const DURATION_BOUNDS_US: [u64; 15] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000,
];
pub const BATCH_SIZE_BOUNDS: [u64; 11] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Classify,
    GetModel,
    /// Of the Open Inference Protocol, over gRPC and over HTTP.
    ModelInfer,
    /// Health, metadata, reflection, and what does not exist.
    Other,
}

impl Method {
    pub fn has_images(self) -> bool {
        matches!(self, Self::Classify | Self::ModelInfer)
    }
}

#[derive(Debug)]
pub struct Histogram {
    pub bounds: &'static [u64],
    /// Of each bucket; the last is +Inf's.
    pub counts: Vec<AtomicU64>,
    pub sum: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [u64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum: AtomicU64::new(0) }
    }

    pub fn observe(&self, value: u64) {
        let bucket = self.bounds.partition_point(|&bound| bound < value);
        self.counts[bucket].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }
}

/// Numbers that only grow, from the server's start.
#[derive(Debug)]
pub struct Metrics {
    pub calls: [[AtomicU64; 17]; 4], // by method and code
    pub images: AtomicU64,           // answered
    pub undelivered: AtomicU64,      // answers whose client had gone
    pub version_swaps: AtomicU64,
    pub versions_refused: Mutex<BTreeMap<String, u64>>, // by the reason's word
    pub batches: AtomicU64,
    pub failed_batches: AtomicU64,
    pub batch_size: Histogram,
    pub queue: Histogram,
    pub inference: Histogram,
    pub request: Histogram,
    /// What batches took on the device, once for each of their requests: as Triton adds it up.
    pub compute_us: AtomicU64,
}

impl Metrics {
    pub fn new() -> Self {
        let durations = || Histogram::new(&DURATION_BOUNDS_US);
        Self {
            calls: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
            images: AtomicU64::new(0),
            undelivered: AtomicU64::new(0),
            version_swaps: AtomicU64::new(0),
            versions_refused: Mutex::default(),
            batches: AtomicU64::new(0),
            failed_batches: AtomicU64::new(0),
            batch_size: Histogram::new(&BATCH_SIZE_BOUNDS),
            queue: durations(),
            inference: durations(),
            request: durations(),
            compute_us: AtomicU64::new(0),
        }
    }

    pub fn count_call(&self, method: Method, code: Code) {
        self.calls[method as usize][code as usize].fetch_add(1, Relaxed);
    }

    pub fn count_refused_version(&self, word: String) {
        *locked(&self.versions_refused).entry(word).or_default() += 1;
    }

    /// Of each code, the calls that are inferences.
    pub fn num_inferences(&self) -> impl Iterator<Item = u64> {
        let [classify, infer] = [Method::Classify, Method::ModelInfer].map(|method| &self.calls[method as usize]);
        classify.iter().zip(infer).map(|(one, other)| one.load(Relaxed) + other.load(Relaxed))
    }

    pub fn num_answered(&self) -> u64 {
        self.num_inferences().next().unwrap_or(0)
    }
}
