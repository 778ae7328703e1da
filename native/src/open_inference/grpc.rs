//! The request and the answer as gRPC's messages.

use std::collections::HashMap;

use bytes::Bytes;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::answer::{Answer, Values, floats};
use super::{Asked, Data, Input, Request};
use crate::classify::quoted;
use crate::model::IMAGE_BYTES;
use crate::pictures::Reading;
use crate::proto::inference::infer_parameter::ParameterChoice;
use crate::proto::inference::model_infer_request::InferInputTensor;
use crate::proto::inference::model_infer_response::InferOutputTensor;
use crate::proto::inference::{InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse};
use crate::status::Status;

/// Beside elements of BYTES.
const NUM_OTHER_FIELDS: usize = 256;
/// Names, shapes and parameters are no longer.
const MAX_FIELD_BYTES: usize = 64 << 10;

// Numbers of the fields that hold tensors: in the request inputs and raw contents, in an input its contents, in those
// elements of BYTES.
const INPUTS: u32 = 5;
const RAW: u32 = 7;
const CONTENTS: u32 = 5;
const ELEMENTS: u32 = 8;

type Parameters = HashMap<String, InferParameter>;

/// Before it is read: a message has room for millions of empty fields.
pub fn check_fields(limit: usize, message: &[u8]) -> Result<(), Status> {
    let mut left = limit + NUM_OTHER_FIELDS;
    check_level(message, &[(INPUTS, RAW), (CONTENTS, 0), (0, ELEMENTS)], limit * IMAGE_BYTES * 2, &mut left)
}

/// `levels`: in the message and what is nested in it, the field that is gone into and the one that may be long.
/// What is no protobuf the reading tells.
fn check_level(
    mut message: &[u8],
    levels: &[(u32, u32)],
    max_packed_bytes: usize,
    left: &mut usize,
) -> Result<(), Status> {
    let [(nested, long), deeper @ ..] = levels else { return Ok(()) };
    let limit = if deeper.is_empty() { max_packed_bytes } else { MAX_FIELD_BYTES };
    while let Ok((number, kind)) = decode_key(&mut message) {
        *left = left.checked_sub(1).ok_or_else(|| {
            Status::invalid("TOO_MANY_FIELDS", "the message has too many fields", "send tensors as raw contents")
        })?;
        if kind != WireType::LengthDelimited {
            let Ok(()) = skip_field(kind, number, &mut message, DecodeContext::default()) else { return Ok(()) };
            continue;
        }
        let Ok(length) = decode_varint(&mut message) else { return Ok(()) };
        let Some((field, rest)) = message.split_at_checked(length as usize) else { return Ok(()) };
        message = rest;
        if number == *nested {
            check_level(field, deeper, max_packed_bytes, left)?;
        } else if number != *long && field.len() > limit {
            let what = format!("field {number} has {length} bytes, the limit is {limit}");
            return Err(Status::invalid("FIELD_TOO_LARGE", what, "send tensors as raw contents"));
        }
    }
    Ok(())
}

pub fn request_from(message: ModelInferRequest) -> Result<Request, Status> {
    let (num_raw, num_inputs) = (message.raw_input_contents.len(), message.inputs.len());
    if num_raw != 0 && num_raw != num_inputs {
        let what = format!("there are {num_raw} raw contents for {num_inputs} inputs");
        return Err(Status::invalid("BAD_INPUTS", what, "send one for each input"));
    }
    let mut raw = message.raw_input_contents.into_iter();
    let inputs = message.inputs.into_iter().map(|input| input_from(input, raw.next()));
    let outputs = message.outputs.into_iter().map(|output| {
        let class_count = number_of(&output.parameters, "classification")?.unwrap_or(0) as usize;
        Ok(Asked { name: output.name, class_count, is_binary: true })
    });
    Ok(Request {
        timeout_us: number_of(&message.parameters, "timeout")?,
        reading: Reading {
            invert: flag_of(&message.parameters, "invert")?,
            prepare: flag_of(&message.parameters, "prepare")?,
        },
        inputs: inputs.collect::<Result<_, Status>>()?,
        outputs: outputs.collect::<Result<_, Status>>()?,
        model_name: message.model_name,
        model_version: message.model_version,
        id: message.id,
        is_binary: true,
    })
}

fn input_from(input: InferInputTensor, raw: Option<Bytes>) -> Result<Input, Status> {
    let data = match (raw, input.contents) {
        (Some(raw), None) => Data::Raw(raw),
        (Some(_), Some(_)) => {
            let what = "an input has both raw and typed contents";
            return Err(Status::invalid("BAD_DATA", what, "send one of them"));
        }
        (None, Some(contents)) => data_from(contents)?,
        (None, None) => Data::Missing,
    };
    Ok(Input { name: input.name, datatype: input.datatype, shape: input.shape, data })
}

