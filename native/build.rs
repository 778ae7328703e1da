//! Generates the messages and the descriptors that reflection tells, from the .proto files, without protoc.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

/// What HTTP answers as gRPC does, field by field.
const SAID_IN_JSON: [&str; 11] = [
    ".atelier.v1.ClassifyResponse",
    ".atelier.v1.Classification",
    ".atelier.v1.Prediction",
    ".atelier.v1.Prepared",
    ".inference.ServerMetadataResponse",
    ".inference.ModelMetadataResponse",
    ".inference.ModelStatisticsResponse",
    ".inference.ModelStatistics",
    ".inference.InferStatistics",
    ".inference.StatisticDuration",
    ".inference.RepositoryIndexResponse.ModelIndex",
];

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let protos = out.join("atelier/wire"); // the names that Python's descriptors have
    fs::create_dir_all(&protos)?;
    let reflection = fs::read_to_string("protos/reflection.proto")?;
    let alpha = reflection.replace("package grpc.reflection.v1;", "package grpc.reflection.v1alpha;");
    fs::write(protos.join("reflection_v1alpha.proto"), alpha)?;
    let files = [
        "../protos/classifier.proto",
        "../protos/open_inference.proto",
        "protos/health.proto",
        "protos/reflection.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
        let name = PathBuf::from(file);
        fs::copy(file, protos.join(name.file_name().ok_or("a file has a name")?))?;
    }
    let names = [
        "atelier/wire/classifier.proto",
        "atelier/wire/open_inference.proto",
        "atelier/wire/health.proto",
        "atelier/wire/reflection.proto",
        "atelier/wire/reflection_v1alpha.proto",
    ];
    let descriptors = protox::compile(names, [&out])?;
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    for message in SAID_IN_JSON {
        config.type_attribute(message, "#[derive(serde::Serialize)]");
    }
    let of_response = ".atelier.v1.ClassifyResponse";
    config.field_attribute(format!("{of_response}.time"), "#[serde(skip)]");
    for notes in ["prepared", "light_pictures"] {
        config.field_attribute(format!("{of_response}.{notes}"), "#[serde(skip_serializing_if = \"Vec::is_empty\")]");
    }
    config.field_attribute(".atelier.v1.Prepared.box", "#[serde(serialize_with = \"crate::http::corners\")]");
    config.compile_fds(descriptors)?;
    Ok(())
}
