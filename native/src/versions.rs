//! The versions of the model that are loaded, and which of them a call gets.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::classify::quoted;
use crate::engine::Engine;
use crate::status::Status;

/// What GetModel tells, and what requests may name.
#[derive(Debug)]
pub struct Model {
    pub name: String,
    pub version: String,
    pub description: Vec<u8>,
}

/// A version and the engine that runs it. A call takes it once, so that no answer mixes two versions.
pub struct Served {
    pub model: Model,
    pub engine: Arc<Engine>,
}

pub struct Versions {
    current: Arc<Served>,
}

impl Versions {
    pub fn new(first: Served) -> Self {
        Self { current: Arc::new(first) }
    }

    /// The newest: what a call gets that asks for no version.
    pub fn current(&self) -> Arc<Served> {
        self.current.clone()
    }

    /// All that are loaded, the newest first.
    pub fn loaded(&self) -> Vec<Arc<Served>> {
        vec![self.current()]
    }

    /// What a call gets that asks for this model and version; empty words ask for any.
    pub fn find(&self, name: &str, version: &str) -> Result<Arc<Served>, Status> {
        let served = self.current();
        let model = &served.model;
        if !name.is_empty() && name != model.name {
            let what = format!("model {} is not served here", quoted(name));
            return Err(Status::not_found("UNKNOWN_MODEL", what, &format!("ask for {}", quoted(&model.name))));
        }
        if !version.is_empty() && version != model.version {
            let what = format!("version {} of {} is not served here", quoted(version), model.name);
            let cure = format!("ask for {}, or leave it empty", quoted(&model.version));
            return Err(Status::not_found("UNKNOWN_VERSION", what, &cure));
        }
        Ok(served)
    }
}
