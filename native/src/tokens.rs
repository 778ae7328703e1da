//! Bearer tokens: a file of their SHA-256 digests, so that who reads it cannot use them.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{Error, ErrorKind, Result};
use std::path::PathBuf;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use ring::digest::{SHA256, digest};
use subtle::{Choice, ConstantTimeEq};

use crate::status::{Code, Status};
use crate::watched::Watched;

/// Who may call. The file has a digest a line, in hexadecimal; what follows it, and lines that begin with #, is for
/// people.
pub struct Tokens {
    file: Watched<Vec<[u8; 32]>>,
    /// Of the token that the supervisor has made for its own page.
    of_page: Option<[u8; 32]>,
}

impl Tokens {
    pub fn new(path: &str, of_page: &str) -> Result<Self> {
        let path = PathBuf::from(path);
        let file = Watched::new(vec![path.clone()], move || digests(&path))?;
        Ok(Self { file, of_page: digest_from(of_page) })
    }

    pub fn look(&self) {
        self.file.look();
    }

    /// Takes as long for a token that is nearly right as for any other.
    pub fn check(&self, headers: &HeaderMap) -> std::result::Result<(), Status> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let given = values.next().map(http::HeaderValue::as_bytes);
        if values.next().is_some() {
            return Err(refused("BAD_TOKEN", "the call carries several of them"));
        }
        let Some((scheme, token)) = given.and_then(|given| given.split_at_checked(7)) else {
            return Err(refused("NO_TOKEN", "the call carries no bearer token"));
        };
        let found = digest(&SHA256, token);
        let current = self.file.current();
        let digests = current.iter().chain(&self.of_page);
        let known = digests.fold(Choice::from(0), |known, one| known | one[..].ct_eq(found.as_ref()));
        if scheme.eq_ignore_ascii_case(b"bearer ") && known.into() {
            return Ok(());
        }
        Err(refused("BAD_TOKEN", "the call's bearer token is not known here"))
    }
}

fn refused(word: &str, what: &str) -> Status {
    Status::new(Code::Unauthenticated, word, what, "send authorization: Bearer <token>")
}

fn digests(path: &PathBuf) -> Result<Vec<[u8; 32]>> {
    let bad = |what: String| {
        let cure = "a line begins with the 64 hexadecimal digits of a token's SHA-256";
        Error::new(ErrorKind::InvalidData, format!("BAD_TOKENS: {}: {what} ({cure})", path.display()))
    };
    let text = fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
    let mut digests = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let Some(first) = line.split_whitespace().next().filter(|first| !first.starts_with('#')) else { continue };
        digests.push(digest_from(first).ok_or_else(|| bad(format!("line {} has no digest", number + 1)))?);
    }
    if digests.is_empty() { Err(bad("it has no digest".into())) } else { Ok(digests) }
}

fn digest_from(digits: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if digits.len() != 64 || !digits.is_ascii() {
        return None;
    }
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * place..2 * place + 2], 16).ok()?;
    }
    Some(bytes)
}
