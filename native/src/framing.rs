//! gRPC's messages in HTTP's bodies: a byte that says whether it is compressed, four of length, and the message.

use std::io::Read;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::read::{GzDecoder, ZlibDecoder};

use crate::aside::give_turn;
use crate::status::{Code, Status};

const PREFIX: usize = 5;
/// Room that a message gets because it says that it is so long.
const LARGE_BYTES: usize = 64 << 10;
/// What is inflated in one go.
const PIECE_BYTES: u64 = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Identity,
    Gzip,
    Deflate,
}

impl Encoding {
    /// Of the header grpc-encoding.
    pub fn from_name(name: &[u8]) -> Result<Self, Status> {
        match name {
            b"identity" => Ok(Self::Identity),
            b"gzip" => Ok(Self::Gzip),
            b"deflate" => Ok(Self::Deflate),
            _ => {
                let what = "messages in this grpc-encoding cannot be read";
                Err(Status::new(Code::Unimplemented, "BAD_ENCODING", what, "send identity, gzip or deflate"))
            }
        }
    }
}

/// A message as it came; compressed ones are for `inflated`.
#[derive(Debug, PartialEq, Eq)]
pub struct Raw {
    pub is_compressed: bool,
    pub bytes: Bytes,
}

/// Finds the messages in what comes, however it is cut. One that comes in one piece is not copied.
#[derive(Debug)]
pub struct Decoder {
    /// Bytes of a message, compressed or not.
    pub limit: usize,
    one: Bytes,
    many: BytesMut,
    /// The messages are of no use to anybody: most of their bytes are thrown away as they come.
    is_skipping: bool,
    num_skipped: usize,
}

impl Decoder {
    pub fn new(limit: usize) -> Self {
        Self { limit, one: Bytes::new(), many: BytesMut::new(), is_skipping: false, num_skipped: 0 }
    }

    /// Finds where messages end, but has no more of them than came first.
    pub fn skip(&mut self) {
        self.is_skipping = true;
    }

    pub fn push(&mut self, piece: Bytes) {
        if self.num_bytes() == 0 {
            self.one = piece;
        } else if self.is_skipping && self.num_bytes() >= PREFIX {
            self.num_skipped += piece.len();
        } else {
            let one = std::mem::take(&mut self.one);
            if let Some((_, length)) = prefix(&one) {
                self.many.reserve((PREFIX + length).min(LARGE_BYTES)); // of more, what comes first
            }
            self.many.extend_from_slice(&one);
            self.many.extend_from_slice(&piece);
        }
    }

    /// What has come of messages that are not whole.
    pub fn num_bytes(&self) -> usize {
        self.one.len() + self.many.len()
    }

    /// The next whole message. Err where it is too long, as soon as that is known.
    pub fn next(&mut self) -> Result<Option<Raw>, Status> {
        let bytes: &[u8] = if self.one.is_empty() { &self.many } else { &self.one };
        let Some((flag, length)) = prefix(bytes) else { return Ok(None) };
        if flag > 1 {
            return Err(Status::invalid("MALFORMED", format!("a message begins with {flag}, not 0 or 1"), "send gRPC"));
        }
        if length > self.limit {
            return Err(too_large(format!("the message has {length} bytes"), self.limit));
        }
        if bytes.len() + self.num_skipped < PREFIX + length {
            return Ok(None);
        }
        let length = length.min(bytes.len() - PREFIX);
        let bytes = if self.one.is_empty() {
            self.many.advance(PREFIX);
            self.many.split_to(length).freeze()
        } else {
            self.one.advance(PREFIX);
            self.one.split_to(length)
        };
        Ok(Some(Raw { is_compressed: flag == 1, bytes }))
    }
}

/// What a compressed message holds.
pub fn inflated(bytes: &[u8], encoding: Encoding, limit: usize) -> Result<Bytes, Status> {
    let reader: Box<dyn Read + '_> = match encoding {
        Encoding::Gzip => Box::new(GzDecoder::new(bytes)),
        Encoding::Deflate => Box::new(ZlibDecoder::new(bytes)),
        Encoding::Identity => {
            let what = "a message says that it is compressed, and the headers name no grpc-encoding";
            return Err(Status::invalid("MALFORMED", what, "send grpc-encoding"));
        }
    };
    let (mut reader, mut message) = (reader.take(limit as u64 + 1), Vec::new());
    loop {
        match reader.by_ref().take(PIECE_BYTES).read_to_end(&mut message) {
            Ok(0) => break,
            Ok(_) => give_turn(),
            Err(_) => {
                let what = "a message cannot be decompressed";
                return Err(Status::invalid("MALFORMED", what, "send what grpc-encoding says"));
            }
        }
    }
    if message.len() > limit {
        return Err(too_large(format!("the message has more than {limit} bytes when decompressed"), limit));
    }
    Ok(message.into())
}

