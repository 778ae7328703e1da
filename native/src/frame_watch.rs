//! Counts the frames that a client sends and that make work without being a call: pings, settings, resets and the like.
//!
//! hyper answers each of them and has no bound on most. A client that sends many more of them than honest ones do is cut,
//! and before that its bytes are read slowly: see guarded_io.rs.

use crate::authority::mend_authority;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADER: usize = 9;
const HEADERS: u8 = 1;
const WINDOW_UPDATE: u8 = 8;
/// Of no frame that there is; what is of an unknown kind is passed over (RFC 9113, section 4.1).
const UNKNOWN: u8 = 0xff;
/// Frames that a client may be ahead of what it may send, and how many it may send in a second.
const BURST: f64 = 4_000.0;
const PER_SECOND: f64 = 1_000.0;
/// Such frames, calls or not, that it may be ahead before its bytes are read slowly, and before its first answer.
const MANY: f64 = 256.0;
const MANY_OF_STRANGERS: f64 = 32.0;
/// A call in vain, such as one of a method that there is not, is as much work.
const FRAMES_OF_VAIN_CALL: usize = 16;

#[derive(Debug)]
pub struct FrameWatch {
    num_preface: usize, // bytes of it that have come
    is_http2: bool,
    header: [u8; HEADER],
    num_header: usize,
    num_skipped: usize, // bytes of the frame that are still to come
    credit: f64,
    num_lately: f64, // such frames, calls or not; it falls by PER_SECOND
    num_read: usize, // such frames, in the bytes that came last
    at_us: u64,
    is_unix: bool,
    /// The connection's end has been told, and the last stream that was opened before.
    is_leaving: bool,
    last_stream: u32,
}

impl FrameWatch {
    pub fn new(now_us: u64, is_unix: bool) -> Self {
        Self {
            num_preface: 0,
            is_http2: true,
            header: [0; HEADER],
            num_header: 0,
            num_skipped: 0,
            credit: BURST,
            num_lately: 0.0,
            num_read: 0,
            at_us: now_us,
            is_unix,
            is_leaving: false,
            last_stream: 0,
        }
    }

    /// From now on new streams are only refused.
    pub fn leave(&mut self) {
        self.is_leaving = true;
    }

    /// Whether it has said what it speaks.
    pub fn has_begun(&self) -> bool {
        !self.is_http2 || self.num_preface == PREFACE.len()
    }

    pub fn is_http2(&self) -> bool {
        self.is_http2 && self.has_begun()
    }

    /// Such frames in the bytes that came last, where there have been many of late; None where there have not.
    pub fn num_pushed(&self, has_answer: bool) -> Option<usize> {
        let many = if has_answer { MANY } else { MANY_OF_STRANGERS };
        (self.num_lately > many).then_some(self.num_read)
    }

    /// So many calls have ended in vain since the last bytes came. They slow down who makes them, and cut nobody.
    pub fn note_vain_calls(&mut self, num_calls: usize) {
        let num_frames = num_calls * FRAMES_OF_VAIN_CALL;
        self.num_lately += num_frames as f64;
        self.num_read += num_frames;
    }

    /// What has come. False where it is too much.
    pub fn see(&mut self, mut bytes: &mut [u8], now_us: u64) -> bool {
        while self.is_http2 && self.num_preface < PREFACE.len() {
            let [first, rest @ ..] = bytes else { return true };
            self.is_http2 = PREFACE[self.num_preface] == *first;
            self.num_preface += 1;
            bytes = rest;
        }
        let earned = (now_us - self.at_us) as f64 * PER_SECOND / 1e6;
        self.credit = (self.credit + earned).min(BURST);
        self.num_lately = (self.num_lately - earned).max(0.0);
        self.num_read = 0;
        self.at_us = now_us;
        if self.is_http2 {
            self.frames(bytes);
        }
        self.credit >= 0.0
    }

