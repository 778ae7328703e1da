//! What must hold of calls and devices, seen from outside.

use std::sync::Arc;
use std::task::Poll;

use super::client::row_of;
use super::device::place;
use super::registry::{Call, End};
use super::scenario::Scenario;
use super::world::State;
use crate::batching::{Batch, Part};
use crate::job::{Job, Settled};
use crate::status::Status;

/// Long before the pace is believed less.
const RECENT_US: u64 = 400_000;
/// So seldom the server looks for what is late, where no call was under way when it looked last.
const TICK_US: u64 = 100_000;
/// What calls are told at the end of their process.
const OVER: [&str; 4] = ["DRAINING", "DRAIN_TIMEOUT", "BACKEND_BROKEN", "BACKEND_HUNG"];

impl State {
    /// The version that a call got.
    pub fn check_version(&mut self, id: usize, version: &str, asked: &str) {
        let device: usize = version.parse().expect("a version is its device's number");
        self.ensure(asked.is_empty() || asked == version, || format!("{asked} was asked for, {version} found"));
        let is_theirs = Some(self.devices[device].process) == self.calls[id].process;
        self.ensure(is_theirs, || format!("version {version} is of another process than call {id}"));
    }

    /// Notes what a call finds that asks a device, where so many requests and images wait.
    pub fn ask(&mut self, scenario: &Scenario, id: usize, device: usize, num_images: usize, counted: (usize, usize)) {
        let (now_us, known) = (self.now_us, &self.devices[device]);
        let waiting = known.waiting.iter().map(|&id| &self.calls[id]);
        let is_known = counted == (known.waiting.len(), waiting.clone().map(Call::num_waiting).sum());
        // Else some hear in this moment that they are late, or of a process that has ended.
        let changes = known.began_us == Some(now_us) || known.finished_us == now_us || self.is_over(&self.calls[id]);
        let is_explained = is_known || changes || waiting.clone().any(|call| now_us >= call.deadline_us);
        let has_room = is_known.then(|| self.has_room(scenario, device, self.calls[id].peer, num_images));
        let was_empty = known.waiting.is_empty() && known.began_us.is_none();
        let is_promised = scenario.is_calm && is_known && !was_empty && now_us - known.finished_us <= RECENT_US;
        let is_bounded = counted.1 <= scenario.limits.max_queue_size;
        self.ensure(is_explained && is_bounded, || format!("{counted:?} requests and images wait on device {device}"));
        let call = &mut self.calls[id];
        call.device = Some(device);
        (call.arrived_us, call.has_room, call.was_empty, call.is_promised) = (now_us, has_room, was_empty, is_promised);
    }

    fn has_room(&self, scenario: &Scenario, device: usize, peer: u64, num_images: usize) -> bool {
        let limit = scenario.limits.max_queue_size;
        let waiting: Vec<&Call> = self.devices[device].waiting.iter().map(|&id| &self.calls[id]).collect();
        let after = waiting.iter().map(|other| other.num_waiting()).sum::<usize>() + num_images;
        let mut peers: Vec<u64> = waiting.iter().map(|other| other.peer).collect();
        peers.sort_unstable();
        peers.dedup();
        let held: usize = waiting.iter().filter(|other| other.peer == peer).map(|other| other.num_waiting()).sum();
        let is_greedy = held > 0 && held + num_images > limit / 4 / peers.len().max(1);
        after <= limit && !(4 * after > 3 * limit && is_greedy)
    }

    pub fn submit(&mut self, id: usize) {
        let device = self.calls[id].device.expect("it has asked one");
        self.devices[device].waiting.push(id);
    }

    /// It was admitted, or refused, and may even have been answered at once.
    pub fn submitted(&mut self, scenario: &Scenario, id: usize, first: &Poll<Settled>) {
        let call = &mut self.calls[id];
        let is_refused = matches!(first, Poll::Ready(Err(_))) && call.num_taken == 0;
        let device = call.device.expect("it has asked one");
        if is_refused {
            self.devices[device].waiting.retain(|&other| other != id);
            return;
        }
        call.is_admitted = true;
        let call = *call;
        self.note(|| format!("call {id}: admitted by device {device}"));
        let is_in_time = self.now_us < call.deadline_us || first.is_ready();
        let waiting = self.devices[device].waiting.iter().map(|&id| &self.calls[id]);
        let waiting = waiting.filter(|call| self.now_us < call.deadline_us && !call.is_dropped);
        let is_bounded = waiting.map(Call::num_waiting).sum::<usize>() <= scenario.limits.max_queue_size;
        let holds = call.has_room != Some(false) && is_in_time && call.begun_us <= self.drains_from_us;
        self.ensure(holds && is_bounded, || {
            format!("admitted without room or time, or in a drain: call {id}, {call:?}")
        });
    }

