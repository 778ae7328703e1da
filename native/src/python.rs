//! The module `atelier_native`, as Python sees it; atelier_native.pyi has its types.

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::batching::Limits;
use crate::engine::Engine;
use crate::listeners::{self, Listener};
use crate::model::{Model, attached};
use crate::response::ResponseWriter;
use crate::server::{ServedModel, Server};
use crate::settings::Settings;
use crate::{metrics_page, serving};

#[pyclass(frozen, name = "Server")]
struct PyServer {
    server: Arc<Server>,
    num_instances: usize,
}

#[pymethods]
impl PyServer {
    /// `models`: for each instance its buffer for max_batch_size images, and `run(n) -> logits | None`.
    #[new]
    #[allow(clippy::too_many_arguments)] // Python names them
    #[pyo3(signature = (settings, models, decode, check_images, *, name, version, classes, description))]
    fn new(
        settings: Settings,
        models: Vec<(PyBuffer<u8>, Py<PyAny>)>,
        decode: Py<PyAny>,
        check_images: Py<PyAny>,
        name: String,
        version: String,
        classes: Vec<String>,
        description: Vec<u8>,
    ) -> PyResult<Self> {
        let num_instances = models.len();
        let limits = Limits {
            max_batch_size: settings.max_batch_size,
            max_queue_size: settings.max_queue_size,
            hang_timeout_us: (settings.hang_timeout_s * 1e6) as u64,
            num_instances,
        };
        let models = models.into_iter().map(|(images, run)| Model::new(images, run)).collect();
        let writer = ResponseWriter::new(&name, &version, &classes);
        let engine = Arc::new(Engine::new(limits, models, writer, settings.max_inline_us));
        let server = Server::new(settings, engine, ServedModel { name, version, description }, decode, check_images)?;
        Ok(Self { server: Arc::new(server), num_instances })
    }

    /// Opens what it is to listen on, and begins to accept; returns the addresses, those of the metrics behind.
    fn start(&self) -> PyResult<(Vec<String>, Vec<String>)> {
        let settings = &self.server.settings;
        let (calls, scrapes) = (open_all(&settings.listen)?, open_all(&settings.metrics_listen)?);
        let addresses = (addresses_of(&calls)?, addresses_of(&scrapes)?);
        let server = self.server.clone();
        thread::Builder::new().name("calls".into()).spawn(move || attached(|| serving::run(server, calls, scrapes)))?;
        Ok(addresses)
    }

    /// Measures the model at these batch sizes, gives every instance its thread, and says SERVING.
    fn set_serving(&self, py: Python<'_>, batch_sizes: Vec<usize>) -> PyResult<()> {
        let engine = &self.server.engine;
        py.detach(|| engine.rehearse(&batch_sizes)).map_err(|status| PyRuntimeError::new_err(status.message))?;
        for instance in 0..self.num_instances {
            let engine = engine.clone();
            thread::Builder::new().name("device".into()).spawn(move || engine.work_on(instance))?;
        }
        self.server.set_warm();
        Ok(())
    }

    /// Begins the drain; `wait` tells its end.
    fn stop(&self) {
        self.server.stop();
    }

    /// None while it serves or drains; "" when all that was admitted has been answered, else the reason why not.
    fn wait(&self, py: Python<'_>, timeout_s: f64) -> Option<String> {
        let timeout = Duration::from_secs_f64(timeout_s);
        py.detach(|| self.server.wait(timeout)).map(|outcome| outcome.err().unwrap_or_default())
    }

    /// Requests and images that were answered, and images that wait.
    fn counts(&self) -> (u64, u64, usize) {
        let images = self.server.metrics().images.load(std::sync::atomic::Ordering::Relaxed);
        (self.server.num_answered(), images, self.server.engine.num_waiting())
    }

    /// The page for Prometheus.
    fn metrics(&self) -> String {
        metrics_page::text(&self.server)
    }
}

fn open_all(addresses: &[String]) -> PyResult<Vec<Listener>> {
    let mut opened = Vec::new();
    for address in addresses {
        match address.strip_prefix("fd:").map(str::parse) {
            Some(number) => opened.push(listeners::inherited(owned(number?))?),
            None => opened.extend(listeners::open(address)?),
        }
    }
    Ok(opened)
}

/// The one thing that the compiler must take on trust: whoever names a descriptor hands it over.
#[allow(unsafe_code)]
fn owned(number: i32) -> OwnedFd {
    // SAFETY: Python's side duplicates the descriptor for us and does not use the copy.
    unsafe { OwnedFd::from_raw_fd(number) }
}

fn addresses_of(listeners: &[Listener]) -> PyResult<Vec<String>> {
    Ok(listeners.iter().map(Listener::address).collect::<std::io::Result<_>>()?)
}

#[pymodule]
fn atelier_native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyServer>()?;
    crate::load_client::add_to(module)
}