    fn frames(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            if self.num_skipped > 0 {
                let num = self.num_skipped.min(bytes.len());
                self.num_skipped -= num;
                let (payload, rest) = bytes.split_at_mut(num);
                if self.is_unix && self.header[3] == HEADERS {
                    mend_authority(payload);
                }
                bytes = rest;
                continue;
            }
            let num = (HEADER - self.num_header).min(bytes.len());
            self.header[self.num_header..self.num_header + num].copy_from_slice(&bytes[..num]);
            self.num_header += num;
            let (header, rest) = bytes.split_at_mut(num);
            bytes = rest;
            if self.num_header == HEADER {
                self.num_header = 0;
                self.frame(header);
            }
        }
    }

    /// `header`: what came last of it.
    fn frame(&mut self, header: &mut [u8]) {
        let [a, b, c, kind, flags, d, e, f, g] = self.header;
        self.num_skipped = u32::from_be_bytes([0, a, b, c]) as usize;
        let stream = u32::from_be_bytes([d, e, f, g]);
        if kind == HEADERS && !self.is_leaving {
            self.last_stream = stream;
        }
        // A client may have begun a stream when it heard of the end, and h2 passes over its HEADERS and DATA; but for its
        // WINDOW_UPDATE it ends the connection, and with it the calls that were admitted. Nobody needs that frame.
        if kind == WINDOW_UPDATE
            && stream > self.last_stream
            && self.is_leaving
            && let Some(at) = header.len().checked_sub(HEADER - 3)
        {
            header[at] = UNKNOWN;
        }
        let is_end = flags & 1 != 0;
        let cost = match kind {
            0 if self.num_skipped > 0 || is_end => 0.0, // DATA
            HEADERS => -1.0,                            // HEADERS: a call, which answers for a few other frames
            WINDOW_UPDATE => 0.25,
            _ => 1.0,
        };
        self.credit = (self.credit - cost).min(BURST);
        if cost > 0.0 {
            self.num_lately += cost;
            self.num_read += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
        [&[a, b, c, kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn begun() -> FrameWatch {
        let mut watch = FrameWatch::new(0, false);
        assert!(watch.see(&mut PREFACE[..5].to_vec(), 0) && !watch.has_begun());
        assert!(watch.see(&mut PREFACE[5..].to_vec(), 0) && watch.has_begun());
        watch
    }

    // fault: S14
    #[test]
    fn a_flood_of_pings_is_too_much_however_it_is_cut() {
        let flood = frame(6, 0, &[0; 8]).repeat(4_001);
        for size in [1, 7, 17, 4096, 100_000] {
            let mut watch = begun();
            assert!(!flood.clone().chunks_mut(size).all(|piece| watch.see(piece, 0)));
        }
    }

    #[test]
    fn pings_at_an_honest_pace_are_not() {
        let mut watch = begun();
        assert!((0..20_000).all(|number| watch.see(&mut frame(6, 0, &[0; 8]), number * 1_000)));
        assert_eq!(watch.num_pushed(true), None);
    }

    #[test]
    fn many_such_frames_of_late_are_known_before_they_are_too_many_and_so_are_resets_of_calls() {
        let cancelled = [frame(1, 4, &[0; 40]), frame(3, 0, &[0; 4])].concat();
        for frames in [frame(6, 0, &[0; 8]), cancelled] {
            let mut watch = begun();
            assert!(watch.see(&mut frames.repeat(256), 0));
            assert_eq!(watch.num_pushed(true), None);
            assert!(watch.see(&mut frames.repeat(3), 0));
            assert_eq!(watch.num_pushed(true), Some(3));
            assert!(watch.see(&mut frames.clone(), 1_000_000));
            assert_eq!(watch.num_pushed(true), None);
        }
    }

    #[test]
    fn before_the_first_answer_fewer_are_many_and_calls_in_vain_slow_down_but_do_not_cut() {
        let mut watch = begun();
        assert!(watch.see(&mut frame(6, 0, &[0; 8]).repeat(33), 0));
        assert_eq!((watch.num_pushed(false), watch.num_pushed(true)), (Some(33), None));
        watch.note_vain_calls(1_000);
        assert_eq!(watch.num_pushed(true), Some(33 + 16_000));
        assert!(watch.see(&mut frame(6, 0, &[0; 8]), 17_000_000));
        assert_eq!(watch.num_pushed(false), None);
    }

    #[test]
    fn calls_cost_nothing_nor_do_their_resets_and_resets_alone_do() {
        let call = [frame(1, 4, &[0; 40]), frame(0, 1, &[6; 800])].concat();
        let mut watch = begun();
        assert!((0..20_000).all(|_| watch.see(&mut call.clone(), 0)));
        // A deadline that has passed takes its call back, and honest clients have many of those when there is much to do.
        let late = [call, frame(3, 0, &[0; 4])].concat();
        assert!((0..20_000).all(|_| watch.see(&mut late.clone(), 0)));
        let reset = frame(3, 0, &[0; 4]);
        assert!(!(0..20_000).all(|_| watch.see(&mut reset.clone(), 0)));
    }

    #[test]
    fn after_the_end_is_told_windows_of_later_streams_are_passed_over() {
        let window = |stream| [&[0, 0, 4, 8, 0, 0, 0, 0, stream][..], &[0, 0, 1, 0]].concat();
        let mut watch = begun();
        let mut kinds = |stream| {
            let mut bytes = window(stream);
            watch.see(&mut bytes, 0);
            let before = bytes[3];
            watch.see(&mut frame(HEADERS, 4, &[]), 0); // stream 1
            watch.leave();
            let mut bytes = window(stream);
            watch.see(&mut bytes, 0);
            (before, bytes[3])
        };
        assert_eq!(kinds(3), (8, 0xff));
        assert_eq!([0, 1].map(kinds), [(8, 8); 2]);
    }

    #[test]
    fn http_1_is_left_alone_but_for_calls_in_vain() {
        let mut watch = FrameWatch::new(0, false);
        assert!(watch.see(&mut b"PROPFIND / HTTP/1.1\r\n".to_owned(), 0) && watch.has_begun());
        assert!((0..10_000).all(|_| watch.see(&mut [0; 64], 0)));
        watch.note_vain_calls(100);
        assert_eq!(watch.num_pushed(true), Some(1_600));
        assert!(watch.see(&mut [0; 64], 2_000_000));
        assert_eq!(watch.num_pushed(false), None);
    }
}
