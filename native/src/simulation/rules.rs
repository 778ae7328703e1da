//! What must hold of calls and devices, seen from outside.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::task::Poll;

use super::client::row_of;
use super::device::place;
use super::registry::{Call, End};
use super::scenario::Scenario;
use super::world::State;
use crate::batching::Batch;
use crate::job::{Job, Settled};
use crate::status::Status;

/// Long before the pace is believed less.
const RECENT_US: u64 = 400_000;
/// So seldom the server looks for what is late, where no call was under way when it looked last.
const TICK_US: u64 = 100_000;

impl State {
    /// The device of the version that a call got.
    pub fn check_version(&mut self, version: &str, asked: &str, process: usize) -> usize {
        let device: usize = version.parse().expect("a version is its device's number");
        self.ensure(asked.is_empty() || asked == version, || format!("{asked} was asked for, {version} found"));
        let (theirs, is_freed) = (self.devices[device].process, self.devices[device].is_freed);
        self.ensure(theirs == process && !is_freed, || format!("version {version} is no version of process {process}"));
        device
    }

    /// Notes what a call finds that asks this device.
    pub fn ask(&mut self, scenario: &Scenario, id: usize, device: usize, num_waiting: usize) {
        let (now_us, call) = (self.now_us, &self.calls[id]);
        let known = &self.devices[device];
        let counted: usize = known.waiting.iter().map(|&id| self.calls[id].num_waiting()).sum();
        let is_known = counted == num_waiting; // else somebody hears in a moment that it was late
        let has_room = is_known.then(|| self.has_room(scenario, device, call));
        let was_empty = known.waiting.is_empty() && known.began_us.is_none();
        let is_recent = now_us - known.finished_us <= RECENT_US;
        let is_promised = scenario.is_calm && is_known && !was_empty && is_recent;
        let limit = scenario.limits.max_queue_size;
        self.ensure(num_waiting <= limit, || format!("{num_waiting} images wait on device {device}"));
        let call = &mut self.calls[id];
        call.device = Some(device);
        (call.arrived_us, call.has_room, call.was_empty, call.is_promised) = (now_us, has_room, was_empty, is_promised);
    }

    fn has_room(&self, scenario: &Scenario, device: usize, call: &Call) -> bool {
        let limit = scenario.limits.max_queue_size;
        let waiting: Vec<&Call> = self.devices[device].waiting.iter().map(|&id| &self.calls[id]).collect();
        let after = waiting.iter().map(|other| other.num_waiting()).sum::<usize>() + call.num_images;
        let mut peers: Vec<u64> = waiting.iter().map(|other| other.peer).collect();
        peers.sort_unstable();
        peers.dedup();
        let held: usize = waiting.iter().filter(|other| other.peer == call.peer).map(|other| other.num_waiting()).sum();
        let is_greedy = held > 0 && held + call.num_images > limit / 4 / peers.len().max(1);
        after <= limit && !(4 * after > 3 * limit && is_greedy)
    }

    pub fn submit(&mut self, id: usize) {
        let device = self.calls[id].device.expect("it has asked one");
        self.devices[device].waiting.push(id);
    }

    /// It was admitted, or refused, and may even have been answered at once.
    pub fn submitted(&mut self, id: usize, first: &Poll<Settled>, num_waiting: usize) {
        let call = &mut self.calls[id];
        let is_refused = matches!(first, Poll::Ready(Err(_))) && call.num_taken == 0;
        let device = call.device.expect("it has asked one");
        if is_refused {
            self.devices[device].waiting.retain(|&other| other != id);
            return;
        }
        call.is_admitted = true;
        let (has_room, deadline_us, begun_us) = (call.has_room, call.deadline_us, call.begun_us);
        self.note(|| format!("call {id}: admitted, {num_waiting} images wait on device {device}"));
        self.ensure(has_room != Some(false), || format!("admitted call {id}, and there is no room"));
        let now_us = self.now_us;
        self.ensure(begun_us <= self.drains_from_us, || format!("admitted call {id} in a drain"));
        self.ensure(now_us < deadline_us || first.is_ready(), || format!("admitted call {id} behind its deadline"));
    }

    /// A device has been given a batch: it must be the one that DESIGN's rules 1 and 2 say.
    pub fn begin(&mut self, scenario: &Scenario, device: usize, batch: &Batch<Arc<Job>>) {
        let now_us = self.now_us;
        let is_busy = self.devices[device].began_us.replace(now_us).is_some();
        self.ensure(!is_busy, || format!("device {device} has a batch already"));
        let waiting = std::mem::take(&mut self.devices[device].waiting);
        let mut others = waiting.iter().copied();
        for (index, part) in batch.parts.iter().enumerate() {
            let Some(image) = place(&part.payload.images) else { continue }; // a probe
            let id = self.calls.partition_point(|call| call.first_image <= image) - 1;
            for passed in others.by_ref().take_while(|&other| other != id) {
                self.calls[passed].is_dropped = true;
            }
            let call = &mut self.calls[id];
            let is_right = call.first_image == image && call.num_images == part.num_images;
            let goes_on = call.end.is_none() && !call.has_failed && now_us < call.deadline_us;
            let follows = call.num_taken == part.start && part.start < part.stop && part.stop <= call.num_images;
            let is_whole = part.start == 0 && part.is_last() || call.num_images > scenario.limits.max_batch_size;
            let is_device = call.device == Some(device) && waiting.contains(&id);
            call.num_taken = part.stop;
            let arrived_us = call.arrived_us;
            let holds = is_right && goes_on && follows && is_whole && is_device;
            let call = *call;
            self.ensure(holds, || {
                format!("device {device} was given {}..{} of call {id}: {call:?}", part.start, part.stop)
            });
            if index == 0 {
                self.check_began_soon(scenario, device, arrived_us);
            }
        }
        let room = scenario.limits.max_batch_size.checked_sub(batch.num_images);
        self.ensure(room.is_some(), || format!("a batch of {} images", batch.num_images));
        for id in others {
            let call = &mut self.calls[id];
            if room.is_none_or(|room| call.num_waiting() > room) {
                break;
            }
            call.is_dropped = true; // it would have had room
        }
        let calls = &self.calls;
        let still = waiting.into_iter().filter(|&id| calls[id].num_waiting() > 0 && !calls[id].is_dropped);
        self.devices[device].waiting = still.collect();
    }

