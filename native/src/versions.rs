//! The versions of the model that are loaded, and which of them a call gets.

use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use crate::classify::quoted;
use crate::engine::Engine;
use crate::shared::locked;
use crate::status::Status;

/// What GetModel and the metrics page tell, and what requests may name.
#[derive(Debug)]
pub struct Model {
    pub name: String,
    pub version: String,
    pub classes: Vec<String>,
    pub description: Vec<u8>,
    /// A ModelConfig of the Open Inference Protocol.
    pub config: Vec<u8>,
    pub labels: Vec<(String, String)>,
}

/// A version and the engine that runs it. A call takes it once, so that no answer mixes two versions. When neither
/// `Versions` nor a call holds it any more, the engine ends.
pub struct Served {
    pub model: Model,
    pub engine: Arc<Engine>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.engine.retire();
    }
}

pub struct Versions {
    /// The newest, and the one before it.
    loaded: RwLock<(Arc<Served>, Option<Arc<Served>>)>,
    /// Of all that live: also of versions that only calls under way still hold.
    engines: Mutex<Vec<Weak<Engine>>>,
}

impl Versions {
    pub fn new(first: Served) -> Self {
        let engines = Mutex::new(vec![Arc::downgrade(&first.engine)]);
        Self { loaded: RwLock::new((Arc::new(first), None)), engines }
    }

    /// The newest: what a call gets that asks for no version.
    pub fn current(&self) -> Arc<Served> {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// All that calls can ask for, the newest first.
    pub fn loaded(&self) -> Vec<Arc<Served>> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        [Some(&loaded.0), loaded.1.as_ref()].into_iter().flatten().cloned().collect()
    }

    pub fn engines(&self) -> Vec<Arc<Engine>> {
        locked(&self.engines).iter().filter_map(Weak::upgrade).collect()
    }

    /// What a call gets that asks for this model and version; empty words ask for any.
    pub fn find(&self, name: &str, version: &str) -> Result<Arc<Served>, Status> {
        let served = self.current();
        let model = &served.model;
        if !name.is_empty() && name != model.name {
            let what = format!("model {} is not served here", quoted(name));
            return Err(Status::not_found("UNKNOWN_MODEL", what, &format!("ask for {}", quoted(&model.name))));
        }
        if version.is_empty() || version == model.version {
            return Ok(served);
        }
        let loaded = self.loaded();
        let found = loaded.iter().find(|served| served.model.version == version);
        found.cloned().ok_or_else(|| unknown_version(version, &loaded))
    }

    /// Serves this one from now on. What was current stays, for calls that ask for it; what was before that goes.
    pub fn swap(&self, served: Served) {
        self.note(&served.engine);
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        let current = std::mem::replace(&mut loaded.0, Arc::new(served));
        let gone = loaded.1.replace(current);
        drop(loaded);
        drop(gone);
    }

    /// Serves this one to calls that ask for it.
    pub fn keep(&self, served: Served) {
        self.note(&served.engine);
        let gone = self.loaded.write().unwrap_or_else(PoisonError::into_inner).1.replace(Arc::new(served));
        drop(gone);
    }

    fn note(&self, engine: &Arc<Engine>) {
        let mut engines = locked(&self.engines);
        engines.retain(|engine| engine.strong_count() > 0);
        engines.push(Arc::downgrade(engine));
    }
}

fn unknown_version(version: &str, loaded: &[Arc<Served>]) -> Status {
    let what = format!("version {} of {} is not served here", quoted(version), loaded[0].model.name);
    let known: Vec<String> = loaded.iter().map(|served| quoted(&served.model.version)).collect();
    Status::not_found("UNKNOWN_VERSION", what, &format!("ask for {}, or leave it empty", known.join(" or ")))
}
