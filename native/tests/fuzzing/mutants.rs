//! Chance from a seed, what is mutated, and how.

use bytes::Bytes;
use prost::Message;

use crate::proto::atelier::v1::{ClassifyRequest, GetModelRequest};
use crate::proto::grpc::reflection::v1::ServerReflectionRequest;
use crate::proto::inference::infer_parameter::ParameterChoice;
use crate::proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use crate::proto::inference::{InferParameter, InferTensorContents, ModelInferRequest};

/// Numbers that look random, and are the same for the same seed (SplitMix64).
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64, number: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number.wrapping_mul(0xd1b5_4a32_d192_ed03))
    }

    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as usize % sides
    }

    pub fn of<'a, T: ?Sized>(&mut self, choices: &[&'a T]) -> &'a T {
        choices[self.roll(choices.len())]
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.roll(256) as u8).collect()
    }
}

/// One to eight changes, now and then none.
pub fn mutated(chance: &mut Chance, seed: &[u8]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..[0, 1, 1, 1, 2, 4, 8][chance.roll(7)] {
        change(chance, &mut bytes);
    }
    bytes
}

const VARINTS: [&[u8]; 6] = [
    b"\xff\xff\xff\xff\x0f",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    b"\x80\0",
    b"\x7b\x7b\x7b\x7b\x7c",
];
const WORDS: [&[u8]; 8] = [
    b"[[[[",
    b"\"data\":",
    b"1e400",
    b"-1",
    b"\\ud800",
    b"{\"a\":",
    b"\x00\xff\xff\xff\xff",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
];

fn change(chance: &mut Chance, bytes: &mut Vec<u8>) {
    let (at, kind) = (chance.roll(bytes.len() + 1), chance.roll(9));
    if let (0..=3, Some(byte)) = (kind, bytes.get_mut(at)) {
        *byte = if kind < 2 { *byte ^ 1 << chance.roll(8) } else { [0, 1, 0x7f, 0x80, 0xff][chance.roll(5)] };
        return;
    }
    let few = [1, 2, 10, 100][chance.roll(4)];
    let piece = match kind {
        4 => chance.of(&VARINTS).to_vec(),
        5 => chance.of(&WORDS).to_vec(),
        6 => {
            let start = chance.roll(bytes.len() + 1);
            bytes[start..(start + few).min(bytes.len())].to_vec()
        }
        7 => {
            bytes.drain(at..(at + few).min(bytes.len()));
            return;
        }
        8 if chance.roll(4) == 0 => return bytes.truncate(at),
        _ => chance.bytes(few.min(10)),
    };
    bytes.splice(at..at, piece);
}

/// Messages of each kind that there is a decoder for.
pub struct Corpus {
    pub classify: Vec<Vec<u8>>,
    pub infer: Vec<Vec<u8>>,
    pub others: Vec<Vec<u8>>,
    pub json: Vec<Vec<u8>>,
}

impl Corpus {
    pub fn new() -> Self {
        let image: Bytes = (0..784).map(|pixel| pixel as u8).collect::<Vec<_>>().into();
        let name = || "lenet5".to_owned();
        let picture = Bytes::from_static(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x1c\0\0\0\x1c\x08\0\0\0\0");
        let classify = [
            ClassifyRequest { images: image.clone(), top_k: 3, ..Default::default() },
            ClassifyRequest { pictures: vec![picture.clone(); 5], invert: true, ..Default::default() },
            ClassifyRequest { pictures: vec![Bytes::new(); 90], model_version: "1".into(), ..Default::default() },
            ClassifyRequest { model_name: name(), prepare: true, ..Default::default() },
        ];
        let others = [
            GetModelRequest { model_name: name(), model_version: "1".into() }.encode_to_vec(),
            ServerReflectionRequest { host: name(), message_request: None }.encode_to_vec(),
        ];
        let json = [
            r#"{"id":"7","inputs":[{"name":"images","datatype":"UINT8","shape":[1,1,2,2],"data":[[[1,2],[3,255]]]}],"outputs":[{"name":"logits","parameters":{"classification":3}}]}"#,
            r#"{"inputs":[{"name":"pictures","datatype":"BYTES","shape":[2],"data":["YWI=","YQ=="]}],"parameters":{"timeout":5,"invert":true}}"#,
            r#"{"inputs":[{"name":"images","datatype":"UINT8","shape":[1,1,28,28],"parameters":{"binary_data_size":16}}],"parameters":{"binary_data_output":true}}"#,
        ];
        Self {
            classify: classify.iter().map(Message::encode_to_vec).collect(),
            infer: infer_requests(image, picture).iter().map(Message::encode_to_vec).collect(),
            others: others.into(),
            json: json.map(|text| text.as_bytes().to_vec()).into(),
        }
    }
}

fn infer_requests(image: Bytes, picture: Bytes) -> [ModelInferRequest; 3] {
    let parameter = |choice| InferParameter { parameter_choice: Some(choice) };
    let input = |name: &str, datatype: &str, shape: &[i64], contents| InferInputTensor {
        name: name.into(),
        datatype: datatype.into(),
        shape: shape.into(),
        contents,
        ..Default::default()
    };
    let numbers =
        InferTensorContents { uint_contents: image.iter().map(|&pixel| pixel.into()).collect(), ..Default::default() };
    let elements = InferTensorContents { bytes_contents: vec![picture; 2], ..Default::default() };
    let best = InferRequestedOutputTensor {
        name: "logits".into(),
        parameters: [("classification".to_owned(), parameter(ParameterChoice::Int64Param(3)))].into(),
    };
    [
        ModelInferRequest {
            model_name: "lenet5".into(),
            id: "7".into(),
            inputs: vec![input("images", "UINT8", &[1, 1, 28, 28], None)],
            raw_input_contents: vec![image],
            outputs: vec![best],
            ..Default::default()
        },
        ModelInferRequest {
            inputs: vec![input("images", "UINT8", &[1, 1, 28, 28], Some(numbers))],
            ..Default::default()
        },
        ModelInferRequest {
            inputs: vec![input("pictures", "BYTES", &[2], Some(elements))],
            parameters: [
                ("timeout".to_owned(), parameter(ParameterChoice::Uint64Param(9))),
                ("invert".to_owned(), parameter(ParameterChoice::BoolParam(true))),
            ]
            .into(),
            ..Default::default()
        },
    ]
}
