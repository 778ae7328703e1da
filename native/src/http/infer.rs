//! POST /v2/models/lenet5/infer: tensors in JSON, or behind it (Triton's binary extension).

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};

use super::json::{self, Few, Flat};
use super::reply::Page;
use super::request_body;
use crate::call::Call;
use crate::classify::quoted;
use crate::model::IMAGE_BYTES;
use crate::open_inference::{Answer, Asked, Data, Input, Output, Request, Values, floats, infer};
use crate::pictures::Reading;
use crate::status::Status;

pub const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    id: String,
    #[serde(default)]
    parameters: Option<Parameters>,
    inputs: Few<Tensor, 16>,
    #[serde(default)]
    outputs: Option<Few<OutputTensor, 16>>,
}

/// Those that are known; others are ignored.
#[derive(Default, Deserialize)]
struct Parameters {
    timeout: Option<u64>,
    invert: Option<bool>,
    prepare: Option<bool>,
    classification: Option<usize>,
    binary_data_output: Option<bool>,
    binary_data: Option<bool>,
    binary_data_size: Option<usize>,
}

#[derive(Deserialize)]
struct Tensor {
    name: String,
    datatype: String,
    shape: Few<i64, 16>,
    #[serde(default)]
    parameters: Option<Parameters>,
    data: Option<Flat>,
}

#[derive(Deserialize)]
struct OutputTensor {
    name: String,
    #[serde(default)]
    parameters: Option<Parameters>,
}

pub async fn answer(
    call: &mut Call,
    name: &str,
    version: &str,
    headers: &HeaderMap,
    incoming: &mut Incoming,
) -> Result<Page, Status> {
    call.server.check_takes_calls()?;
    call.server.life.versions.current().engine.check_has_room(call.deadline_us, call.peer.number)?;
    let length = json_length(headers)?;
    let mut body = request_body::whole(call, headers, incoming).await?;
    call.server.life.check_is_serving()?;
    let length = length.unwrap_or(body.len());
    if length > body.len() {
        let what = format!("Inference-Header-Content-Length is {length}, the body has {} bytes", body.len());
        return Err(Status::invalid("BAD_LENGTH", what, "send the length of the JSON"));
    }
    let binary = body.split_off(length);
    let request = if body.is_empty() && !binary.is_empty() {
        images_alone(binary)
    } else {
        request_from(json::read(body).await?, binary)?
    };
    let request = Request { model_name: name.into(), model_version: version.into(), ..request };
    Ok(page_from(infer(call, request).await?))
}

fn json_length(headers: &HeaderMap) -> Result<Option<usize>, Status> {
    let Some(value) = headers.get(JSON_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|value| value.parse().ok());
    let bad = || Status::invalid("BAD_LENGTH", "Inference-Header-Content-Length is no number", "send one");
    length.map(Some).ok_or_else(bad)
}

/// A body without JSON is all of the input (Triton's raw binary request).
fn images_alone(images: Bytes) -> Request {
    let shape = vec![images.len().div_ceil(IMAGE_BYTES) as i64, 1, 28, 28];
    let input = Input { name: "images".into(), datatype: "UINT8".into(), shape, data: Data::Raw(images) };
    Request { inputs: vec![input], is_binary: true, ..Request::default() }
}

#[cfg(test)]
pub fn json_request(document: &[u8], binary: Bytes) -> Result<Request, Status> {
    request_from(json::read_small(document)?, binary)
}

fn request_from(document: Document, mut binary: Bytes) -> Result<Request, Status> {
    let parameters = document.parameters.unwrap_or_default();
    let is_binary = parameters.binary_data_output.unwrap_or(false);
    let inputs: Result<Vec<Input>, Status> =
        document.inputs.0.into_iter().map(|tensor| input_from(tensor, &mut binary)).collect();
    let inputs = inputs?;
    if !binary.is_empty() {
        let what = format!("{} bytes behind the JSON are of no input", binary.len());
        return Err(Status::invalid("BAD_LENGTH", what, "say binary_data_size of each input"));
    }
    let outputs = document.outputs.unwrap_or_default().0.into_iter().map(|output| {
        let parameters = output.parameters.unwrap_or_default();
        Asked {
            name: output.name,
            class_count: parameters.classification.unwrap_or(0),
            is_binary: parameters.binary_data.unwrap_or(is_binary),
        }
    });
    Ok(Request {
        id: document.id,
        timeout_us: parameters.timeout,
        reading: Reading { invert: parameters.invert.unwrap_or(false), prepare: parameters.prepare.unwrap_or(false) },
        inputs,
        outputs: outputs.collect(),
        is_binary,
        ..Request::default()
    })
}

/// Its data stands in it, or first in what is behind the JSON.
fn input_from(tensor: Tensor, binary: &mut Bytes) -> Result<Input, Status> {
    let size = tensor.parameters.and_then(|parameters| parameters.binary_data_size);
    let data = match (tensor.data, size) {
        (None, None) => Data::Missing,
        (Some(Flat { numbers, texts }), None) if texts.is_empty() => Data::Bytes(numbers),
        (Some(Flat { numbers, texts }), None) if numbers.is_empty() => Data::Elements(texts),
        (None, Some(size)) if size <= binary.len() => Data::Raw(binary.split_to(size)),
        (None, Some(size)) => {
            let what = format!("binary_data_size is {size}, behind the JSON are {} bytes", binary.len());
            return Err(Status::invalid("BAD_LENGTH", what, "send as many"));
        }
        (Some(_), _) => {
            let what = format!("input {} has data of two kinds", quoted(&tensor.name));
            return Err(Status::invalid("BAD_DATA", what, "send numbers, or base64, or binary data"));
        }
    };
    Ok(Input { name: tensor.name, datatype: tensor.datatype, shape: tensor.shape.0, data })
}

#[derive(Serialize)]
struct AnswerDocument<'a> {
    model_name: &'a str,
    model_version: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    id: &'a str,
    outputs: Vec<AnswerTensor<'a>>,
}

#[derive(Serialize)]
struct AnswerTensor<'a> {
    name: &'a str,
    datatype: &'a str,
    shape: [usize; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<BinarySize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<AnswerData<'a>>,
}

#[derive(Serialize)]
struct BinarySize {
    binary_data_size: usize,
}

/// Floats as float64, with all digits: whoever reads them as that or as float32 has the very same value.
#[derive(Serialize)]
#[serde(untagged)]
enum AnswerData<'a> {
    Floats(Vec<f64>),
    Classes(Cow<'a, [String]>),
}

fn page_from(answer: Answer) -> Page {
    let mut behind = BytesMut::new();
    let outputs = answer.outputs.into_iter().map(|output| tensor_from(output, &mut behind)).collect();
    let (model_name, model_version, id) = (&*answer.model_name, &*answer.model_version, &*answer.id);
    let page = Page::json(&AnswerDocument { model_name, model_version, id, outputs });
    if behind.is_empty() { page } else { page.with_binary(&behind) }
}

fn tensor_from(output: Output, behind: &mut BytesMut) -> AnswerTensor<'static> {
    let Output { name, datatype, shape, values, is_binary } = output;
    let (parameters, data) = if is_binary {
        let raw = values.raw();
        behind.extend_from_slice(&raw);
        (Some(BinarySize { binary_data_size: raw.len() }), None)
    } else {
        let data = match values {
            Values::Floats(values) => AnswerData::Floats(floats(&values).map(f64::from).collect()),
            Values::Classes(classes) => AnswerData::Classes(classes.into()),
        };
        (None, Some(data))
    };
    AnswerTensor { name, datatype, shape, parameters, data }
}
