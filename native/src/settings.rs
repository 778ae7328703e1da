//! The settings, under the names that they have in serving/config.py and limits.py.

use std::time::Duration;

use pyo3::prelude::*;

#[derive(Clone, Debug, FromPyObject)]
#[pyo3(from_item_all)]
pub struct Settings {
    /// Of the page that looks inside the network, and whether only this machine reaches it; empty if there is none.
    pub page_address: String,
    pub is_page_here: bool,
    /// A lone request is run by the thread that read it, where the model takes no longer than this; 0 for never.
    pub max_inline_us: u64,
    pub max_queue_size: usize,
    pub max_images_per_request: usize,
    pub max_message_bytes: usize,
    pub max_encoded_bytes: usize,
    pub max_concurrent_requests: usize,
    pub max_connections: usize,
    pub default_deadline_s: f64,
    pub max_deadline_s: f64,
    pub message_timeout_s: f64,
    pub write_timeout_s: f64,
    pub hang_timeout_s: f64,
    /// So long a device may be idle before it is tried.
    pub probe_after_s: f64,
    pub lame_duck_s: f64,
    pub drain_timeout_s: f64,
    /// Pictures that Python decodes at once.
    pub num_decoders: usize,
    /// So much of each tells what it costs: serving/pictures/costs.py.
    pub picture_beginning_bytes: usize,
    pub max_picture_cost: usize,
    pub max_waiting_picture_cost: usize,
    /// Whether Python wants to hear of each call that ended.
    pub has_records: bool,
    /// Times that this process' forerunners were replaced; for the metrics page.
    pub num_restarts: u64,
}

impl Settings {
    pub fn message_timeout(&self) -> Duration {
        Duration::from_secs_f64(self.message_timeout_s)
    }

    /// Calls of which the headers have come and the message has not.
    pub fn max_waiting_for_messages(&self) -> usize {
        (self.max_concurrent_requests / 2).max(1)
    }
}
