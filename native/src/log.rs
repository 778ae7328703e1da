//! The server's log, which is Python's: what its stream does not take is dropped, and nobody waits for a reader.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::status::Status;

/// Of what nobody else is told.
pub fn failure(status: &Status) {
    let _ = Python::try_attach(|py| error(py, &status.message)); // a simulation has no Python
}

pub fn error(py: Python<'_>, text: &str) {
    let _ = write(py, text, None);
}

/// With the traceback of what Python raised.
pub fn exception(py: Python<'_>, text: &str, raised: &PyErr) {
    let _ = write(py, text, Some(raised));
}

fn write(py: Python<'_>, text: &str, raised: Option<&PyErr>) -> PyResult<()> {
    let logger = py.import("logging")?.call_method1("getLogger", ("serving.frontends.native",))?;
    let options = PyDict::new(py);
    options.set_item("exc_info", raised.map(|raised| raised.value(py)))?;
    logger.call_method("error", ("%s", text), Some(&options)).map(drop)
}
