//! How many batches the waiting requests will be: they are not split, so these are more than their images would fill.
#![forbid(unsafe_code)]

#[derive(Clone, Copy, Debug, Default)]
pub struct Packing {
    pub num_batches: usize,
    /// Images for which the last batch has room.
    pub room: usize,
}

impl Packing {
    /// Adds a request of `num_images`, of which some wait, as `take` does: whole, unless it is larger than any batch.
    pub fn add(&mut self, num_waiting: usize, num_images: usize, max_batch_size: usize) {
        let is_split = num_images > max_batch_size;
        let here = if num_waiting <= self.room || is_split { num_waiting.min(self.room) } else { 0 };
        self.room -= here;
        let rest = num_waiting - here;
        if rest > 0 {
            let num_more = rest.div_ceil(max_batch_size);
            self.num_batches += num_more;
            self.room = num_more * max_batch_size - rest;
        }
    }
}
