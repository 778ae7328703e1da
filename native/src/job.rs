//! A request on its way through the batches, and its answer.

use std::sync::Mutex;

use bytes::{BufMut, Bytes};
use tokio::sync::oneshot;

use crate::response::{NUM_CLASSES, ResponseWriter, TimeSplit, write_logits};
use crate::shared::locked;
use crate::status::Status;

/// What was asked for, a message with its prefix if it is a whole one; or why there is none.
pub type Outcome = Result<Bytes, Status>;
/// The same from the batches, with the times that it took there.
pub type Settled = Result<(Bytes, TimeSplit), Status>;

/// What an answer is made of: the batches write it, part by part.
#[derive(Clone, Copy, Debug)]
pub enum Wanted {
    /// A ClassifyResponse with the best classes of each image.
    Classes { top_k: usize },
    /// The rows as the model gives them, float32 in little-endian.
    Logits,
}

/// What a call wants of the model.
#[derive(Debug)]
pub struct Work {
    pub images: Bytes,
    pub wanted: Wanted,
    pub deadline_us: u64,
    /// The connection.
    pub peer: u64,
    /// No other call is under way.
    pub is_lone: bool,
}

#[derive(Debug)]
pub struct Job {
    pub images: Bytes,
    wanted: Wanted,
    reply: Mutex<Option<oneshot::Sender<Settled>>>,
    /// What its batches so far have answered: the message, and the times.
    so_far: Mutex<(Vec<u8>, TimeSplit)>,
}

impl Job {
    pub fn new(images: Bytes, wanted: Wanted, reply: Option<oneshot::Sender<Settled>>) -> Self {
        Self { images, wanted, reply: Mutex::new(reply), so_far: Mutex::default() }
    }

    /// Tells the call, which hears it once; false if this was its answer, and its client has gone.
    pub fn settle(&self, outcome: Settled) -> bool {
        let is_answer = outcome.is_ok();
        locked(&self.reply).take().is_none_or(|reply| reply.send(outcome).is_ok() || !is_answer)
    }

    /// Adds what a batch has answered; the whole answer behind the last of them.
    pub fn answer(
        &self,
        writer: &ResponseWriter,
        rows: &[f32],
        time: TimeSplit,
        is_last: bool,
    ) -> Option<(Bytes, TimeSplit)> {
        let mut so_far = locked(&self.so_far);
        let (message, times) = &mut *so_far;
        times.add(time);
        match self.wanted {
            Wanted::Logits => write_logits(message, rows),
            Wanted::Classes { top_k } => {
                if message.is_empty() {
                    message.reserve(128 + 32 * top_k * rows.len() / NUM_CLASSES);
                    message.put_bytes(0, 5);
                }
                writer.classifications(message, rows, top_k);
                if is_last {
                    writer.finish(message, *times);
                    let length = (message.len() - 5) as u32;
                    message[1..5].copy_from_slice(&length.to_be_bytes());
                }
            }
        }
        is_last.then(|| (std::mem::take(message).into(), *times))
    }
}
