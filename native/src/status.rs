//! What a call ends with: a gRPC status, and the words of the message, which are those of serving/errors.py.
//!
//! `WORD: what happened, with value and limit (the cure)`; the first word is stable.

use std::fmt::Display;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    Ok = 0,
    Cancelled = 1,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    Unauthenticated = 16,
}

/// A failure, as it is told to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub code: Code,
    pub message: String,
    /// How long a client that may retry should wait first (gRFC A6).
    pub pushback_ms: Option<u32>,
}

pub const RETRY: &str = "retry: another may serve";

impl Status {
    pub fn new(code: Code, word: &str, what: impl Display, cure: &str) -> Self {
        let message = if cure.is_empty() { format!("{word}: {what}") } else { format!("{word}: {what} ({cure})") };
        let pushback_ms = match code {
            Code::ResourceExhausted => Some(100),
            Code::Unavailable => Some(700),
            _ => None,
        };
        Self { code, message, pushback_ms }
    }

    pub fn invalid(word: &str, what: impl Display, cure: &str) -> Self {
        Self::new(Code::InvalidArgument, word, what, cure)
    }

    pub fn not_found(word: &str, what: impl Display, cure: &str) -> Self {
        Self::new(Code::NotFound, word, what, cure)
    }

    pub fn overloaded(word: &str, what: impl Display, cure: &str) -> Self {
        Self::new(Code::ResourceExhausted, word, what, cure)
    }

    pub fn expired(word: &str, what: impl Display) -> Self {
        Self::new(Code::DeadlineExceeded, word, what, "")
    }

    pub fn unavailable(word: &str, what: impl Display, cure: &str) -> Self {
        Self::new(Code::Unavailable, word, what, cure)
    }

    pub fn internal(word: &str, what: impl Display, cure: &str) -> Self {
        Self::new(Code::Internal, word, what, cure)
    }

    pub fn draining() -> Self {
        Self::unavailable("DRAINING", "the server is shutting down", RETRY)
    }

    pub fn malformed(num_bytes: usize, message: &str) -> Self {
        let what = format!("the {num_bytes} bytes are not a {message}");
        Self::invalid("MALFORMED", what, "build the message from its .proto file")
    }

    pub fn no_message(cure: &str) -> Self {
        Self::invalid("NO_MESSAGE", "the call carried no message", cure)
    }
}
