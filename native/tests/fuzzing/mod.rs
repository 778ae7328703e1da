//! Everything that reads what a client has sent reads mutants: each is read or refused, in time, however it is cut.
//!
//! `ATELIER_FUZZ_NUMBER=7 cargo test fuzzing` replays one, `ATELIER_FUZZ_EXECUTIONS=10000000 cargo test --release fuzzing
//! -- --nocapture` reads many, and `ATELIER_FUZZ_SEED=2` others.

mod mutants;

use std::collections::BTreeMap;
use std::fs;
use std::panic::catch_unwind;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes};
use prost::Message;

use crate::classify::check_num_fields;
use crate::frame_watch::FrameWatch;
use crate::framing::{Decoder, Encoding, Raw, framed, inflated};
use crate::http::{Decoding, json_request};
use crate::open_inference::read_request;
use crate::proto::atelier::v1::{ClassifyRequest, GetModelRequest};
use crate::proto::grpc::reflection::v1::ServerReflectionRequest;
use crate::proto::inference::ModelInferRequest;
use crate::status::{Code, Status};
use mutants::{Chance, Corpus, mutated};

const DEFAULT_EXECUTIONS: u64 = 20_000;
const MAX_IMAGES: usize = 64;
const MAX_BYTES: usize = 4096;
const HANG: Duration = Duration::from_millis(100);
/// Of one that took long: the machine may have been busy.
const NUM_LOOKS: usize = 5;

/// Reads one mutant; what it was, and whether it was read.
fn execute(corpus: &Corpus, seed: u64, number: u64) -> (&'static str, Result<(), Status>) {
    let chance = &mut Chance::new(seed, number);
    match chance.roll(8) {
        0 => ("ClassifyRequest", classify(&mutant(chance, &corpus.classify))),
        1 | 2 => ("ModelInferRequest", infer(&mutant(chance, &corpus.infer))),
        3 => ("other messages", others(&mutant(chance, &corpus.others))),
        4 => ("JSON", json(chance, corpus)),
        5 => ("gRPC's framing", framing(chance, corpus)),
        6 => ("compressed", compressed(chance, corpus)),
        _ => ("HTTP/2's frames", frames(chance)),
    }
}

fn mutant(chance: &mut Chance, seeds: &[Vec<u8>]) -> Vec<u8> {
    let seed = chance.roll(seeds.len());
    mutated(chance, &seeds[seed])
}

fn classify(message: &[u8]) -> Result<(), Status> {
    check_num_fields(MAX_IMAGES, message)?;
    let request = read::<ClassifyRequest>(message)?;
    assert!(request.pictures.len() <= MAX_IMAGES + 16, "{} pictures", request.pictures.len());
    Ok(())
}

fn infer(message: &[u8]) -> Result<(), Status> {
    read_request(MAX_IMAGES, Bytes::copy_from_slice(message)).map(drop)
}

fn others(message: &[u8]) -> Result<(), Status> {
    read::<ServerReflectionRequest>(message).map(drop)?;
    read::<GetModelRequest>(message).map(drop)
}

/// What was read says the same when it is written, and read again.
fn read<M: Message + Default + PartialEq>(message: &[u8]) -> Result<M, Status> {
    let read = M::decode(message).map_err(|_| Status::malformed(message.len(), "message"))?;
    assert!(M::decode(&*read.encode_to_vec()).is_ok_and(|again| again == read), "another message came back");
    Ok(read)
}

fn json(chance: &mut Chance, corpus: &Corpus) -> Result<(), Status> {
    let (document, behind) = (mutant(chance, &corpus.json), [0, 16, 784][chance.roll(3)]);
    json_request(&document, chance.bytes(behind).into()).map(drop)
}

/// Messages are the same however what came is cut, and in base64 too.
fn framing(chance: &mut Chance, corpus: &Corpus) -> Result<(), Status> {
    let bodies: Vec<Bytes> = (0..=chance.roll(3)).map(|_| framed(&mutant(chance, &corpus.others))).collect();
    let bytes = mutated(chance, &bodies.concat());
    let whole = cut(chance, &bytes, bytes.len());
    let largest = [1, 4, 100][chance.roll(3)];
    assert_eq!(whole, cut(chance, &bytes, largest), "in pieces other messages were found");
    let mut text = Decoding::default();
    let _ = bytes.chunks(largest).try_for_each(|piece| text.push(piece).map(drop));
    whole.1.map_or(Ok(()), Err)
}

/// What was found, and the error that it ended with.
fn cut(chance: &mut Chance, mut bytes: &[u8], largest: usize) -> (Vec<Raw>, Option<Status>) {
    let (mut decoder, mut found) = (Decoder::new(MAX_BYTES), Vec::new());
    while !bytes.is_empty() {
        let length =
            (chance.roll(largest) + 1).min(bytes.len()).max(if largest >= bytes.len() { bytes.len() } else { 1 });
        decoder.push(bytes.copy_to_bytes(length));
        loop {
            match decoder.next() {
                Ok(Some(raw)) => found.push(raw),
                Ok(None) => break,
                Err(status) => return (found, Some(status)),
            }
        }
    }
    (found, None)
}

