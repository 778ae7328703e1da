//! What a request may ask for: the one place where names, types and shapes are checked.

use bytes::{Buf, Bytes};

use super::{Data, Input, Request};
use crate::classify::{check_count, quoted, raw_images};
use crate::model::IMAGE_BYTES;
use crate::server::Server;
use crate::status::Status;

pub const IMAGES: &str = "images";
pub const PICTURES: &str = "pictures";
pub const LOGITS: &str = "logits";
pub const PROBABILITIES: &str = "probabilities";

const IMAGE_DIMS: [i64; 3] = [1, 28, 28];

/// Each as values and as classes. Of all images, every one is as long as the rest of the answer.
const MAX_OUTPUTS: usize = 4;
/// It is kept until the answer, which has it again.
const MAX_ID_BYTES: usize = 64 << 10;

pub enum Checked {
    Images(Bytes),
    Pictures(Vec<Bytes>),
}

pub fn checked(server: &Server, request: &Request) -> Result<Checked, Status> {
    check_bounds(request.outputs.len(), request.id.len())?;
    for asked in &request.outputs {
        if !matches!(asked.name.as_str(), LOGITS | PROBABILITIES) {
            let what = format!("there is no output {}", quoted(&asked.name));
            return Err(Status::invalid("UNKNOWN_OUTPUT", what, "ask for logits or probabilities"));
        }
    }
    let [input] = request.inputs.as_slice() else {
        let what = format!("the request has {} inputs", request.inputs.len());
        return Err(Status::invalid("BAD_INPUTS", what, "send one, images or pictures"));
    };
    match input.name.as_str() {
        IMAGES => images(server, input).map(Checked::Images),
        PICTURES => pictures(server, input).map(Checked::Pictures),
        name => {
            let what = format!("there is no input {}", quoted(name));
            Err(Status::invalid("UNKNOWN_INPUT", what, "send images or pictures"))
        }
    }
}

fn check_bounds(num_outputs: usize, num_id_bytes: usize) -> Result<(), Status> {
    if num_outputs > MAX_OUTPUTS {
        let what = format!("the request asks for {num_outputs} outputs");
        return Err(Status::invalid("TOO_MANY_OUTPUTS", what, &format!("ask for at most {MAX_OUTPUTS}")));
    }
    if num_id_bytes > MAX_ID_BYTES {
        let what = format!("the id has {num_id_bytes} bytes, the limit is {MAX_ID_BYTES}");
        return Err(Status::invalid("FIELD_TOO_LARGE", what, "send a shorter one"));
    }
    Ok(())
}

fn images(server: &Server, input: &Input) -> Result<Bytes, Status> {
    check_datatype(input, "UINT8")?;
    let num_images = match input.shape.as_slice() {
        [num_images, dims @ ..] if dims == IMAGE_DIMS => checked_count(server, *num_images, input)?,
        _ => return Err(bad_shape(input, "[N, 1, 28, 28]")),
    };
    let images = match &input.data {
        Data::Raw(images) => images.clone(),
        Data::Bytes(images) => Bytes::copy_from_slice(images),
        Data::Elements(_) | Data::Missing => return Err(bad_data(input, "no numbers")),
    };
    if images.len() != num_images * IMAGE_BYTES {
        return Err(bad_data(input, &format!("{} values", images.len())));
    }
    raw_images(server, &images)
}

fn pictures(server: &Server, input: &Input) -> Result<Vec<Bytes>, Status> {
    check_datatype(input, "BYTES")?;
    let num_pictures = match input.shape.as_slice() {
        &[num_pictures] | &[num_pictures, 1] => checked_count(server, num_pictures, input)?,
        _ => return Err(bad_shape(input, "[N]")),
    };
    let pictures = match &input.data {
        Data::Raw(bytes) => elements(bytes.clone(), num_pictures).ok_or_else(|| bad_elements(input))?,
        Data::Elements(pictures) => pictures.clone(),
        Data::Bytes(_) | Data::Missing => return Err(bad_data(input, "no elements of BYTES")),
    };
    if pictures.len() != num_pictures {
        return Err(bad_data(input, &format!("{} elements", pictures.len())));
    }
    Ok(pictures)
}

/// Elements of BYTES, each behind its length: four bytes, the least first. None where they are not exactly so many.
fn elements(mut bytes: Bytes, count: usize) -> Option<Vec<Bytes>> {
    let mut elements = Vec::with_capacity(count);
    for _ in 0..count {
        let length = bytes.try_get_u32_le().ok()? as usize;
        if length > bytes.len() {
            return None;
        }
        elements.push(bytes.split_to(length));
    }
    bytes.is_empty().then_some(elements)
}

fn checked_count(server: &Server, count: i64, input: &Input) -> Result<usize, Status> {
    let count = usize::try_from(count).ok().filter(|&count| count > 0);
    let count = count.ok_or_else(|| bad_shape(input, "a first dimension of 1 or more"))?;
    check_count(server, count)?;
    Ok(count)
}

fn check_datatype(input: &Input, expected: &str) -> Result<(), Status> {
    if input.datatype == expected {
        return Ok(());
    }
    let what = format!("input {} has the datatype {}", input.name, quoted(&input.datatype));
    Err(Status::invalid("BAD_DATATYPE", what, &format!("send {expected}")))
}

fn bad_shape(input: &Input, expected: &str) -> Status {
    let what = format!("input {} has the shape {}", input.name, shown(&input.shape));
    Status::invalid("BAD_SHAPE", what, &format!("send {expected}"))
}

fn bad_data(input: &Input, found: &str) -> Status {
    let what = format!("input {} of shape {} has {found}", input.name, shown(&input.shape));
    Status::invalid("BAD_DATA", what, "send as many values as the shape says, raw or typed, not both")
}

fn bad_elements(input: &Input) -> Status {
    let what = format!("the bytes of input {} are no {} elements", input.name, shown(&input.shape));
    Status::invalid("BAD_DATA", what, "send each behind its length, four bytes, the least first")
}

/// The first dimensions: who sends thousands knows them.
fn shown(shape: &[i64]) -> String {
    let few = &shape[..shape.len().min(8)];
    format!("{few:?}{}", if few.len() < shape.len() { "…" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_as_many_as_the_shape_says_and_nothing_is_left() {
        let bytes = Bytes::from_static(b"\x02\0\0\0ab\0\0\0\0");
        let two = vec![Bytes::from_static(b"ab"), Bytes::new()];
        assert_eq!(elements(bytes.clone(), 2), Some(two));
        for (wrong, count) in [(bytes.clone(), 1), (bytes.clone(), 3), (bytes.slice(..9), 2), (bytes.slice(..5), 1)] {
            assert_eq!(elements(wrong, count), None);
        }
    }

    #[test]
    fn a_shape_of_many_dimensions_is_shown_by_its_first() {
        assert_eq!(shown(&[1, -1]), "[1, -1]");
        assert_eq!(shown(&[3; 5000]), "[3, 3, 3, 3, 3, 3, 3, 3]…");
    }
}
