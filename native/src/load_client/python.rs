//! The load client, as Python sees it; atelier_native.pyi has the types.

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::replies::{self, Columns};
use super::{Call, LoadClient};
use crate::framing::framed;

type Bytes6<'py> = [Bound<'py, PyBytes>; 6];

#[pyclass(frozen, name = "LoadClient")]
struct PyLoadClient {
    client: LoadClient,
}

#[pymethods]
impl PyLoadClient {
    /// Connects when the first calls are made, each `num_connections`-th over the same connection.
    #[new]
    fn new(py: Python<'_>, target: &str, method: &str, num_connections: usize) -> PyResult<Self> {
        let now_ns = py.import("time")?.call_method0("monotonic_ns")?.extract()?;
        Ok(Self { client: LoadClient::start(target, method, num_connections, now_ns)? })
    }

    /// Makes the calls at once; or each when it is due, and returns when the last was. A call is given up `timeout_s`
    /// after it was due, sent or not; what cannot be sent within `late_s` of that is not sent.
    #[pyo3(signature = (numbers, messages, timeout_s, due_ns=None, late_s=None))]
    fn submit(
        &self,
        py: Python<'_>,
        numbers: PyBuffer<i64>,
        messages: Vec<Bound<'_, PyBytes>>,
        timeout_s: f64,
        due_ns: Option<PyBuffer<i64>>,
        late_s: Option<f64>,
    ) -> PyResult<()> {
        let timeout = Duration::from_secs_f64(timeout_s);
        let late = late_s.map_or(timeout, Duration::from_secs_f64);
        let numbers = numbers.to_vec(py)?;
        let due = match due_ns {
            Some(due_ns) => due_ns.to_vec(py)?.into_iter().map(|ns| self.client.instant(ns)).collect(),
            None => vec![Instant::now(); numbers.len()],
        };
        if numbers.len() != messages.len() || due.len() != messages.len() {
            let what = format!("{} numbers, {} messages, {} times", numbers.len(), messages.len(), due.len());
            return Err(PyValueError::new_err(what));
        }
        let mut known = HashMap::new(); // a message that is sent many times is copied once
        let framed: Vec<Bytes> = messages
            .iter()
            .map(|message| known.entry(message.as_ptr()).or_insert_with(|| framed(message.as_bytes())).clone())
            .collect();
        let call =
            |((number, framed), due)| (due, Call { number, framed, latest: due + late, deadline: due + timeout });
        let calls = numbers.into_iter().zip(framed).zip(due).map(call).collect();
        if py.detach(|| self.pace(calls)) { Ok(()) } else { Err(PyValueError::new_err("the client is closed")) }
    }

    /// What became of calls since the last time, as (numbers, sent_ns, done_ns, codes, replies, ends); waits for some.
    fn take<'py>(&self, py: Python<'py>, timeout_s: f64) -> Bytes6<'py> {
        let taken = py.detach(|| self.client.take(Duration::from_secs_f64(timeout_s)));
        [taken.numbers, taken.sent_ns, taken.done_ns, taken.codes, taken.replies, taken.ends]
            .map(|column| PyBytes::new(py, &column))
    }

    /// Gives up what is under way, and ends the connections.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.client.close());
    }
}

impl PyLoadClient {
    /// Hands over what is due, all of it at once, until there is no more; False if the client is closed.
    fn pace(&self, calls: Vec<(Instant, Call)>) -> bool {
        let mut calls = calls.into_iter().peekable();
        while let Some((due, _)) = calls.peek() {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let now = Instant::now();
            let mut ready = Vec::new();
            while let Some((_, call)) = calls.next_if(|(due, _)| *due <= now) {
                ready.push(call);
            }
            if !self.client.submit(ready) {
                return false;
            }
        }
        true
    }
}

/// See replies.rs: (is_read, labels, probabilities, times).
#[pyfunction]
fn classifications<'py>(
    py: Python<'py>,
    replies: &[u8],
    ends: &[u8],
    num_images: usize,
    top_k: usize,
) -> [Bound<'py, PyBytes>; 4] {
    let Columns { is_read, labels, numbers, times } =
        py.detach(|| replies::classifications(replies, ends, num_images, top_k));
    [is_read, labels, numbers, times].map(|column| PyBytes::new(py, &column))
}

/// See replies.rs: (is_read, logits).
#[pyfunction]
fn logits<'py>(py: Python<'py>, replies: &[u8], ends: &[u8], num_images: usize) -> [Bound<'py, PyBytes>; 2] {
    let Columns { is_read, numbers, .. } = py.detach(|| replies::logits(replies, ends, num_images));
    [is_read, numbers].map(|column| PyBytes::new(py, &column))
}

pub fn add_to(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyLoadClient>()?;
    module.add_function(wrap_pyfunction!(classifications, module)?)?;
    module.add_function(wrap_pyfunction!(logits, module)?)
}
