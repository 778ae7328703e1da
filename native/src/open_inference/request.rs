//! An inference request, in whichever protocol it came.
#![forbid(unsafe_code)]

use bytes::Bytes;

use crate::pictures::Reading;

#[derive(Debug, Default)]
pub struct Request {
    pub model_name: String,
    /// Empty leaves it to the server.
    pub model_version: String,
    /// Is in the answer again.
    pub id: String,
    pub timeout_us: Option<u64>,
    /// Of pictures.
    pub reading: Reading,
    pub inputs: Vec<Input>,
    /// None stands for all.
    pub outputs: Vec<Asked>,
    /// Of outputs that are not named.
    pub is_binary: bool,
}

#[derive(Debug)]
pub struct Input {
    pub name: String,
    pub datatype: String,
    pub shape: Vec<i64>,
    pub data: Data,
}

#[derive(Debug)]
pub enum Data {
    /// As it lies in memory; elements of BYTES each behind their length.
    Raw(Bytes),
    Bytes(Vec<u8>),
    Elements(Vec<Bytes>),
    Missing,
}

/// An output that is asked for.
#[derive(Debug)]
pub struct Asked {
    pub name: String,
    /// The best classes instead of the values; 0 for the values.
    pub class_count: usize,
    /// Over HTTP: behind the JSON, not in it.
    pub is_binary: bool,
}