/// The byte that says whether a message is compressed, and its length.
fn prefix(bytes: &[u8]) -> Option<(u8, usize)> {
    let &[flag, a, b, c, d, ..] = bytes else { return None };
    Some((flag, u32::from_be_bytes([a, b, c, d]) as usize))
}

/// A message with its prefix.
pub fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(PREFIX + message.len());
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    frame.freeze()
}

/// A message and its prefix, with what stands in another one of the same kind behind it: protobuf merges them.
pub fn extended(frame: &[u8], more: &impl prost::Message) -> Bytes {
    framed(&[&frame[PREFIX..], &more.encode_to_vec()].concat())
}

pub fn too_large(what: String, limit: usize) -> Status {
    let cure = "send less at once, or raise --max-message-bytes";
    let status = Status::overloaded("MESSAGE_TOO_LARGE", format!("{what}, the limit is {limit}"), cure);
    Status { pushback_ms: None, ..status } // later it is as large
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random and are the same every time.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.0 >> 33) as usize % sides
        }
    }

    fn decoded(bytes: &[u8], limit: usize, mut cut: impl FnMut() -> usize) -> Result<Vec<Raw>, Status> {
        let (mut decoder, mut found, mut rest) = (Decoder::new(limit), Vec::new(), bytes);
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(cut().min(rest.len()));
            decoder.push(Bytes::copy_from_slice(piece));
            while let Some(raw) = decoder.next()? {
                found.push(raw);
            }
            rest = behind;
        }
        Ok(found)
    }

    #[test]
    fn messages_are_found_however_they_are_cut() {
        let mut dice = Dice(1);
        for _ in 0..300 {
            let messages: Vec<Vec<u8>> =
                (0..dice.roll(5)).map(|_| (0..dice.roll(300)).map(|_| dice.roll(256) as u8).collect()).collect();
            let bytes = messages.iter().map(|message| framed(message)).collect::<Vec<_>>().concat();
            let largest = dice.roll(40) + 1;
            let found = decoded(&bytes, 300, || dice.roll(largest) + 1).unwrap();
            assert_eq!(found.iter().map(|raw| raw.bytes.to_vec()).collect::<Vec<_>>(), messages);
        }
    }

    #[test]
    fn messages_that_are_skipped_end_where_they_do_and_hold_little() {
        let message = framed(&[7; 50_000]);
        let mut decoder = Decoder::new(50_000);
        decoder.skip();
        let (last, before) =
            message.chunks(1_000).collect::<Vec<_>>().split_last().map(|(a, b)| (*a, b.to_vec())).unwrap();
        for piece in before {
            decoder.push(Bytes::copy_from_slice(piece));
            assert_eq!((decoder.next(), decoder.num_bytes()), (Ok(None), 1_000));
        }
        decoder.push(Bytes::copy_from_slice(last));
        assert!(decoder.next().unwrap().is_some());
    }

    // fault: S1
    #[test]
    fn whatever_comes_is_a_message_or_an_error() {
        let mut dice = Dice(2);
        for _ in 0..20_000 {
            let bytes: Vec<u8> =
                (0..dice.roll(64)).map(|_| [0, 1, 2, 255, dice.roll(256)][dice.roll(5)] as u8).collect();
            if let Ok(found) = decoded(&bytes, 20, || dice.roll(9) + 1) {
                assert!(found.iter().all(|raw| raw.bytes.len() <= 20));
            }
            for encoding in [Encoding::Gzip, Encoding::Deflate, Encoding::Identity] {
                assert!(inflated(&bytes, encoding, 20).map_or(true, |message| message.len() <= 20));
            }
        }
    }

    // fault: S9
    #[test]
    fn a_message_that_is_too_long_is_refused_as_soon_as_its_length_is_known() {
        let mut decoder = Decoder::new(10);
        decoder.push(Bytes::from_static(&[0, 0, 0, 0, 11]));
        let refusal = decoder.next().unwrap_err();
        assert_eq!((refusal.code, refusal.pushback_ms), (Code::ResourceExhausted, None));
        let cure = "send less at once, or raise --max-message-bytes";
        assert_eq!(refusal.message, format!("MESSAGE_TOO_LARGE: the message has 11 bytes, the limit is 10 ({cure})"));
    }
}
