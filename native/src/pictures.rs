//! Encoded pictures, decoded by Python, on two threads and within bounds.
#![forbid(unsafe_code)]

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::aside::done_aside;
use crate::budget::Hold;
use crate::call::Call;
use crate::log;
use crate::model::IMAGE_BYTES;
use crate::server::Server;
use crate::status::Status;

/// Enough to know every kind of file by.
const BEGINNING_BYTES: usize = 1024;

/// The images, end to end. One picture at a time: other requests' have their turn between them.
pub async fn decoded(call: &Call, pictures: Vec<Bytes>, invert: bool) -> Result<Bytes, Status> {
    let hold = Arc::new(held(call, &pictures)?);
    let mut images = BytesMut::with_capacity(pictures.len() * IMAGE_BYTES);
    for (index, picture) in pictures.into_iter().enumerate() {
        let (server, deadline_us, hold) = (call.server.clone(), call.deadline_us, hold.clone());
        let image = done_aside(move || {
            let _hold = hold; // also of a client that has gone, until this is taken out of the threads' queue
            if server.now_us() >= deadline_us {
                let what = format!("the deadline passed after {index} pictures were decoded");
                return Err(Status::expired("EXPIRED", what));
            }
            decode(&server.decode, &picture, index, invert)
        });
        images.extend_from_slice(&image.await??);
    }
    Ok(images.freeze())
}

fn held(call: &Call, pictures: &[Bytes]) -> Result<[Hold; 2], Status> {
    let (budgets, peer) = (&call.server.budgets, call.peer.number);
    let num_bytes = pictures.iter().map(Bytes::len).sum();
    Ok([budgets.pictures.take(peer, pictures.len())?, budgets.picture_bytes.take(peer, num_bytes)?])
}

/// Python's `decode(picture, index, invert)`: the image's bytes, or the message for the client.
fn decode(decode: &Py<PyAny>, picture: &[u8], index: usize, invert: bool) -> Result<Vec<u8>, Status> {
    Python::attach(|py| {
        let answer = decode.call1(py, (PyBytes::new(py, picture), index, invert)).map_err(|error| {
            log::exception(py, "a picture could not be decoded", &error);
            failed()
        })?;
        if let Ok(image) = answer.extract::<Vec<u8>>(py) {
            return if image.len() == IMAGE_BYTES { Ok(image) } else { Err(failed()) };
        }
        let (word, what, cure) = answer.extract::<(String, String, String)>(py).map_err(|_| failed())?;
        Err(Status::invalid(&word, what, &cure))
    })
}

/// Python's `check_images(beginning, num_bytes)`: the message for who sends something else than raw images.
pub fn check_raw(server: &Server, images: &[u8]) -> Result<(), Status> {
    let beginning = &images[..images.len().min(BEGINNING_BYTES)];
    let found = Python::attach(|py| {
        let answer = server.check_images.call1(py, (PyBytes::new(py, beginning), images.len()));
        answer.and_then(|answer| answer.extract::<Option<(String, String, String)>>(py)).map_err(|error| {
            log::exception(py, "raw images could not be checked", &error);
            failed()
        })
    })?;
    found.map_or(Ok(()), |(word, what, cure)| Err(Status::invalid(&word, what, &cure)))
}

fn failed() -> Status {
    Status::internal("INTERNAL", "the server failed on this request", "see the server's log")
}