    /// A free device waits for nothing.
    fn check_began_soon(&mut self, scenario: &Scenario, device: usize, arrived_us: u64) {
        let free_us = arrived_us.max(self.devices[device].finished_us);
        let late_us = self.now_us - free_us;
        self.ensure(late_us <= scenario.max_lag_us, || format!("device {device} could have begun {late_us} us ago"));
    }

    /// What was told to a call whose end is no answer.
    pub fn end_from(&mut self, scenario: &Scenario, id: usize, status: &Status) -> End {
        let word = status.message.split(':').next().unwrap_or_default().to_owned();
        self.note(|| format!("call {id}: {}", status.message));
        let call = self.calls[id];
        if !call.is_admitted {
            self.check_refusal(scenario, id, &word, &status.message);
            return End::Refused;
        }
        let device = &self.devices[call.device.unwrap_or_default()];
        let (end, holds) = match word.as_str() {
            "EXPIRED" => {
                let is_hopeless = call.is_dropped || device.began_us == Some(self.now_us);
                (End::Expired, call.num_taken < call.num_images && (self.now_us >= call.deadline_us || is_hopeless))
            }
            "BAD_IMAGE" | "BACKEND_FAILED" | "NO_MEMORY" => (End::Failed, call.has_failed),
            _ => (End::GivenUp, self.is_over(&call)),
        };
        self.ensure(holds, || format!("call {id} was told {word}: {call:?}"));
        end
    }

    /// The process that a call went to does not serve any more.
    fn is_over(&self, call: &Call) -> bool {
        let process = self.process.as_ref().filter(|process| Some(process.number) == call.process);
        process.is_none_or(|process| !process.life.is_serving())
    }

    fn check_refusal(&mut self, scenario: &Scenario, id: usize, word: &str, message: &str) {
        let (call, now_us) = (&self.calls[id], self.now_us);
        let holds = match word {
            "EXPIRED" => now_us >= call.deadline_us,
            "QUEUE_FULL" => call.has_room != Some(true),
            "DEADLINE_TOO_SHORT" => !call.was_empty && (!scenario.is_calm || self.is_hasty(scenario, call)),
            _ => self.is_over(call),
        };
        let call = *call;
        self.ensure(holds, || format!("call {id} was refused: {message}, {call:?}"));
    }

    /// Whoever has plenty of time is not told that he has too little.
    fn is_hasty(&self, scenario: &Scenario, call: &Call) -> bool {
        let size = scenario.limits.max_batch_size;
        let waiting = &self.devices[call.device.unwrap_or_default()].waiting;
        let num_waiting: usize = waiting.iter().map(|&id| self.calls[id].num_waiting()).sum();
        let num_ahead = num_waiting + call.num_images + 2 * size;
        let plenty_us = 4 * num_ahead as u64 * scenario.batch_us(1) + 4 * scenario.batch_us(size) + 5_000;
        self.now_us + plenty_us > call.deadline_us
    }

    pub fn check_answer(&mut self, id: usize, message: &[u8]) {
        let call = &self.calls[id];
        let images = call.first_image..call.first_image + call.num_images;
        let rows = images.flat_map(|image| row_of(image, call.device.unwrap_or_default()));
        let holds = rows.flat_map(f32::to_le_bytes).eq(message.iter().copied());
        let has_failed = call.has_failed;
        self.ensure(holds && !has_failed, || format!("call {id} has another's answer"));
    }

    /// The client has heard, or is gone.
    pub fn settle(&mut self, id: usize, end: End) {
        let (now_us, call) = (self.now_us, &mut self.calls[id]);
        call.end = Some(end);
        let is_late = end == End::Expired || now_us > call.deadline_us;
        let breaks_promise = call.is_admitted && call.is_promised && end != End::Cancelled && is_late;
        let waits = call.is_admitted && call.num_taken == 0;
        let hears_late = waits && end != End::Cancelled && now_us > call.deadline_us + TICK_US;
        let is_unended = call.is_dropped && !matches!(end, End::Expired | End::Cancelled | End::GivenUp);
        let device = call.device.unwrap_or_default();
        if call.is_admitted {
            self.devices[device].waiting.retain(|&other| other != id);
        }
        self.note(|| format!("call {id}: {end:?}"));
        let holds = !breaks_promise && !hears_late && !is_unended;
        let call = self.calls[id];
        self.ensure(holds, || format!("promised, late or passed over: call {id}, {call:?}"));
    }

    /// A batch has run for so long, and the server must know of one that hangs.
    pub fn check_hang(&mut self, scenario: &Scenario, device: usize, took_us: u64, is_given_up: bool) {
        let longest_us = scenario.limits.hang_timeout_us + TICK_US;
        self.ensure(is_given_up || took_us <= longest_us, || format!("device {device} hung, and nobody noticed"));
    }
}
