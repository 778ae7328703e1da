//! Encoded pictures, which Python has decoded in processes of their own, within bounds.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use pyo3::call::PyCallArgs;
use pyo3::conversion::FromPyObjectOwned;
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

/// Python's `cost_so_far(beginning, index, num_pictures, before)` of each.
fn cost_of(server: &Server, pictures: &[Bytes]) -> Result<usize, Status> {
    let most = server.settings.picture_beginning_bytes;
    Python::attach(|py| {
        pictures.iter().enumerate().try_fold(0_usize, |before, (index, picture)| {
            let beginning = PyBytes::new(py, &picture[..picture.len().min(most)]);
            asked(py, &server.picture_cost, (beginning, index, pictures.len(), before))
        })
    })
}

/// Python's `decode(picture, index, invert, prepare)`.
fn decode(decode: &Py<PyAny>, picture: &[u8], index: usize, reading: Reading) -> Result<Read, Status> {
    let read: Read =
        Python::attach(|py| asked(py, decode, (PyBytes::new(py, picture), index, reading.invert, reading.prepare)))?;
    if read.0.len() == IMAGE_BYTES { Ok(read) } else { Err(failed()) }
}

/// Python's `check_raw_images(beginning, num_bytes)`, which refuses what is something else.
pub fn check_raw(server: &Server, images: &[u8]) -> Result<(), Status> {
    let beginning = &images[..images.len().min(BEGINNING_BYTES)];
    let answer = Python::attach(|py| asked(py, &server.check_images, (PyBytes::new(py, beginning), images.len())));
    answer.map(|_: Option<bool>| ()) // None
}

/// What Python returns; or, if it raises a RequestError (serving/errors.py), the message for the client.
fn asked<'py, T: for<'any> FromPyObjectOwned<'any>>(
    py: Python<'py>,
    function: &Py<PyAny>,
    arguments: impl PyCallArgs<'py>,
) -> Result<T, Status> {
    let answer = function.call1(py, arguments).and_then(|answer| answer.extract::<T>(py).map_err(Into::into));
    answer.map_err(|raised| {
        refusal(py, &raised).unwrap_or_else(|| {
            log::exception(py, "what a client sent could not be read", &raised);
            failed()
        })
    })
}

fn refusal(py: Python<'_>, raised: &PyErr) -> Option<Status> {
    let error = raised.value(py);
    let text = |name| error.getattr(name).ok()?.extract::<String>().ok();
    text("status")?; // other errors of ours have none: they are not the client's
    Some(Status::invalid(&text("word")?, text("what")?, &text("cure")?))
}

fn failed() -> Status {
    Status::internal("INTERNAL", "the server failed on this request", "see the server's log")
}
