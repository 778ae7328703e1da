//! What is known of all calls and devices from outside.

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    Answered,
    Refused,
    Expired,
    Cancelled,
    Failed,
    GivenUp,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Call {
    pub num_images: usize,
    pub deadline_us: u64,
    pub first_image: usize,
    pub peer: u64,
    /// The model fails on this one of its images.
    pub bad_image: Option<usize>,
    pub comes_late: bool,
    pub has_pictures: bool,
    pub asks_for_previous: bool,
    pub process: Option<usize>,
    pub device: Option<usize>,
    pub begun_us: u64,
    pub arrived_us: u64,
    pub is_admitted: bool,
    /// Rule 3 of DESIGN's batching says that it will be answered in time.
    pub is_promised: bool,
    /// It was passed over, for it would have been late.
    pub is_dropped: bool,
    pub num_taken: usize,
    pub num_run: usize,
    pub run_us: u64,
    pub has_failed: bool,
    pub end: Option<End>,
    /// What may be told it, as far as that is known.
    pub has_room: Option<bool>,
    pub was_empty: bool,
}

impl Call {
    pub fn num_waiting(&self) -> usize {
        self.num_images - self.num_taken
    }
}

/// The device of one version in one process; its number is the version.
#[derive(Debug, Default)]
pub struct Device {
    pub process: usize,
    /// Until then it has no faults.
    pub is_rehearsed: bool,
    /// Calls of which no batch has taken all, in their order.
    pub waiting: Vec<usize>,
    pub began_us: Option<u64>,
    pub finished_us: u64,
    /// Of its batches.
    pub longest_us: u64,
    pub num_failed: usize, // batches in a row
    pub is_freed: bool,
    /// For the metrics.
    pub num_batches: u64,
    pub num_failed_batches: u64,
    pub num_images: u64,
}
