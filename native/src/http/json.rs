//! What JSON may hold here: read without room for what nobody needs, so that a body is no larger in memory than it came.

use std::fmt;
use std::marker::PhantomData;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::{DeserializeSeed, Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::aside::{done_in_background, give_turn};
use crate::status::Status;

/// Larger documents are read aside: they take milliseconds.
const SMALL_BYTES: usize = 32 << 10;
const MAX_REASON: usize = 160;
/// Numbers that are read in one go.
const PIECE: usize = 1 << 13;

/// A document.
pub async fn read<T>(body: Bytes) -> Result<T, Status>
where
    T: for<'de> Deserialize<'de> + Send + 'static,
{
    if body.len() <= SMALL_BYTES { read_small(&body) } else { done_in_background(move || read_small(&body)).await? }
}

/// A small one.
pub fn read_small<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, Status> {
    serde_json::from_slice(body).map_err(|error| bad_json(&error))
}

fn bad_json(error: &serde_json::Error) -> Status {
    let reason: String = error.to_string().chars().filter(|each| !each.is_control()).take(MAX_REASON).collect();
    Status::invalid("BAD_JSON", reason, "see /openapi.json")
}

/// At most N of them.
#[derive(Debug)]
pub struct Few<T, const N: usize>(pub Vec<T>);

impl<T, const N: usize> Default for Few<T, N> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for Few<T, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<T, const N: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for Reader<T, N> {
            type Value = Few<T, N>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "a list of at most {N}")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut found = Vec::new();
                while let Some(one) = list.next_element()? {
                    found.push(one);
                    give_turn();
                    if found.len() > N {
                        return Err(A::Error::invalid_length(found.len(), &self));
                    }
                }
                Ok(Few(found))
            }
        }
        deserializer.deserialize_seq(Reader(PhantomData))
    }
}

/// The values of a tensor, however they are nested: whole numbers from 0 to 255, or texts in base64.
#[derive(Debug, Default)]
pub struct Flat {
    pub numbers: Vec<u8>,
    pub texts: Vec<Bytes>,
}

/// A text takes more room than the three bytes that an empty one has in JSON.
const MAX_TEXTS: usize = 1 << 16;

impl<'de> Deserialize<'de> for Flat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut flat = Self::default();
        deserializer.deserialize_seq(Values(&mut flat))?;
        Ok(flat)
    }
}

struct Values<'a>(&'a mut Flat);

impl<'de> DeserializeSeed<'de> for Values<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Values<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("whole numbers from 0 to 255, base64, or lists of these")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<(), E> {
        let number = u8::try_from(number).map_err(|_| E::invalid_value(serde::de::Unexpected::Unsigned(number), &self));
        self.0.numbers.push(number?);
        if self.0.numbers.len().is_multiple_of(PIECE) {
            give_turn();
        }
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        if self.0.texts.len() >= MAX_TEXTS {
            return Err(E::custom("too many texts"));
        }
        let bytes = STANDARD.decode(text).map_err(|error| E::custom(format!("no base64: {error}")))?;
        self.0.texts.push(bytes.into());
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Values(&mut *self.0))?.is_some() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(text: &str) -> Result<Flat, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn values_are_read_however_they_are_nested() {
        assert_eq!(flat("[[1, [2]], [], 255]").unwrap().numbers, [1, 2, 255]);
        assert_eq!(flat(r#"["YWI=", ""]"#).unwrap().texts, [&b"ab"[..], b""]);
    }

    #[test]
    fn what_is_no_byte_is_refused() {
        for text in ["[256]", "[-1]", "[0.5]", "[1e2]", "[1e400]", "[NaN]", "[true]", "[null]", "[{}]", r#"["*"]"#, "7"]
        {
            assert!(flat(text).is_err(), "{text}");
        }
        assert!(flat(&format!("{}{}", "[".repeat(5000), "]".repeat(5000))).unwrap_err().contains("recursion"));
    }

    #[test]
    fn lists_are_bounded() {
        assert_eq!(serde_json::from_str::<Few<u8, 3>>("[1,2,3]").unwrap().0, [1, 2, 3]);
        assert!(serde_json::from_str::<Few<u8, 3>>("[1,2,3,4]").is_err());
    }
}
