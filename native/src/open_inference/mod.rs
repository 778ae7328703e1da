//! inference.GRPCInferenceService, the Open Inference Protocol (KServe's and Triton's), over the batches of Classify.
//!
//! A request is first what both gRPC and JSON say; what it may ask for is decided for both.

pub mod about;
mod answer;
mod grpc;
mod tensors;

use bytes::Bytes;
use prost::Message;

use crate::call::Call;
use crate::classify::run;
use crate::framing::framed;
use crate::job::{Outcome, Wanted};
use crate::pictures::{self, Reading};
use crate::proto::inference::ModelInferRequest;
use crate::status::Status;

pub use answer::{Answer, Output, Values, floats};

pub const SERVICE: &str = "inference.GRPCInferenceService";

/// An inference request, in whichever protocol it came.
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

/// ModelInfer over gRPC.
pub async fn model_infer(call: &mut Call, message: Bytes) -> Outcome {
    let (request, is_raw) = read_request(call.server.settings.max_images_per_request, message)?;
    let answer = infer(call, request).await?;
    Ok(framed(&grpc::message_from(answer, is_raw).encode_to_vec()))
}

/// The request, and whether its contents are raw.
pub fn read_request(max_images: usize, message: Bytes) -> Result<(Request, bool), Status> {
    let num_bytes = message.len();
    grpc::check_fields(max_images, &message)?;
    let malformed = |_| Status::malformed(num_bytes, "inference.ModelInferRequest");
    let message = ModelInferRequest::decode(message).map_err(malformed)?;
    let is_raw = !message.raw_input_contents.is_empty();
    Ok((grpc::request_from(message)?, is_raw))
}

/// What the model says of the tensors, whatever protocol they came in.
pub async fn infer(call: &mut Call, request: Request) -> Result<Answer, Status> {
    let began_us = call.server.now_us();
    call.shorten_deadline(request.timeout_us);
    let served = call.server.life.versions.find(&request.model_name, &request.model_version)?;
    let images = match tensors::checked(&call.server, &request)? {
        tensors::Checked::Images(images) => images,
        tensors::Checked::Pictures(pictures) => pictures::decoded(call, pictures, request.reading).await?.0,
    };
    let logits = run(call, &served, images, Wanted::Logits, began_us).await?;
    Ok(Answer::new(&served.model, request, logits))
}
