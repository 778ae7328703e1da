//! What Classify and GetModel do: the checks of a request, in the words of serving/frontends/grpcio/classifier.py.

use std::fmt::Display;

use bytes::Bytes;
use prost::Message;
use prost::encoding::{DecodeContext, decode_key, skip_field};

use crate::call::Call;
use crate::framing::{extended, framed};
use crate::job::{Outcome, Wanted, Work};
use crate::model::IMAGE_BYTES;
use crate::pictures::{self, Reading};
use crate::proto::atelier::v1::{ClassifyRequest, ClassifyResponse, GetModelRequest};
use crate::records::Ran;
use crate::response::NUM_CLASSES;
use crate::server::Server;
use crate::status::Status;
use crate::versions::Served;

/// Of more, the memory that a request came in is kept rather than its images copied out of it.
const SMALL_BYTES: usize = 16 << 10;

/// Beside pictures: the present ones, and those of clients that are newer than this server.
const NUM_OTHER_FIELDS: usize = 16;

pub async fn classify(call: &Call, message: Bytes) -> Outcome {
    let num_bytes = message.len();
    let malformed = |_| Status::malformed(num_bytes, "atelier.v1.ClassifyRequest");
    check_num_fields(call.server.settings.max_images_per_request, &message)?;
    answered(call, ClassifyRequest::decode(message).map_err(malformed)?).await
}

/// The ClassifyResponse, with its prefix.
pub async fn answered(call: &Call, request: ClassifyRequest) -> Outcome {
    let server = &call.server;
    let began_us = server.now_us();
    let served = server.life.versions.find(&request.model_name, &request.model_version)?;
    let top_k = checked_top_k(request.top_k)?;
    let (images, notes) = if request.pictures.is_empty() {
        check_form(&request)?;
        (raw_images(server, &request.images)?, ClassifyResponse::default())
    } else {
        if !request.images.is_empty() {
            let what = "both images and pictures are set, so their order is not defined";
            return Err(Status::invalid("AMBIGUOUS_IMAGES", what, "send two requests"));
        }
        check_count(server, request.pictures.len())?;
        let reading = Reading { invert: request.invert, prepare: request.prepare };
        pictures::decoded(call, request.pictures, reading).await?
    };
    let answer = run(call, &served, images, Wanted::Classes { top_k }, began_us).await?;
    Ok(if notes == ClassifyResponse::default() { answer } else { extended(&answer, &notes) })
}

/// What the model says of the images.
pub async fn run(call: &Call, served: &Served, images: Bytes, wanted: Wanted, began_us: u64) -> Outcome {
    let (server, deadline_us, peer) = (&call.server, call.deadline_us, call.peer.number);
    let num_images = images.len() / IMAGE_BYTES;
    let work = Work { images, wanted, deadline_us, peer, is_lone: call.is_still_lone() };
    let (answer, time) = served.engine.classify(work).await?;
    if let Some(record) = &call.record {
        let version = served.model.version.clone();
        let _ = record.ran.set(Ran { version, num_images, time }); // a call runs the model once
    }
    server.metrics().request.observe(server.now_us() - began_us);
    Ok(answer)
}

pub fn get_model(call: &Call, message: &[u8]) -> Outcome {
    let malformed = |_| Status::malformed(message.len(), "atelier.v1.GetModelRequest");
    let request = GetModelRequest::decode(message).map_err(malformed)?;
    let served = call.server.life.versions.find(&request.model_name, &request.model_version)?;
    Ok(framed(&served.model.description))
}

fn checked_top_k(top_k: u32) -> Result<usize, Status> {
    if top_k as usize > NUM_CLASSES {
        let cure = format!("there are {NUM_CLASSES} classes: ask for 1 to {NUM_CLASSES}");
        return Err(Status::invalid("BAD_TOP_K", format!("top_k is {top_k}"), &cure));
    }
    Ok(top_k.max(1) as usize)
}

fn check_form(request: &ClassifyRequest) -> Result<(), Status> {
    if request.invert {
        let what = "invert is set, but it is for pictures only";
        return Err(Status::invalid("BAD_INVERT", what, "send 255 - images, which are light on dark"));
    }
    if request.prepare {
        let what = "prepare is set, but it is for pictures only";
        return Err(Status::invalid("BAD_PREPARE", what, "send the photographs as pictures"));
    }
    if request.images.is_empty() {
        let cure = format!("send {IMAGE_BYTES} bytes per image, or encoded pictures");
        return Err(Status::invalid("NO_IMAGES", "the request holds neither images nor pictures", &cure));
    }
    Ok(())
}

/// Of images that are raw, or should be: not none.
pub fn raw_images(server: &Server, images: &Bytes) -> Result<Bytes, Status> {
    if !images.len().is_multiple_of(IMAGE_BYTES) || may_be_a_file(images) {
        pictures::check_raw(server, images)?;
    }
    check_count(server, images.len() / IMAGE_BYTES)?;
    // A view would keep alive what the connection read at once, which may be much more.
    Ok(if images.len() <= SMALL_BYTES { Bytes::copy_from_slice(images) } else { images.clone() })
}

/// Garments begin with zeros; of what does not, Python knows the kinds of files, and is asked only about their like.
fn may_be_a_file(images: &[u8]) -> bool {
    images[..4] != [0; 4] && (b"\x89\xff\xefRGBIM<%i/Ud \t\r\n".contains(&images[0]) || &images[4..8] == b"ftyp")
}

pub fn check_count(server: &Server, num_images: usize) -> Result<(), Status> {
    let limit = server.settings.max_images_per_request;
    if num_images > limit { Err(too_many_images(num_images, limit)) } else { Ok(()) }
}

/// Before they are read: a message has room for millions of empty pictures. What is no protobuf the reading tells.
pub fn check_num_fields(limit: usize, mut message: &[u8]) -> Result<(), Status> {
    let mut num_fields = 0;
    while let Ok((number, kind)) = decode_key(&mut message)
        && skip_field(kind, number, &mut message, DecodeContext::default()).is_ok()
    {
        num_fields += 1;
        if num_fields > limit + NUM_OTHER_FIELDS {
            return Err(too_many_images(format!("more than {limit}"), limit));
        }
    }
    Ok(())
}

pub fn too_many_images(number: impl Display, limit: usize) -> Status {
    Status::invalid("TOO_MANY_IMAGES", format!("{number} images in one request"), &format!("send at most {limit}"))
}

/// The first 64 characters, as Python's repr has them.
pub fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut quoted = String::from(quote);
    for character in text.chars().take(64) {
        match character {
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            _ if character == quote => quoted.extend(['\\', character]),
            _ if character.is_control() => quoted.push_str(&format!("\\x{:02x}", character as u32)),
            _ => quoted.push(character),
        }
    }
    quoted.push(quote);
    quoted
}
