//! Reads many replies at once into columns, which Python compares in bulk. What is not as it should be is left out: Python
//! looks at each of those by itself, and says what is wrong.

use std::iter::once;

use prost::Message;

use crate::proto::atelier::v1::ClassifyResponse;
use crate::proto::inference::ModelInferResponse;
use crate::response::NUM_CLASSES;

/// Of each reply whether it could be read, what it says of the images, and for Classify its TimeSplit.
#[derive(Default)]
pub struct Columns {
    pub is_read: Vec<u8>,
    pub labels: Vec<u8>,  // i64
    pub numbers: Vec<u8>, // f32: probabilities or logits
    pub times: Vec<u8>,   // i64: three of each
}

/// ClassifyResponses with `num_images` classifications of `top_k` predictions.
pub fn classifications(replies: &[u8], ends: &[u8], num_images: usize, top_k: usize) -> Columns {
    let mut columns = Columns::default();
    for reply in split(replies, ends) {
        let response = ClassifyResponse::decode(reply).ok().filter(|response| {
            let found = &response.classifications;
            found.len() == num_images && found.iter().all(|each| each.predictions.len() == top_k)
        });
        columns.is_read.push(response.is_some().into());
        let response = response.unwrap_or_default();
        for prediction in response.classifications.iter().flat_map(|each| &each.predictions) {
            columns.labels.extend(i64::from(prediction.label).to_ne_bytes());
            columns.numbers.extend(prediction.probability.to_ne_bytes());
        }
        columns.labels.resize(columns.is_read.len() * num_images * top_k * 8, 0);
        columns.numbers.resize(columns.is_read.len() * num_images * top_k * 4, 0);
        let time = response.time.unwrap_or_default();
        for value in [time.queue_us, time.inference_us, time.batch_size.into()] {
            columns.times.extend((value as i64).to_ne_bytes());
        }
    }
    columns
}

/// ModelInferResponses with `logits` for `num_images`, raw or not.
pub fn logits(replies: &[u8], ends: &[u8], num_images: usize) -> Columns {
    let mut columns = Columns::default();
    for reply in split(replies, ends) {
        let found = ModelInferResponse::decode(reply).ok().and_then(|response| logits_of(response, num_images));
        columns.is_read.push(found.is_some().into());
        columns.numbers.extend(found.unwrap_or_default());
        columns.numbers.resize(columns.is_read.len() * num_images * NUM_CLASSES * 4, 0);
    }
    columns
}

fn logits_of(response: ModelInferResponse, num_images: usize) -> Option<Vec<u8>> {
    let [tensor] = response.outputs.as_slice() else { return None };
    let is_right = tensor.name == "logits" && tensor.datatype == "FP32";
    let is_right = is_right && tensor.shape == [num_images as i64, NUM_CLASSES as i64];
    let values: Vec<u8> = match (response.raw_output_contents.first(), &tensor.contents) {
        (Some(raw), _) => raw.to_vec(),
        (None, Some(contents)) => contents.fp32_contents.iter().flat_map(|value| value.to_le_bytes()).collect(),
        (None, None) => return None,
    };
    (is_right && values.len() == num_images * NUM_CLASSES * 4).then_some(values)
}

fn split<'a>(replies: &'a [u8], ends: &[u8]) -> impl Iterator<Item = &'a [u8]> {
    let ends: Vec<usize> = ends
        .chunks_exact(8)
        .filter_map(|end| end.try_into().ok())
        .map(|end| i64::from_ne_bytes(end) as usize)
        .collect();
    let starts: Vec<usize> = once(0).chain(ends.iter().copied()).collect();
    starts.into_iter().zip(ends).map(|(start, end)| replies.get(start..end).unwrap_or_default())
}
