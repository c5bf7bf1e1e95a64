//! Event files, as TensorBoard reads them: records of protobuf messages, each with its length and check sums.

use nnc_ir::{Error, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

pub struct Events {
    file: BufWriter<File>,
}

impl Events {
    /// Begins a file in `folder`. A name that sorts behind those before, so that a resumed run goes on where the last one ended.
    pub fn create(folder: &Path) -> Result<Events> {
        let failed = |e: std::io::Error| Error::io(format!("cannot write events into {}: {e}", folder.display()));
        std::fs::create_dir_all(folder).map_err(failed)?;
        let path = folder.join(format!("events.out.tfevents.{:010}.nnc", now() as u64));
        let mut events = Events { file: BufWriter::new(File::create(path).map_err(failed)?) };
        // file_version
        events.write(&[double(1, now()), bytes(3, b"brain.Event:2")].concat())?;
        Ok(events)
    }

    /// One step's numbers, by name.
    pub fn scalars(&mut self, step: u64, values: &[(String, f64)]) -> Result<()> {
        let summary: Vec<u8> = values
            .iter()
            // Value { tag, simple_value }
            .flat_map(|(tag, x)| bytes(1, &[bytes(1, tag.as_bytes()), float(2, *x as f32)].concat()))
            .collect();
        self.write(&[double(1, now()), integer(2, step), bytes(5, &summary)].concat())
    }

    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(failed)
    }

    fn write(&mut self, event: &[u8]) -> Result<()> {
        self.file.write_all(&record(event)).map_err(failed)
    }
}

fn failed(e: std::io::Error) -> Error {
    Error::io(format!("cannot write events: {e}"))
}

/// Seconds since 1970: what TensorBoard puts on its other axis. Nothing else here depends on a clock.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64())
}

/// Length, its check sum, data, their check sum.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), data, &masked(data)].concat()
}

/// Check sums are rotated and shifted, so that those of data that hold check sums stay good.
fn masked(data: &[u8]) -> [u8; 4] {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// CRC-32C (Castagnoli 1993), reflected.
fn crc32c(data: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    !data.iter().fold(!0u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |c, _| (c >> 1) ^ (POLYNOMIAL & (c & 1).wrapping_neg())))
}

fn varint(mut x: u64) -> Vec<u8> {
    let mut out = vec![];
    while x >= 0x80 {
        out.push(x as u8 | 0x80);
        x >>= 7;
    }
    out.push(x as u8);
    out
}

fn double(field: u64, x: f64) -> Vec<u8> {
    [varint(field << 3 | 1), x.to_le_bytes().to_vec()].concat()
}

fn float(field: u64, x: f32) -> Vec<u8> {
    [varint(field << 3 | 5), x.to_le_bytes().to_vec()].concat()
}

fn integer(field: u64, x: u64) -> Vec<u8> {
    [varint(field << 3), varint(x)].concat()
}

fn bytes(field: u64, x: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(x.len() as u64), x.to_vec()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_sums() {
        // RFC 3720, B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_file_of_scalars() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::create(folder.path()).unwrap();
        events.scalars(300, &[("loss".into(), 0.5)]).unwrap();
        events.flush().unwrap();
        let path = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let mut rest = &std::fs::read(path).unwrap()[..];
        let mut records = vec![];
        while !rest.is_empty() {
            let n = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!((&rest[8..12], &rest[12 + n..16 + n]), (&masked(&rest[..8])[..], &masked(&rest[12..12 + n])[..]));
            records.push(&rest[12..12 + n]);
            rest = &rest[16 + n..];
        }
        assert_eq!(&records[0][9..], b"\x1a\x0dbrain.Event:2");
        assert_eq!(&records[1][9..], b"\x10\xac\x02\x2a\x0d\x0a\x0b\x0a\x04loss\x15\0\0\0\x3f");
    }
}