    /// A device has been given a batch: it must be the one that DESIGN's rules 1 and 2 say.
    pub fn begin(&mut self, scenario: &Scenario, device: usize, batch: &Batch<Arc<Job>>) {
        let known = &mut self.devices[device];
        let is_free = known.began_us.replace(self.now_us).is_none() && !known.is_freed;
        let waiting = std::mem::take(&mut known.waiting);
        self.ensure(is_free, || format!("device {device} has a batch already, or was freed"));
        let mut others = waiting.iter().copied();
        for (index, part) in batch.parts.iter().enumerate() {
            let Some(id) = self.call_of(part) else { continue }; // a probe
            for passed in others.by_ref().take_while(|&other| other != id) {
                self.calls[passed].is_dropped = true;
            }
            let waits = self.calls[id].device == Some(device) && waiting.contains(&id);
            self.ensure(waits, || format!("call {id} does not wait for device {device}"));
            self.check_part(scenario, id, part);
            if index == 0 {
                self.check_began_soon(scenario, device, self.calls[id].arrived_us);
            }
        }
        let size = scenario.limits.max_batch_size;
        self.ensure(batch.num_images <= size, || format!("a batch of {} images", batch.num_images));
        let room = size.saturating_sub(batch.num_images);
        for id in others {
            let call = &mut self.calls[id];
            if room == 0 || call.num_waiting() > room && call.num_images <= size {
                break;
            }
            call.is_dropped = true; // it would have had room
        }
        let calls = &self.calls;
        let still = waiting.into_iter().filter(|&id| calls[id].num_waiting() > 0 && !calls[id].is_dropped);
        self.devices[device].waiting = still.collect();
    }

    /// Whose part it is; None for a probe.
    pub fn call_of(&self, part: &Part<Arc<Job>>) -> Option<usize> {
        place(&part.payload.images).map(|image| self.calls.partition_point(|call| call.first_image <= image) - 1)
    }

    fn check_part(&mut self, scenario: &Scenario, id: usize, part: &Part<Arc<Job>>) {
        let call = &mut self.calls[id];
        let is_right = place(&part.payload.images) == Some(call.first_image) && call.num_images == part.num_images;
        let goes_on = call.end.is_none() && !call.has_failed && self.now_us < call.deadline_us;
        let follows = call.num_taken == part.start && part.start < part.stop && part.stop <= call.num_images;
        let is_whole = part.start == 0 && part.is_last() || call.num_images > scenario.limits.max_batch_size;
        call.num_taken = part.stop;
        let call = *call;
        let holds = is_right && goes_on && follows && is_whole;
        self.ensure(holds, || format!("{}..{} of call {id} are run: {call:?}", part.start, part.stop));
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
            _ => (End::GivenUp, OVER.contains(&word.as_str()) && self.is_over(&call)),
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
            "NO_PROCESS" => self.process.is_none(),
            _ => OVER.contains(&word) && self.is_over(call),
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

    /// A device that nobody asks is tried: each has run a batch since then.
    pub fn check_probes(&mut self, since_us: u64) {
        let process = self.process.clone().expect("it is ready");
        for served in process.life.versions.loaded() {
            let device: usize = served.model.version.parse().expect("a version is its device's number");
            let is_tried = self.devices[device].finished_us > since_us;
            self.ensure(is_tried, || format!("device {device} was never tried"));
        }
    }

    /// A batch has run for so long, and the server must know of one that hangs.
    pub fn check_hang(&mut self, scenario: &Scenario, device: usize, took_us: u64, is_given_up: bool) {
        let longest_us = scenario.limits.hang_timeout_us + TICK_US;
        self.ensure(is_given_up || took_us <= longest_us, || format!("device {device} hung, and nobody noticed"));
    }
}
