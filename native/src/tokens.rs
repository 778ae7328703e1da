//! Bearer tokens, known by their SHA-256 digests.

use http::HeaderMap;
use http::header::AUTHORIZATION;
use ring::digest::{SHA256, digest};
use subtle::{Choice, ConstantTimeEq};

use crate::status::{Code, Status};

/// Who may call. Python reads the file (serving/access.py), and again when it changes.
pub struct Tokens(pub Vec<[u8; 32]>);

impl Tokens {
    /// Takes as long for a token that is nearly right as for any other.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), Status> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let given = values.next().map(http::HeaderValue::as_bytes);
        if values.next().is_some() {
            return Err(refused("BAD_TOKEN", "the call carries several of them"));
        }
        let Some((scheme, token)) = given.and_then(|given| given.split_at_checked(7)) else {
            return Err(refused("NO_TOKEN", "the call carries no bearer token"));
        };
        let found = digest(&SHA256, token);
        let known = self.0.iter().fold(Choice::from(0), |known, one| known | one[..].ct_eq(found.as_ref()));
        if scheme.eq_ignore_ascii_case(b"bearer ") && known.into() {
            return Ok(());
        }
        Err(refused("BAD_TOKEN", "the call's bearer token is not known here"))
    }
}

fn refused(word: &str, what: &str) -> Status {
    Status::new(Code::Unauthenticated, word, what, "send authorization: Bearer <token>")
}
