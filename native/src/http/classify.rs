//! POST /v1/classify: a picture or JSON in, labels and probabilities out; for people with curl.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use hyper::body::Incoming;
use prost::Message;
use serde::{Deserialize, Serialize, Serializer};

use super::json::{self, Few, Flat};
use super::reply::Page;
use super::request_body;
use crate::call::Call;
use crate::classify::{answered, quoted};
use crate::proto::atelier::v1::{Box, ClassifyRequest, ClassifyResponse};
use crate::status::Status;

const PARAMETERS: &str = "there are top_k=1 to 10, prepare=true, invert=true, model_name and model_version";

/// Those of the path behind the question mark, and of the document, which are the same.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    images: Option<Flat>,
    pictures: Option<Few<String, 65_536>>,
    top_k: Option<u32>,
    invert: Option<bool>,
    prepare: Option<bool>,
    model_name: Option<String>,
    model_version: Option<String>,
}

pub async fn answer(call: &mut Call, head: &Parts, incoming: &mut Incoming) -> Result<Page, Status> {
    call.server.check_takes_calls()?;
    call.server.life.versions.current().engine.check_has_room(call.deadline_us, call.peer.number)?;
    let may_be_picture = may_be_picture(head)?;
    let asked = options_from(head.uri.query().unwrap_or_default())?;
    let body = request_body::whole(call, &head.headers, incoming).await?;
    call.server.life.check_is_serving()?;
    let first = body.iter().copied().find(|byte| !byte.is_ascii_whitespace());
    let request = match first {
        Some(b'[') => request_from(Document { images: Some(json::read(body).await?), ..asked })?,
        Some(b'{') => request_from(merged(json::read(body).await?, asked))?,
        Some(_) if may_be_picture => {
            let request = request_from(asked)?;
            ClassifyRequest { pictures: vec![body], ..request }
        }
        _ => {
            let what = "the body is neither a picture nor JSON";
            return Err(Status::invalid("NO_IMAGES", what, "send a picture, or a list of images of 28 x 28 numbers"));
        }
    };
    let message = answered(call, request).await?;
    let internal = |_| Status::internal("INTERNAL", "the server failed on this request", "see the server's log");
    let response = ClassifyResponse::decode(message.slice(5..)).map_err(internal)?;
    Ok(Page::json(&response))
}

/// curl --data-binary says that it sends a form, and means a picture as well as JSON.
fn may_be_picture(head: &Parts) -> Result<bool, Status> {
    let Some(kind) = head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()) else { return Ok(true) };
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match &*kind {
        "application/json" => Ok(false),
        "application/octet-stream" | "application/x-www-form-urlencoded" => Ok(true),
        _ if kind.starts_with("image/") => Ok(true),
        _ => {
            let what = format!("{} cannot be read here", quoted(&kind));
            let cure = "send image/png, image/jpeg, image/webp or application/json: curl --data-binary @picture.png";
            Err(Status::invalid("BAD_CONTENT_TYPE", what, cure))
        }
    }
}

fn options_from(query: &str) -> Result<Document, Status> {
    let mut asked = Document::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, "true"));
        let bad = || {
            let what = format!("the parameter {} is {}", quoted(name), quoted(value));
            Status::invalid("BAD_PARAMETER", what, PARAMETERS)
        };
        match name {
            "top_k" => asked.top_k = Some(value.parse().map_err(|_| bad())?),
            "prepare" => asked.prepare = Some(value.parse().map_err(|_| bad())?),
            "invert" => asked.invert = Some(value.parse().map_err(|_| bad())?),
            "model_name" => asked.model_name = Some(value.into()),
            "model_version" => asked.model_version = Some(value.into()),
            _ => return Err(bad()),
        }
    }
    Ok(asked)
}

/// What the document leaves open the path says.
fn merged(document: Document, asked: Document) -> Document {
    Document {
        top_k: document.top_k.or(asked.top_k),
        invert: document.invert.or(asked.invert),
        prepare: document.prepare.or(asked.prepare),
        model_name: document.model_name.or(asked.model_name),
        model_version: document.model_version.or(asked.model_version),
        ..document
    }
}

fn request_from(document: Document) -> Result<ClassifyRequest, Status> {
    let images = document.images.unwrap_or_default();
    if !images.texts.is_empty() {
        return Err(Status::invalid("BAD_DATA", "images has texts", "send numbers, or pictures in base64 as pictures"));
    }
    let no_base64 = |error| Status::invalid("BAD_DATA", format!("a picture is no base64: {error}"), "send base64");
    let pictures = document.pictures.unwrap_or_default().0.into_iter();
    let pictures: Result<Vec<Bytes>, Status> =
        pictures.map(|text| STANDARD.decode(text).map(Bytes::from).map_err(no_base64)).collect();
    Ok(ClassifyRequest {
        images: images.numbers.into(),
        pictures: pictures?,
        top_k: document.top_k.unwrap_or(0),
        invert: document.invert.unwrap_or(false),
        prepare: document.prepare.unwrap_or(false),
        model_name: document.model_name.unwrap_or_default(),
        model_version: document.model_version.unwrap_or_default(),
    })
}

/// A box in JSON: y0, x0, y1 and x1.
pub fn corners<S: Serializer>(kept: &Option<Box>, serializer: S) -> Result<S::Ok, S::Error> {
    let Box { y0, x0, y1, x1 } = kept.unwrap_or_default();
    [y0, x0, y1, x1].serialize(serializer)
}
