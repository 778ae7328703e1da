//! Something made of files, and made anew when they change.
#![forbid(unsafe_code)]

use std::fs;
use std::io::Result;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use crate::log;
use crate::shared::locked;

/// What shows that a file has changed: links to new files, as Kubernetes lays them, are followed.
type Stamp = Vec<Option<(SystemTime, u64)>>;

pub struct Watched<T> {
    paths: Vec<PathBuf>,
    load: Box<dyn Fn() -> Result<T> + Send + Sync>,
    stamp: Mutex<Stamp>,
    refused: Mutex<Stamp>,
    value: Mutex<Arc<T>>,
}

impl<T> Watched<T> {
    pub fn new(paths: Vec<PathBuf>, load: impl Fn() -> Result<T> + Send + Sync + 'static) -> Result<Self> {
        let stamp = Mutex::new(stamp_of(&paths));
        let value = Mutex::new(Arc::new(load()?));
        Ok(Self { paths, load: Box::new(load), stamp, refused: Mutex::default(), value })
    }

    pub fn current(&self) -> Arc<T> {
        locked(&self.value).clone()
    }

    /// Looks at the files. What cannot be used, or not yet, leaves the present value in force, is told in the log once,
    /// and is tried again.
    pub fn look(&self) {
        let stamp = stamp_of(&self.paths);
        if *locked(&self.stamp) == stamp {
            return;
        }
        match (self.load)() {
            Ok(value) => {
                *locked(&self.value) = Arc::new(value);
                *locked(&self.stamp) = stamp;
            }
            Err(error) if *locked(&self.refused) != stamp => {
                *locked(&self.refused) = stamp;
                log::warning(&format!("{error}: what was read before stays"));
            }
            Err(_) => {}
        }
    }
}

fn stamp_of(paths: &[PathBuf]) -> Stamp {
    let stamp = |path| fs::metadata(path).and_then(|found| Ok((found.modified()?, found.len()))).ok();
    paths.iter().map(stamp).collect()
}