/// Of the kinds of contents, those that our inputs have.
fn data_from(contents: InferTensorContents) -> Result<Data, Status> {
    if !contents.bytes_contents.is_empty() {
        return Ok(Data::Elements(contents.bytes_contents));
    }
    if contents.uint_contents.is_empty() {
        return Ok(Data::Missing);
    }
    let bytes: Result<Vec<u8>, _> = contents.uint_contents.into_iter().map(u8::try_from).collect();
    bytes.map(Data::Bytes).map_err(|_| Status::invalid("BAD_DATA", "a value is over 255", "UINT8 is 0 to 255"))
}

fn number_of(parameters: &Parameters, name: &str) -> Result<Option<u64>, Status> {
    let number = match choice(parameters, name) {
        None => return Ok(None),
        Some(ParameterChoice::Int64Param(number)) => u64::try_from(*number).ok(),
        Some(ParameterChoice::Uint64Param(number)) => Some(*number),
        Some(_) => None,
    };
    number.map(Some).ok_or_else(|| bad_parameter(name, "a number, 0 or more"))
}

fn flag_of(parameters: &Parameters, name: &str) -> Result<bool, Status> {
    match choice(parameters, name) {
        None => Ok(false),
        Some(ParameterChoice::BoolParam(flag)) => Ok(*flag),
        Some(_) => Err(bad_parameter(name, "true or false")),
    }
}

fn choice<'a>(parameters: &'a Parameters, name: &str) -> Option<&'a ParameterChoice> {
    parameters.get(name)?.parameter_choice.as_ref()
}

fn bad_parameter(name: &str, expected: &str) -> Status {
    let what = format!("the parameter {} is not what it must be", quoted(name));
    Status::invalid("BAD_PARAMETER", what, &format!("send {expected}"))
}

/// Who sends raw contents gets such; who sends typed ones, those.
pub fn message_from(answer: Answer, is_raw: bool) -> ModelInferResponse {
    let mut message = ModelInferResponse {
        model_name: answer.model_name,
        model_version: answer.model_version,
        id: answer.id,
        ..ModelInferResponse::default()
    };
    for output in answer.outputs {
        let mut tensor = InferOutputTensor {
            name: output.name.into(),
            datatype: output.datatype.into(),
            shape: output.shape.map(|size| size as i64).into(),
            ..InferOutputTensor::default()
        };
        if is_raw {
            message.raw_output_contents.push(output.values.raw());
        } else {
            tensor.contents = Some(contents_from(output.values));
        }
        message.outputs.push(tensor);
    }
    message
}

fn contents_from(values: Values) -> InferTensorContents {
    let mut contents = InferTensorContents::default();
    match values {
        Values::Floats(values) => contents.fp32_contents = floats(&values).collect(),
        Values::Classes(classes) => contents.bytes_contents = classes.into_iter().map(Bytes::from).collect(),
    }
    contents
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    fn checked(message: &ModelInferRequest) -> Result<(), Status> {
        let mut left = 20;
        check_level(&message.encode_to_vec(), &[(INPUTS, RAW), (CONTENTS, 0), (0, ELEMENTS)], 100, &mut left)
    }

    fn with_input(contents: InferTensorContents, shape: Vec<i64>) -> ModelInferRequest {
        let input = InferInputTensor { shape, contents: Some(contents), ..InferInputTensor::default() };
        ModelInferRequest { inputs: vec![input], ..ModelInferRequest::default() }
    }

    #[test]
    fn tensors_may_be_long_and_nothing_else() {
        let raw = ModelInferRequest { raw_input_contents: vec![vec![0; 100_000].into()], ..Default::default() };
        assert_eq!(checked(&raw), Ok(()));
        let elements = InferTensorContents { bytes_contents: vec![vec![0; 100_000].into()], ..Default::default() };
        assert_eq!(checked(&with_input(elements, vec![1])), Ok(()));
        let packed = InferTensorContents { uint_contents: vec![1; 101], ..Default::default() };
        assert!(checked(&with_input(packed, vec![1])).is_err());
        assert!(checked(&with_input(InferTensorContents::default(), vec![1; 70_000])).is_err());
        assert!(checked(&ModelInferRequest { id: "x".repeat(70_000), ..Default::default() }).is_err());
    }

    #[test]
    fn fields_are_few_on_all_levels_together() {
        let many = ModelInferRequest { raw_input_contents: vec![Bytes::new(); 21], ..Default::default() };
        assert!(checked(&many).unwrap_err().message.starts_with("TOO_MANY_FIELDS: "));
        let elements = InferTensorContents { bytes_contents: vec![Bytes::new(); 20], ..Default::default() };
        assert!(checked(&with_input(elements, vec![1])).is_err());
    }
}
