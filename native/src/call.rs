//! One call: its place among those under way, its deadline, and what it is counted as in the end.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use http::Request;

use crate::budget::Hold;
use crate::connection::Peer;
use crate::metrics::Method;
use crate::records::Begun;
use crate::server::Server;
use crate::status::{Code, Status};

/// Messages without images are no larger.
pub const MAX_OTHER_BYTES: usize = 64 << 10;

/// A client that has left answers lying for so long gets no others.
const STUCK_US: u64 = 500_000;

/// From its headers to its answer. Dropped before that, the client has gone.
pub struct Call {
    pub server: Arc<Server>,
    pub peer: Arc<Peer>,
    pub method: Method,
    pub deadline_us: u64,
    pub is_lone: bool,
    /// Where somebody wants to hear of it.
    pub record: Option<Box<Begun>>,
    is_counted: bool,
    place: Option<Hold>,
}

impl Call {
    pub fn begin<B>(server: Arc<Server>, peer: Arc<Peer>, method: Method, request: &Request<B>) -> Self {
        let num_others = server.life.num_calls.fetch_add(1, Relaxed);
        let now_us = server.now_us();
        server.linger.begin(num_others, now_us);
        peer.begin_call(now_us);
        let settings = &server.settings;
        let timeout_us = request.headers().get("grpc-timeout").and_then(|value| timeout_us(value.as_bytes()));
        let default_us = (settings.default_deadline_s * 1e6) as u64;
        let limit_us = (settings.max_deadline_s * 1e6) as u64;
        let deadline_us = now_us + timeout_us.unwrap_or(default_us).min(limit_us);
        let record = server.records.are_wanted.then(|| Box::new(Begun::new(request, now_us)));
        Self { server, peer, method, deadline_us, is_lone: num_others == 0, record, is_counted: false, place: None }
    }

    pub fn max_message_bytes(&self) -> usize {
        let limit = self.server.settings.max_message_bytes;
        if self.method.has_images() { limit } else { limit.min(MAX_OTHER_BYTES) }
    }

    /// The client may have said twice how long it waits: the smaller holds.
    pub fn shorten_deadline(&mut self, timeout_us: Option<u64>) {
        if let Some(timeout_us) = timeout_us.filter(|&timeout_us| timeout_us > 0) {
            self.deadline_us = self.deadline_us.min(self.server.now_us().saturating_add(timeout_us));
        }
    }

    /// Whether it is still the only one, which it may have been when it began.
    pub fn is_still_lone(&self) -> bool {
        self.is_lone && self.server.life.num_calls.load(Relaxed) == 1
    }

    /// A place among those whose message is there; none where as many are under way as may be, or the client does not
    /// take the answers that it has.
    pub fn take_place(&mut self) -> Result<(), Status> {
        if self.peer.is_stuck(self.server.now_us(), STUCK_US) {
            let what = "answers to this connection wait to be taken";
            return Err(Status::overloaded("UNREAD_ANSWERS", what, "read them, and open HTTP/2's windows"));
        }
        self.place = Some(self.server.budgets.calls.take(self.peer.number, 1)?);
        Ok(())
    }

    pub fn count(&mut self, code: Code) {
        self.is_counted = true;
        if matches!(code, Code::Unimplemented | Code::Unauthenticated) {
            self.peer.note_vain_call();
        }
        self.server.metrics().count_call(self.method, code);
        if let Some(record) = self.record.take() {
            self.server.records.keep(*record, code, self.server.now_us());
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.server.life.num_calls.fetch_sub(1, Relaxed) == 1 {
            self.server.linger.end(self.server.now_us());
        }
        self.peer.num_calls.fetch_sub(1, Relaxed);
        if !self.is_counted {
            let is_late = self.server.now_us() >= self.deadline_us;
            self.count(if is_late { Code::DeadlineExceeded } else { Code::Cancelled });
        }
    }
}

/// The header grpc-timeout: up to eight digits and a unit.
fn timeout_us(value: &[u8]) -> Option<u64> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    match unit {
        b'H' => Some(number * 3_600_000_000),
        b'M' => Some(number * 60_000_000),
        b'S' => Some(number * 1_000_000),
        b'm' => Some(number * 1_000),
        b'u' => Some(number),
        b'n' => Some(number / 1_000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::timeout_us;

    #[test]
    fn timeouts_are_read_in_all_their_units() {
        let timeouts = ["1H", "2M", "3S", "4m", "5u", "6000n", "99999999H"].map(|value| timeout_us(value.as_bytes()));
        let expected = [3_600_000_000, 120_000_000, 3_000_000, 4_000, 5, 6, 99_999_999 * 3_600_000_000];
        assert_eq!(timeouts, expected.map(Some));
    }

    #[test]
    fn nonsense_is_no_timeout() {
        for value in ["", "m", "-1m", "1", "1x", "123456789m", "1.5S", "\u{663}m"] {
            assert_eq!(timeout_us(value.as_bytes()), None);
        }
    }
}
