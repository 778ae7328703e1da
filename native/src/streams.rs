//! Calls that last: health watchers and reflections, which are counted.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::status::Status;

const MAX_STREAMS: usize = 256;

/// Those that are open. A health check is none of them and always has a place.
#[derive(Debug, Default)]
pub struct Streams(Arc<AtomicUsize>);

/// One of them, until it is dropped.
pub struct StreamPlace(Arc<AtomicUsize>);

impl Streams {
    pub fn take(&self) -> Result<StreamPlace, Status> {
        let num_open = self.0.fetch_add(1, Relaxed);
        let place = StreamPlace(self.0.clone());
        if num_open < MAX_STREAMS {
            return Ok(place);
        }
        let what = format!("{num_open} health watchers and reflections are open, as many as may be");
        Err(Status::overloaded("TOO_MANY_STREAMS", what, "try again later, or check instead of watching"))
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
