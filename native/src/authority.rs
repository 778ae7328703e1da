//! The authority of a request that came over a Unix socket.

/// gRPC's C library names a unix socket by its path, `tmp%2Fsocket`, which hyper takes for no authority at all. Nobody
/// here needs it, and it is written as a literal with its name: so its percent signs become dashes.
pub fn mend_authority(headers: &mut [u8]) {
    const NAME: &[u8] = b":authority";
    const HUFFMAN: u8 = 0x80; // such a value has no percent signs that could be seen
    let Some(start) = headers.windows(NAME.len()).position(|bytes| bytes == NAME) else { return };
    let value = &mut headers[start + NAME.len()..];
    if let Some(&length) = value.first()
        && length & HUFFMAN == 0
        && let Some(authority) = value.get_mut(1..=length as usize)
    {
        authority.iter_mut().filter(|byte| **byte == b'%').for_each(|byte| *byte = b'-');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_signs_of_an_authority_become_dashes_and_no_other_bytes_do() {
        let mended = |length: u8| {
            let mut block = [b":authority", &[length][..], b"a%2Fb", b"%another%header"].concat();
            mend_authority(&mut block);
            block.split_off(block.len() - 20)
        };
        assert_eq!(mended(5), b"a-2Fb%another%header");
        assert_eq!(mended(0x85), b"a%2Fb%another%header"); // Huffman's code
    }
}