fn compressed(chance: &mut Chance, corpus: &Corpus) -> Result<(), Status> {
    let body = if chance.roll(4) == 0 { vec![0; 100_000] } else { mutant(chance, &corpus.others) };
    let (bytes, encoding) = match chance.roll(3) {
        0 => (packed(flate2::read::GzEncoder::new(&*body, flate2::Compression::fast())), Encoding::Gzip),
        1 => (packed(flate2::read::ZlibEncoder::new(&*body, flate2::Compression::fast())), Encoding::Deflate),
        _ => (body, Encoding::Identity),
    };
    let message = inflated(&mutated(chance, &bytes), encoding, MAX_BYTES)?;
    assert!(message.len() <= MAX_BYTES);
    Ok(())
}

fn packed(mut packing: impl std::io::Read) -> Vec<u8> {
    let mut packed = Vec::new();
    packing.read_to_end(&mut packed).expect("memory does not fail");
    packed
}

fn frames(chance: &mut Chance) -> Result<(), Status> {
    let mut session = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    for _ in 0..chance.roll(8) {
        let length = [0, 4, 6, 8, 40][chance.roll(5)];
        let body = chance.bytes(length);
        session.put_uint(body.len() as u64, 3);
        session.extend([chance.roll(11) as u8, chance.roll(256) as u8, 0, 0, 0, chance.roll(8) as u8]);
        session.extend_from_slice(if chance.roll(3) == 0 { b":authority\x09tmp%2Fsock" } else { &body });
    }
    let mut session = mutated(chance, &session);
    let (mut watch, mut now_us) = (FrameWatch::new(0, chance.roll(2) == 0), 0);
    for piece in session.chunks_mut([1, 7, 4096][chance.roll(3)]) {
        if chance.roll(50) == 0 {
            watch.leave();
        }
        now_us += chance.roll(3) as u64 * 1000;
        watch.see(piece, now_us);
    }
    Ok(())
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect(variable))
}

// fault: S1, S2
#[test]
fn fuzzing_what_reads_messages_finds_nothing_but_messages_and_refusals() {
    let (corpus, seed) = (Corpus::new(), number_from("ATELIER_FUZZ_SEED").unwrap_or(1));
    if let Some(number) = number_from("ATELIER_FUZZ_NUMBER") {
        println!("{:?}", execute(&corpus, seed, number));
        return;
    }
    let num_executions = number_from("ATELIER_FUZZ_EXECUTIONS").unwrap_or(DEFAULT_EXECUTIONS);
    let (mut counts, mut slowest) = (BTreeMap::<_, [u64; 2]>::new(), (Duration::ZERO, 0));
    for number in 0..num_executions {
        let began = Instant::now();
        let outcome = catch_unwind(|| execute(&corpus, seed, number));
        let (kind, outcome) = outcome.unwrap_or_else(|_| panic!("{}", replay(seed, number)));
        slowest = slowest.max((began.elapsed(), number));
        counts.entry(kind).or_default()[usize::from(outcome.is_err())] += 1;
        if let Err(status) = outcome {
            let is_mild = matches!(status.code, Code::InvalidArgument | Code::ResourceExhausted);
            assert!(is_mild && status.message.contains(": "), "{status:?}\n{}", replay(seed, number));
        }
    }
    let (_, number) = slowest;
    let look = |_| {
        let began = Instant::now();
        let _ = execute(&corpus, seed, number);
        began.elapsed()
    };
    let least = (0..NUM_LOOKS).map(look).min().unwrap_or_default();
    println!("{num_executions} executions, the slowest in {} us; read and refused: {counts:?}", least.as_micros());
    assert!(least < HANG, "{least:?}\n{}", replay(seed, number));
    assert!(counts.values().filter(|[read, refused]| *read > 0 && *refused > 0).count() >= 6, "{counts:?}");
}

fn replay(seed: u64, number: u64) -> String {
    format!("ATELIER_FUZZ_SEED={seed} ATELIER_FUZZ_NUMBER={number} cargo test fuzzing")
}

/// For tests/serving/test_native_decoder.py: reads its messages, and writes what was read of each.
///
/// The file is one message after the other: a byte for its kind, four for its length, the least first.
#[test]
#[ignore = "needs the files of tests/serving/test_native_decoder.py"]
fn fuzzing_against_the_other_decoder_writes_what_is_read() {
    let path = std::env::var("ATELIER_FUZZ_MESSAGES").expect("ATELIER_FUZZ_MESSAGES names a file");
    let (mut messages, mut answers) = (Bytes::from(fs::read(&path).expect(&path)), Vec::new());
    while messages.has_remaining() {
        let (kind, length) = (messages.get_u8(), messages.get_u32_le() as usize);
        let message = messages.split_to(length);
        let read = match kind {
            0 => ClassifyRequest::decode(message).map(|read| read.encode_to_vec()),
            1 => ModelInferRequest::decode(message).map(|read| read.encode_to_vec()),
            _ => GetModelRequest::decode(message).map(|read| read.encode_to_vec()),
        };
        answers.put_u8(read.is_ok().into());
        let read = read.unwrap_or_default();
        answers.put_u32_le(read.len() as u32);
        answers.extend(read);
    }
    fs::write(format!("{path}.answers"), answers).expect(&path);
}
