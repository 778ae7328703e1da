//! From logits to the bytes of a ClassifyResponse: softmax in float64, shifted by the maximum, as
//! serving/frontends/grpcio/responses.py.

use std::cmp::Ordering;

use prost::encoding::{encode_varint, encoded_len_varint};

pub const NUM_CLASSES: usize = 10;

// Keys of the fields in protos/classifier.proto: number << 3 | wire type.
const CLASSIFICATION: u8 = 1 << 3 | 2;
const MODEL_NAME: u8 = 2 << 3 | 2;
const MODEL_VERSION: u8 = 3 << 3 | 2;
const TIME: u8 = 4 << 3 | 2;
const PREDICTION: u8 = 1 << 3 | 2;
const LABEL: u8 = 1 << 3;
const NAME: u8 = 2 << 3 | 2;
const PROBABILITY: u8 = 3 << 3 | 5;

/// Where the time of a request went; of a split one the longest wait, the sum of the runs and the largest batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeSplit {
    pub queue_us: u64,
    pub inference_us: u64,
    pub batch_size: u64,
}

impl TimeSplit {
    pub fn add(&mut self, other: Self) {
        self.queue_us = self.queue_us.max(other.queue_us);
        self.inference_us += other.inference_us;
        self.batch_size = self.batch_size.max(other.batch_size);
    }
}

/// Of the answers of one model.
#[derive(Debug)]
pub struct ResponseWriter {
    model: Vec<u8>,
    /// Of each class, the beginning of a Prediction: its label and its name.
    predictions: Vec<Vec<u8>>,
}

impl ResponseWriter {
    pub fn new(model_name: &str, model_version: &str, classes: &[String]) -> Self {
        let mut model = Vec::new();
        write_field(&mut model, MODEL_NAME, model_name.as_bytes());
        write_field(&mut model, MODEL_VERSION, model_version.as_bytes());
        let predictions = classes.iter().enumerate();
        Self { model, predictions: predictions.map(|(label, name)| prediction(label, name)).collect() }
    }

    /// Appends the classifications of images, from their logits, end to end.
    pub fn classifications(&self, out: &mut Vec<u8>, logits: &[f32], top_k: usize) {
        for row in logits.chunks_exact(NUM_CLASSES) {
            let (ranking, probabilities) = rank(row);
            let best = &ranking[..top_k];
            let size: usize = best.iter().map(|&label| self.size_of(label, probabilities[label])).sum();
            out.push(CLASSIFICATION);
            encode_varint(size as u64, out);
            for &label in best {
                self.write_prediction(out, label, probabilities[label]);
            }
        }
    }

    /// Appends what stands in an answer once.
    pub fn finish(&self, out: &mut Vec<u8>, time: TimeSplit) {
        out.extend_from_slice(&self.model);
        let mut split = Vec::with_capacity(20);
        for (number, value) in [(1, time.queue_us), (2, time.inference_us), (3, time.batch_size)] {
            if value != 0 {
                split.push(number << 3);
                encode_varint(value, &mut split);
            }
        }
        write_field(out, TIME, &split);
    }

    fn size_of(&self, label: usize, probability: f32) -> usize {
        let size = self.predictions[label].len() + if probability == 0.0 { 0 } else { 5 };
        1 + encoded_len_varint(size as u64) + size
    }

    fn write_prediction(&self, out: &mut Vec<u8>, label: usize, probability: f32) {
        let beginning = &self.predictions[label];
        let rest = if probability == 0.0 { 0 } else { 5 }; // proto3 does not write what is 0
        out.push(PREDICTION);
        encode_varint((beginning.len() + rest) as u64, out);
        out.extend_from_slice(beginning);
        if rest > 0 {
            out.push(PROBABILITY);
            out.extend_from_slice(&probability.to_le_bytes());
        }
    }
}

/// Appends rows as they are, in little-endian.
pub fn write_logits(out: &mut Vec<u8>, rows: &[f32]) {
    out.reserve(size_of_val(rows));
    rows.iter().for_each(|logit| out.extend_from_slice(&logit.to_le_bytes()));
}

/// The labels of one image, most probable first, equal ones by their labels; and the probability of each label.
fn rank(logits: &[f32]) -> ([usize; NUM_CLASSES], [f32; NUM_CLASSES]) {
    (ranking(logits), probabilities(logits))
}

/// The labels, best first, equal ones by their labels.
pub fn ranking(values: &[f32]) -> [usize; NUM_CLASSES] {
    let mut ranking: [usize; NUM_CLASSES] = std::array::from_fn(|label| label);
    ranking.sort_by(|&one, &other| compare(values[other], values[one]).then(one.cmp(&other)));
    ranking
}

/// Softmax of one image's logits.
pub fn probabilities(logits: &[f32]) -> [f32; NUM_CLASSES] {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut exponentials = [0.0_f64; NUM_CLASSES];
    for (exponential, &logit) in exponentials.iter_mut().zip(logits) {
        *exponential = (f64::from(logit) - f64::from(largest)).exp();
    }
    let total: f64 = exponentials.iter().sum();
    exponentials.map(|exponential| (exponential / total) as f32)
}

/// Of finite numbers.
fn compare(one: f32, other: f32) -> Ordering {
    one.partial_cmp(&other).unwrap_or(Ordering::Equal)
}

fn prediction(label: usize, name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    if label != 0 {
        out.push(LABEL);
        encode_varint(label as u64, &mut out);
    }
    write_field(&mut out, NAME, name.as_bytes());
    out
}

fn write_field(out: &mut Vec<u8>, key: u8, value: &[u8]) {
    out.push(key);
    encode_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}
