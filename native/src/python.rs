//! The module `atelier_native`, as Python sees it; atelier_native.pyi has its types.

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use crate::batching::Limits;
use crate::engine::Engine;
use crate::model::{PythonModel, attached};
use crate::probe::Probe;
use crate::records::Record;
use crate::response::ResponseWriter;
use crate::server::Server;
use crate::serving;
use crate::settings::Settings;
use crate::shared::{Shared, locked};
use crate::tls::Identity;
use crate::tokens::Tokens;
use crate::versions::{self, Served};

/// A version of the model, as Python hands it over.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Version {
    /// A buffer for max_batch_size images.
    images: PyBuffer<u8>,
    /// `run(n) -> logits | None`, of the first n images in it.
    run: Py<PyAny>,
    /// Frees the device, on the thread that has run the model.
    close: Py<PyAny>,
    name: String,
    version: String,
    classes: Vec<String>,
    description: Vec<u8>,
    config: Vec<u8>,
    /// What the metrics page says of it.
    labels: Vec<(String, String)>,
    /// An image to try the device with.
    probe: Vec<u8>,
}

impl Version {
    fn served(self, settings: &Settings, shared: Arc<Shared>) -> Served {
        let Self { images, run, close, name, version, classes, description, config, labels, probe } = self;
        let model = PythonModel::new(images, run, close);
        let limits = Limits {
            max_batch_size: model.max_batch_size(),
            max_queue_size: settings.max_queue_size,
            hang_timeout_us: (settings.hang_timeout_s * 1e6) as u64,
        };
        let writer = ResponseWriter::new(&name, &version, &classes);
        let probe = Probe::new(probe.into(), settings.probe_after_s);
        let engine = Arc::new(Engine::new(shared, limits, Box::new(model), writer, probe, settings.max_inline_us));
        Served { model: versions::Model { name, version, classes, description, config, labels }, engine }
    }
}

#[pyclass(frozen, name = "Server")]
struct PyServer {
    server: Arc<Server>,
}

#[pymethods]
impl PyServer {
    #[new]
    fn new(
        settings: Settings,
        version: Version,
        decode: Py<PyAny>,
        picture_cost: Py<PyAny>,
        check_images: Py<PyAny>,
    ) -> Self {
        let shared = Arc::new(Shared::new());
        let first = version.served(&settings, shared.clone());
        let server = Server::new(settings, shared, first, decode, picture_cost, check_images);
        Self { server: Arc::new(server) }
    }

    /// Speaks TLS with these from now on, in PEM; ValueError for what cannot be used, and nothing changes.
    fn set_identity(&self, chain: &[u8], key: &[u8], authority: Option<&[u8]>, expires_s: u64) -> PyResult<()> {
        let identity = Identity::new(chain, key, authority, expires_s).map_err(PyValueError::new_err)?;
        *locked(&self.server.identity) = Some(Arc::new(identity));
        Ok(())
    }

    /// Wants a token with one of these SHA-256 digests from now on.
    fn set_tokens(&self, digests: Vec<[u8; 32]>) {
        *locked(&self.server.tokens) = Some(Arc::new(Tokens(digests)));
    }

    /// Begins to accept, on sockets that listen: their descriptors are handed over, those of the metrics behind.
    fn start(&self, sockets: Vec<i32>, metrics_sockets: Vec<i32>) -> PyResult<()> {
        let [calls, scrapes] = [sockets, metrics_sockets].map(|numbers| numbers.into_iter().map(owned).collect());
        let server = self.server.clone();
        thread::Builder::new().name("calls".into()).spawn(move || attached(|| serving::run(server, calls, scrapes)))?;
        Ok(())
    }

    /// Measures the model at these batch sizes, gives it its thread, and says SERVING.
    fn set_serving(&self, py: Python<'_>, batch_sizes: Vec<usize>) -> PyResult<()> {
        start(py, &self.server.life.versions.current().engine, &batch_sizes)?;
        self.server.life.set_warm();
        Ok(())
    }

    /// Measures this version too, gives it a thread, and serves it from now on; the one before stays.
    fn swap(&self, py: Python<'_>, version: Version, batch_sizes: Vec<usize>) -> PyResult<()> {
        let served = version.served(&self.server.settings, self.server.life.shared.clone());
        start(py, &served.engine, &batch_sizes)?;
        py.detach(|| self.server.life.versions.swap(served));
        self.server.metrics().version_swaps.fetch_add(1, Relaxed);
        Ok(())
    }

    /// The same, but serves it only to calls that ask for it.
    fn keep(&self, py: Python<'_>, version: Version, batch_sizes: Vec<usize>) -> PyResult<()> {
        let served = version.served(&self.server.settings, self.server.life.shared.clone());
        start(py, &served.engine, &batch_sizes)?;
        py.detach(|| self.server.life.versions.keep(served));
        Ok(())
    }

    fn count_refused_version(&self, word: String) {
        self.server.metrics().count_refused_version(word);
    }

    /// How short memory is: 1 refuses what is large, 2 all calls.
    fn set_pressure(&self, pressure: u8) {
        self.server.budgets.set_pressure(pressure);
    }

    /// Begins the drain; `wait` tells its end.
    fn stop(&self) {
        self.server.life.stop();
    }

    /// None while it serves or drains; "" when all that was admitted has been answered, else the reason why not.
    fn wait(&self, py: Python<'_>, timeout_s: f64) -> Option<String> {
        let timeout = Duration::from_secs_f64(timeout_s);
        py.detach(|| self.server.wait(timeout)).map(|outcome| outcome.err().unwrap_or_default())
    }

    /// The calls that have ended since the last time, where the settings have records; and how many more there were.
    fn take_records(&self) -> (Vec<Record>, u64) {
        self.server.records.take()
    }

    /// Requests and images that were answered, and images that wait.
    fn counts(&self) -> (u64, u64, usize) {
        let metrics = self.server.metrics();
        (metrics.num_answered(), metrics.images.load(Relaxed), self.server.num_waiting())
    }
}

/// An engine measures its model, and its device's thread begins.
fn start(py: Python<'_>, engine: &Arc<Engine>, batch_sizes: &[usize]) -> PyResult<()> {
    py.detach(|| engine.rehearse(batch_sizes)).map_err(|status| PyRuntimeError::new_err(status.message))?;
    let engine = engine.clone();
    thread::Builder::new().name("device".into()).spawn(move || attached(|| engine.work()))?;
    Ok(())
}

/// The one thing that the compiler must take on trust: whoever names a descriptor hands it over.
#[allow(unsafe_code)]
fn owned(number: i32) -> OwnedFd {
    // SAFETY: Python's side duplicates the descriptor for us and does not use the copy.
    unsafe { OwnedFd::from_raw_fd(number) }
}

#[pymodule]
fn atelier_native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyServer>()?;
    crate::load_client::add_to(module)
}
