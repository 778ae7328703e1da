//! Encoded pictures, decoded by Python, on two threads and within bounds.
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::engine::locked;
use crate::model::IMAGE_BYTES;
use crate::server::Server;
use crate::status::Status;

/// Of more, decoding takes long; requests of so many may take up half of the queue.
const MANY_PICTURES: usize = 16;
/// Enough to know every kind of file by.
const BEGINNING_BYTES: usize = 1024;

/// What waits to be decoded, of all calls.
#[derive(Debug, Default)]
pub struct Decoding {
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    num_pictures: usize,
    num_bytes: usize,
}

/// The images, end to end. One picture at a time: other requests' have their turn between them.
pub async fn decoded(
    server: &Arc<Server>,
    pictures: Vec<Bytes>,
    invert: bool,
    deadline_us: u64,
) -> Result<Bytes, Status> {
    let _place = Place::take(server, &pictures)?;
    let mut images = BytesMut::with_capacity(pictures.len() * IMAGE_BYTES);
    for (index, picture) in pictures.into_iter().enumerate() {
        if server.engine.now_us() >= deadline_us {
            return Err(Status::expired("EXPIRED", format!("the deadline passed after {index} pictures were decoded")));
        }
        let decoding = server.clone();
        let image = tokio::task::spawn_blocking(move || decode(&decoding.decode, &picture, index, invert));
        images.extend_from_slice(&image.await.map_err(|_| failed())??);
    }
    Ok(images.freeze())
}

/// Python's `decode(picture, index, invert)`: the image's bytes, or the message for the client.
fn decode(decode: &Py<PyAny>, picture: &[u8], index: usize, invert: bool) -> Result<Vec<u8>, Status> {
    Python::attach(|py| {
        let answer = decode.call1(py, (PyBytes::new(py, picture), index, invert)).map_err(|error| {
            error.print(py);
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
            error.print(py);
            failed()
        })
    })?;
    found.map_or(Ok(()), |(word, what, cure)| Err(Status::invalid(&word, what, &cure)))
}

fn failed() -> Status {
    Status::internal("INTERNAL", "the server failed on this request", "see the server's log")
}

struct Place<'a> {
    decoding: &'a Decoding,
    num_pictures: usize,
    num_bytes: usize,
}

impl<'a> Place<'a> {
    fn take(server: &'a Server, pictures: &[Bytes]) -> Result<Self, Status> {
        let settings = &server.settings;
        let (num_pictures, num_bytes) = (pictures.len(), pictures.iter().map(Bytes::len).sum::<usize>());
        let mut limit = settings.max_queue_size;
        if num_pictures > MANY_PICTURES {
            limit = (limit / 2).max(settings.max_images_per_request); // the rest is for small requests
        }
        let mut held = locked(&server.decoding.held);
        if held.num_pictures + num_pictures > limit {
            let waiting = held.num_pictures;
            let what = format!("{waiting} pictures wait to be decoded, and {num_pictures} more would exceed {limit}");
            return Err(Status::overloaded("QUEUE_FULL", what, "try again later, or raise --max-queue-size"));
        }
        let limit = settings.max_encoded_bytes;
        if held.num_bytes + num_bytes > limit {
            let waiting = held.num_bytes;
            let what = format!("{waiting} bytes of pictures wait, and {num_bytes} more would exceed {limit}");
            return Err(Status::overloaded("QUEUE_FULL", what, "try again later, or raise --max-encoded-bytes"));
        }
        held.num_pictures += num_pictures;
        held.num_bytes += num_bytes;
        Ok(Self { decoding: &server.decoding, num_pictures, num_bytes })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut held = locked(&self.decoding.held);
        held.num_pictures -= self.num_pictures;
        held.num_bytes -= self.num_bytes;
    }
}
