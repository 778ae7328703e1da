//! Which requests are admitted, which form the next batch, and when the device is given up.
//!
//! Pure: nothing here waits, locks, reads a clock or knows Python; every method that depends on time is given
//! `now_us`, microseconds on a monotonic clock. So tests, and simulators, drive it by hand.

mod pace;
mod queue;

#[cfg(test)]
#[path = "../../tests/batching.rs"]
mod tests;

#[cfg(test)]
pub use queue::Part;
pub use queue::{Batch, Batching, Limits};
