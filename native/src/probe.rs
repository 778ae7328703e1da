//! The probe of a device that nobody has asked for a while: one image whose logits are known. So SERVING rests on a batch
//! that has really run, also where no client's has.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;

use crate::batching::Batch;
use crate::job::{Job, Wanted};
use crate::model::Ran;
use crate::response::NUM_CLASSES;
use crate::status::Status;

/// After one that failed the next comes soon: as many in a row as may fail decide.
const DOUBT: Duration = Duration::from_secs(1);
/// The same device, image and batch size: what rounds otherwise is less than this, of 1 and of the logit.
const TOLERANCE: f32 = 1e-3;

pub struct Probe {
    job: Arc<Job>,
    /// What the model gave before it served.
    expected: OnceLock<Vec<f32>>,
    after: Duration,
    is_in_doubt: AtomicBool,
}

impl Probe {
    pub fn new(image: Bytes, after_s: f64) -> Self {
        let job = Arc::new(Job::new(image, Wanted::Logits, None));
        let (after, is_in_doubt) = (Duration::from_secs_f64(after_s), AtomicBool::new(false));
        Self { job, expected: OnceLock::new(), after, is_in_doubt }
    }

    /// The image, so many times.
    pub fn images(&self, count: usize) -> Bytes {
        self.job.images.repeat(count).into()
    }

    pub fn job(&self) -> Arc<Job> {
        self.job.clone()
    }

    /// The first are kept.
    pub fn expect(&self, ran: &Ran) {
        self.expected.get_or_init(|| ran.logits.clone());
    }

    /// For so long the device may be idle.
    pub fn patience(&self) -> Duration {
        if self.is_in_doubt.load(Relaxed) { DOUBT.min(self.after) } else { self.after }
    }

    pub fn is_of(&self, batch: &Batch<Arc<Job>>) -> bool {
        batch.parts.iter().any(|part| Arc::ptr_eq(&part.payload, &self.job))
    }

    /// How its batch went: one with other logits has failed.
    pub fn checked(&self, result: Result<Ran, Status>) -> Result<Ran, Status> {
        let result = result.and_then(|ran| if self.is_right(&ran.logits) { Ok(ran) } else { Err(other_logits()) });
        self.is_in_doubt.store(result.is_err(), Relaxed);
        result
    }

    fn is_right(&self, logits: &[f32]) -> bool {
        let Some(expected) = self.expected.get() else { return true };
        let is_near = |(here, then): (&f32, &f32)| (here - then).abs() <= TOLERANCE * (1.0 + then.abs());
        logits.len() == NUM_CLASSES && logits.iter().zip(expected).all(is_near)
    }
}

fn other_logits() -> Status {
    Status::internal("BAD_PROBE", "the device gives other logits for an image than at first", "")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn ran(logits: Vec<f32>) -> Ran {
        Ran::of(logits, BTreeMap::new())
    }

    // fault: S51
    #[test]
    fn other_logits_are_a_failure_and_bring_the_next_probe_forward() {
        let probe = Probe::new(vec![7; 784].into(), 10.0);
        assert_eq!(probe.images(3), vec![7; 3 * 784]);
        assert!(probe.checked(Ok(ran(vec![0.0; 10]))).is_ok()); // nothing is expected yet
        probe.expect(&ran(vec![5.0; 10]));
        probe.expect(&ran(vec![9.0; 10]));
        assert!(probe.checked(Ok(ran(vec![5.001; 10]))).is_ok());
        assert_eq!(probe.patience(), Duration::from_secs(10));
        let mut off = vec![5.0; 10];
        off[9] = 5.1;
        for logits in [off, vec![f32::NAN; 10], vec![5.0; 9]] {
            assert_eq!(probe.checked(Ok(ran(logits))).err().unwrap().message.split(':').next(), Some("BAD_PROBE"));
            assert_eq!(probe.patience(), DOUBT);
        }
        assert!(probe.checked(Err(other_logits())).is_err());
        assert!(probe.checked(Ok(ran(vec![5.0; 10]))).is_ok());
        assert_eq!(probe.patience(), Duration::from_secs(10));
    }
}
