//! The constants of a model as a stream of bytes.

use nnc_ir::{Error, Result, Tensor};
use std::io::Write;

/// Bytes from the first weight to the end of the last.
pub fn weight_bytes(weights: &[(u64, Tensor)]) -> u64 {
    weights.last().map_or(0, |(at, t)| at + t.byte_len() as u64)
}

/// Writes all weights, one by one, zeros between them. What is computed is computed here, and dropped when it is written.
pub fn write_weights(weights: &[(u64, Tensor)], out: &mut dyn Write) -> Result<()> {
    let mut at = 0;
    for (offset, t) in weights {
        let gap = offset.checked_sub(at).ok_or_else(|| Error::internal("weights are not in the order of their offsets"))?;
        repeat(&[0], gap, out)?;
        match t.splat_element() {
            Some(e) => repeat(e, t.elems() as u64, out)?,
            None => put(&t.try_bytes()?, out)?,
        }
        at = offset + t.byte_len() as u64;
    }
    Ok(())
}

fn put(data: &[u8], out: &mut dyn Write) -> Result<()> {
    out.write_all(data).map_err(|e| Error::io(format!("writing weights: {e}")))
}

/// One element `times` over, in pieces.
fn repeat(element: &[u8], times: u64, out: &mut dyn Write) -> Result<()> {
    const PIECE: u64 = 1 << 14;
    let piece = element.repeat(times.min(PIECE) as usize);
    for _ in 0..times / PIECE {
        put(&piece, out)?;
    }
    put(&piece[..(times % PIECE) as usize * element.len()], out)
}
