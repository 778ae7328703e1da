//! Encoded pictures, which Python has decoded in processes of their own, within bounds.
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
use crate::proto::atelier::v1::{Box, ClassifyResponse, Prepared};
use crate::server::Server;
use crate::status::Status;

/// Enough to know every kind of file by.
const BEGINNING_BYTES: usize = 1024;

/// What a request says of its pictures: dark on light, or photographs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    pub invert: bool,
    pub prepare: bool,
}

/// How Python answers: an image, whether it was inverted and the box of it that was kept, whether its border is light.
type Read = (Vec<u8>, Option<(bool, (u32, u32, u32, u32))>, bool);

/// The images, end to end, and what a ClassifyResponse says of its pictures, in one that says nothing else.
/// One picture at a time: other requests' have their turn between them.
pub async fn decoded(call: &Call, pictures: Vec<Bytes>, reading: Reading) -> Result<(Bytes, ClassifyResponse), Status> {
    if reading.invert && reading.prepare {
        let what = "prepare and invert are both set, and prepare decides itself what to invert";
        return Err(Status::invalid("BAD_PREPARE", what, "set one of them"));
    }
    let (hold, pictures) = held(call, pictures).await?;
    let hold = Arc::new(hold);
    let mut images = BytesMut::with_capacity(pictures.len() * IMAGE_BYTES);
    let mut notes = ClassifyResponse::default();
    for (index, picture) in pictures.into_iter().enumerate() {
        let turn = call.server.decoders.clone().acquire_owned().await;
        let (server, deadline_us, hold) = (call.server.clone(), call.deadline_us, hold.clone());
        let read = done_aside(move || {
            let _held = (hold, turn); // also for a client that has gone, until this is done or taken out of the queue
            if server.now_us() >= deadline_us {
                let what = format!("the deadline passed after {index} pictures were decoded");
                return Err(Status::expired("EXPIRED", what));
            }
            decode(&server.decode, &picture, index, reading)
        });
        let (image, prepared, is_light) = read.await??;
        images.extend_from_slice(&image);
        notes.prepared.extend(prepared.map(|(inverted, (y0, x0, y1, x1))| {
            let r#box = Some(Box { y0, x0, y1, x1 });
            Prepared { inverted, r#box }
        }));
        if is_light {
            notes.light_pictures.push(index as u32);
        }
    }
    Ok((images.freeze(), notes))
}

/// The pictures, and what they hold while they wait: places, bytes, and what decoding them will take.
async fn held(call: &Call, pictures: Vec<Bytes>) -> Result<([Hold; 3], Vec<Bytes>), Status> {
    let (budgets, peer) = (&call.server.budgets, call.peer.number);
    let num_bytes = pictures.iter().map(Bytes::len).sum();
    let places = budgets.pictures.take(peer, pictures.len())?;
    let bytes = budgets.picture_bytes.take(peer, num_bytes)?;
    let server = call.server.clone();
    let (cost, pictures) = done_aside(move || (cost_of(&server, &pictures), pictures)).await?;
    Ok(([places, bytes, budgets.picture_costs.take(peer, cost?)?], pictures))
}

/// Python's `picture_cost(beginning, index, num_pictures, before)` of each, or the message for the client.
fn cost_of(server: &Server, pictures: &[Bytes]) -> Result<usize, Status> {
    let most = server.settings.picture_beginning_bytes;
    Python::attach(|py| {
        pictures.iter().enumerate().try_fold(0_usize, |before, (index, picture)| {
            let beginning = PyBytes::new(py, &picture[..picture.len().min(most)]);
            let answer =
                server.picture_cost.call1(py, (beginning, index, pictures.len(), before)).map_err(|error| {
                    log::exception(py, "a picture's header could not be read", &error);
                    failed()
                })?;
            answer.extract::<usize>(py).map_err(|_| refusal(py, &answer))
        })
    })
}

/// What Python says is wrong with what a client has sent: word, what and cure.
fn refusal(py: Python<'_>, answer: &Py<PyAny>) -> Status {
    let words = answer.extract::<(String, String, String)>(py);
    words.map_or_else(|_| failed(), |(word, what, cure)| Status::invalid(&word, what, &cure))
}

/// Python's `decode(picture, index, invert, prepare)`, or the message for the client.
fn decode(decode: &Py<PyAny>, picture: &[u8], index: usize, reading: Reading) -> Result<Read, Status> {
    Python::attach(|py| {
        let arguments = (PyBytes::new(py, picture), index, reading.invert, reading.prepare);
        let answer = decode.call1(py, arguments).map_err(|error| {
            log::exception(py, "a picture could not be decoded", &error);
            failed()
        })?;
        if let Ok(read) = answer.extract::<Read>(py) {
            return if read.0.len() == IMAGE_BYTES { Ok(read) } else { Err(failed()) };
        }
        Err(refusal(py, &answer))
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
