//! grpc.reflection, v1 and v1alpha, whose messages are the same on the wire.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use bytes::Bytes;
use prost::Message;
use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet};
use tokio::sync::mpsc;

use crate::body;
use crate::call::Call;
use crate::framing::framed;
use crate::messages::Messages;
use crate::proto::grpc::reflection::v1::server_reflection_request::MessageRequest as Ask;
use crate::proto::grpc::reflection::v1::server_reflection_response::MessageResponse as Reply;
use crate::proto::grpc::reflection::v1::{
    ErrorResponse, FileDescriptorResponse, ListServiceResponse, ServerReflectionRequest, ServerReflectionResponse,
    ServiceResponse,
};
use crate::status::{Code, Status};

static INDEX: LazyLock<Index> = LazyLock::new(|| {
    let descriptors: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
    Index::new(FileDescriptorSet::decode(descriptors).unwrap_or_default())
});

/// Files by their names and by all that they define.
struct Index {
    services: Vec<String>,
    files: BTreeMap<String, Bytes>,
}

impl Index {
    fn new(set: FileDescriptorSet) -> Self {
        let mut index = Self { services: Vec::new(), files: BTreeMap::new() };
        for file in set.file {
            let bytes = Bytes::from(file.encode_to_vec());
            index.files.insert(file.name().to_owned(), bytes.clone());
            for symbol in index.symbols(&file) {
                index.files.insert(symbol, bytes.clone());
            }
        }
        index
    }

    /// Services with their methods, messages and enumerations, by their full names.
    fn symbols(&mut self, file: &FileDescriptorProto) -> Vec<String> {
        let package = file.package();
        let mut symbols: Vec<String> = file.enum_type.iter().map(|one| format!("{package}.{}", one.name())).collect();
        for service in &file.service {
            let name = format!("{package}.{}", service.name());
            symbols.extend(service.method.iter().map(|method| format!("{name}.{}", method.name())));
            symbols.push(name.clone());
            self.services.push(name);
        }
        file.message_type.iter().for_each(|message| add_message(&mut symbols, package, message));
        symbols
    }
}

fn add_message(symbols: &mut Vec<String>, parent: &str, message: &DescriptorProto) {
    let name = format!("{parent}.{}", message.name());
    symbols.extend(message.enum_type.iter().map(|one| format!("{name}.{}", one.name())));
    message.nested_type.iter().for_each(|nested| add_message(symbols, &name, nested));
    symbols.push(name);
}

/// Answers every question of a stream, in turn.
pub fn converse(call: &Call, mut messages: Messages) -> Result<body::Messages, Status> {
    let place = call.server.budgets.streams.take(call.peer.number, 1)?;
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let _place = place;
        loop {
            let answer = tokio::select! {
                message = messages.next() => match message {
                    Ok(Some(message)) => answer_to(&message),
                    Ok(None) => return,
                    Err(status) => Err(status),
                },
                () = sender.closed() => return,
            };
            let is_last = answer.is_err();
            if sender.send(answer).await.is_err() || is_last {
                return;
            }
        }
    });
    Ok(receiver)
}

fn answer_to(message: &Bytes) -> Result<Bytes, Status> {
    let malformed = |_| Status::malformed(message.len(), "grpc.reflection.v1.ServerReflectionRequest");
    let request = ServerReflectionRequest::decode(&**message).map_err(malformed)?;
    let reply = match &request.message_request {
        Some(Ask::ListServices(_)) => {
            let service = INDEX.services.iter().map(|name| ServiceResponse { name: name.clone() }).collect();
            Reply::ListServicesResponse(ListServiceResponse { service })
        }
        Some(Ask::FileByFilename(name) | Ask::FileContainingSymbol(name)) => match INDEX.files.get(name) {
            Some(file) => {
                Reply::FileDescriptorResponse(FileDescriptorResponse { file_descriptor_proto: vec![file.clone()] })
            }
            None => error(Code::NotFound, "there is no such file or symbol here"),
        },
        Some(Ask::FileContainingExtension(_) | Ask::AllExtensionNumbersOfType(_)) => {
            error(Code::NotFound, "there are no extensions here")
        }
        None => error(Code::InvalidArgument, "the request asks for nothing"),
    };
    let valid_host = request.host.clone();
    let reply = ServerReflectionResponse { valid_host, original_request: Some(request), message_response: Some(reply) };
    Ok(framed(&reply.encode_to_vec()))
}

fn error(code: Code, message: &str) -> Reply {
    Reply::ErrorResponse(ErrorResponse { error_code: code as i32, error_message: message.into() })
}
