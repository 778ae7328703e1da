//! From the rows of logits to the tensors that were asked for.

use bytes::{BufMut, Bytes};

use super::tensors::{LOGITS, PROBABILITIES};
use super::{Asked, Request};
use crate::response::{NUM_CLASSES, probabilities, ranking, write_logits};
use crate::versions::Model;

const ROW_BYTES: usize = 4 * NUM_CLASSES;

pub struct Answer {
    pub model_name: String,
    pub model_version: String,
    pub id: String,
    pub outputs: Vec<Output>,
}

pub struct Output {
    pub name: &'static str,
    pub datatype: &'static str,
    pub shape: [usize; 2],
    pub values: Values,
    pub is_binary: bool,
}

pub enum Values {
    /// float32 in little-endian.
    Floats(Bytes),
    /// `value:label:name`.
    Classes(Vec<String>),
}

impl Values {
    /// As they lie in memory; elements of BYTES each behind their length.
    pub fn raw(self) -> Bytes {
        match self {
            Self::Floats(values) => values,
            Self::Classes(classes) => {
                let mut raw = Vec::with_capacity(classes.iter().map(|class| 4 + class.len()).sum());
                for class in classes {
                    raw.put_u32_le(class.len() as u32);
                    raw.extend_from_slice(class.as_bytes());
                }
                raw.into()
            }
        }
    }
}

/// float32 values of their bytes in little-endian.
pub fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
}

impl Answer {
    pub fn new(model: &Model, request: Request, logits: Bytes) -> Self {
        let all = || [LOGITS, PROBABILITIES].map(|name| asked_for(name, request.is_binary)).into();
        let asked = if request.outputs.is_empty() { all() } else { request.outputs };
        Self {
            model_name: model.name.clone(),
            model_version: model.version.clone(),
            id: request.id,
            outputs: asked.iter().map(|asked| output(asked, &logits, &model.classes)).collect(),
        }
    }
}

fn asked_for(name: &str, is_binary: bool) -> Asked {
    Asked { name: name.into(), class_count: 0, is_binary }
}

fn output(asked: &Asked, logits: &Bytes, classes: &[String]) -> Output {
    let (name, values) = if asked.name == LOGITS { (LOGITS, logits.clone()) } else { (PROBABILITIES, softmax(logits)) };
    let (num_images, is_binary) = (logits.len() / ROW_BYTES, asked.is_binary);
    if asked.class_count == 0 {
        let values = Values::Floats(values);
        return Output { name, datatype: "FP32", shape: [num_images, NUM_CLASSES], values, is_binary };
    }
    let count = asked.class_count.min(NUM_CLASSES);
    let best = rows(&values).flat_map(|row| best_of(&row, count, classes)).collect();
    Output { name, datatype: "BYTES", shape: [num_images, count], values: Values::Classes(best), is_binary }
}

fn softmax(logits: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(logits.len());
    rows(logits).for_each(|row| write_logits(&mut out, &probabilities(&row)));
    out.into()
}

fn rows(values: &[u8]) -> impl Iterator<Item = [f32; NUM_CLASSES]> {
    values.chunks_exact(ROW_BYTES).map(|row| {
        let mut values = floats(row);
        std::array::from_fn(|_| values.next().unwrap_or_default())
    })
}

/// As Triton's classification extension writes them.
fn best_of(row: &[f32; NUM_CLASSES], count: usize, classes: &[String]) -> Vec<String> {
    let best = ranking(row).into_iter().take(count);
    best.map(|label| format!("{:.6}:{label}:{}", row[label], classes[label])).collect()
}
