//! What runs batches. The one that serves is in Python: one call a batch, between two buffers of NumPy's.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::batching::Batch;
use crate::job::Job;
use crate::log;
use crate::response::NUM_CLASSES;
use crate::status::{Code, Status};

pub const IMAGE_BYTES: usize = 28 * 28;

pub trait Model: Send + Sync {
    /// One batch, on any thread that has been attached before: see `attached`.
    fn run(&self, batch: &Batch<Arc<Job>>) -> Result<Ran, Status>;

    /// Nothing is run any more.
    fn free(&self);
}

pub struct PythonModel {
    /// max_batch_size images, which Python's `run` reads.
    images: PyBuffer<u8>,
    /// `run(n)`: the logits of the first n images, (n, 10) float32; where some failed, a tuple of these and of which and why.
    run: Py<PyAny>,
    /// Frees the device.
    close: Py<PyAny>,
}

/// What became of a batch, of which at least one image has logits.
pub struct Ran {
    pub logits: Vec<f32>,
    /// Why images, by their place in the batch, have none.
    failures: BTreeMap<usize, Status>,
}

impl Ran {
    #[cfg(test)]
    pub fn of(logits: Vec<f32>, failures: BTreeMap<usize, Status>) -> Self {
        Self { logits, failures }
    }

    /// Why one of these images has no logits.
    pub fn failure(&self, places: Range<usize>) -> Option<&Status> {
        self.failures.range(places).next().map(|(_, status)| status)
    }
}

/// Of an image that failed: its place, whether for lack of memory, and word, what and cure.
type Failure = (usize, bool, String, String, String);

impl Model for PythonModel {
    fn run(&self, batch: &Batch<Arc<Job>>) -> Result<Ran, Status> {
        Python::attach(|py| self.ran(py, batch))
    }

    fn free(&self) {
        Python::attach(|py| {
            if let Err(error) = self.close.call0(py) {
                log::exception(py, "the device could not be freed", &error);
            }
        });
    }
}

impl PythonModel {
    pub fn new(images: PyBuffer<u8>, run: Py<PyAny>, close: Py<PyAny>) -> Self {
        Self { images, run, close }
    }

    pub fn max_batch_size(&self) -> usize {
        self.images.item_count() / IMAGE_BYTES
    }

    fn ran(&self, py: Python<'_>, batch: &Batch<Arc<Job>>) -> Result<Ran, Status> {
        self.fill(py, batch).ok_or_else(failed)?;
        let told = |error: PyErr| {
            log::exception(py, "a batch failed", &error);
            failed()
        };
        let answer = self.run.call1(py, (batch.num_images,)).map_err(told)?.into_bound(py);
        let (logits, failures): (_, Vec<Failure>) =
            if answer.is_instance_of::<PyTuple>() { answer.extract().map_err(told)? } else { (answer, Vec::new()) };
        let failures = failures.into_iter().map(|(place, is_memory, word, what, cure)| {
            let code = if is_memory { Code::ResourceExhausted } else { Code::Internal };
            (place, Status::new(code, &word, what, &cure))
        });
        checked(&logits, batch.num_images, failures.collect()).inspect_err(|status| log::error(py, &status.message))
    }

    fn fill(&self, py: Python<'_>, batch: &Batch<Arc<Job>>) -> Option<()> {
        let mut rest = self.images.as_mut_slice(py)?;
        for part in &batch.parts {
            let images = part.payload.images.get(part.start * IMAGE_BYTES..part.stop * IMAGE_BYTES)?;
            let (cells, behind) = rest.split_at_checked(images.len())?;
            cells.iter().zip(images).for_each(|(cell, &byte)| cell.set(byte));
            rest = behind;
        }
        Some(())
    }
}

/// Makes the thread known to Python for as long as `life` lasts: attaching is then only to take its lock.
pub fn attached<T: Send>(life: impl FnOnce() -> T + Send) -> T {
    Python::attach(|py| py.detach(life))
}

/// Adds the images whose logits are not finite to the failures: the largest of NaN would be a confident answer.
fn checked(answer: &Bound<'_, PyAny>, num_images: usize, mut failures: BTreeMap<usize, Status>) -> Result<Ran, Status> {
    let bad = |what: String| Status::internal("BAD_OUTPUT", what, "");
    let Ok(buffer) = PyBuffer::<f32>::get(answer) else {
        return Err(bad("the backend answered with what is no array of float32".into()));
    };
    if buffer.shape() != [num_images, NUM_CLASSES] {
        let shape: Vec<String> = buffer.shape().iter().map(usize::to_string).collect();
        let what = format!("the backend answered with shape ({}), expected ({num_images}, 10)", shape.join(", "));
        return Err(bad(what));
    }
    let logits = buffer.to_vec(answer.py()).map_err(|_| failed())?;
    if !logits.iter().all(|logit| logit.is_finite()) {
        let status = bad("the backend answered with logits that are not finite".into());
        log::error(answer.py(), &status.message);
        let rows = logits.chunks_exact(NUM_CLASSES).enumerate();
        let places = rows.filter(|(_, row)| !row.iter().all(|logit| logit.is_finite())).map(|(place, _)| place);
        failures.extend(places.map(|place| (place, status.clone())));
    }
    if failures.len() < num_images {
        Ok(Ran { logits, failures })
    } else {
        Err(failures.remove(&0).unwrap_or_else(failed))
    }
}

fn failed() -> Status {
    Status::internal("BACKEND_FAILED", "the model could not be run on this batch", "see the server's log")
}
