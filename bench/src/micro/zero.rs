//! The search for blocks of zeroes, as every write of a volume with zero-detect meets it: nothing but zeroes, none, and
//! the worst, zeroes up to the last byte.

use super::round::{Clock, Plan, each};
use super::rows::{Per, Row, Unit};
use crate::failure::{Context, Failure};
use crate::load::pattern::Random;
use bdev::zero_detect::zero_blocks;
use reactor::buf::{BUF_BYTES_MAX, Buf, PAGE_BYTES, Pool, PoolConfig};
use std::hint::black_box;

/// What a write brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Zeroes,
    Random,
    LastByteSet,
}

impl Content {
    const ALL: [Content; 3] = [Content::Zeroes, Content::Random, Content::LastByteSet];

    fn name(self) -> &'static str {
        match self {
            Content::Zeroes => "zeroes",
            Content::Random => "random data",
            Content::LastByteSet => "zeroes, last byte set",
        }
    }

    fn because(self) -> &'static str {
        match self {
            Content::Zeroes => "all of it is read",
            Content::Random => {
                "each block is given up at its first bytes: the rate is of data that nobody reads"
            }
            Content::LastByteSet => "all of it is read, and the last block is no block of zeroes",
        }
    }

    fn put(self, bytes: &mut [u8]) {
        bytes.fill(0);
        match self {
            Content::Zeroes => {}
            Content::Random => {
                let mut random = Random::new(1);
                bytes.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random.draw().to_le_bytes()));
            }
            Content::LastByteSet => {
                if let Some(last) = bytes.last_mut() {
                    *last = 1;
                }
            }
        }
    }
}

/// The case.
///
/// # Errors
/// There is no memory for a buffer.
pub(super) fn measure(plan: Plan) -> Result<Vec<Row>, Failure> {
    // Where data of writes are: aligned as they are, one buffer that stays in the cache.
    let mut pool = Pool::new(PoolConfig { counts: [0, 0, 1], arena: 0 }).doing("taking a buffer")?;
    let mut buf = pool.take(BUF_BYTES_MAX).ok_or_else(|| Failure::new("a pool of one buffer has none"))?;
    let mut rows = Vec::new();
    for bytes in [PAGE_BYTES, BUF_BYTES_MAX] {
        for content in Content::ALL {
            rows.push(row(plan, &mut buf, bytes, content)?);
        }
    }
    Ok(rows)
}

fn row(plan: Plan, buf: &mut Buf, bytes: usize, content: Content) -> Result<Row, Failure> {
    buf.set_len(bytes);
    content.put(buf);
    let data: &[u8] = buf;
    Ok(Row {
        case: "zero",
        what: format!("{} KiB of {}", bytes >> 10, content.name()),
        rounds_ns: plan.measure(Clock::Cpu, &mut each(|| zero_blocks(black_box(data), 0)))?,
        unit: Unit::Ns,
        per: Per::Bytes(bytes as u64),
        because: content.because().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: contents are what their names say. Method: what zero-detect finds in each, of 64 KiB and of 4.
    #[test]
    fn contents_are_what_they_are_called() {
        for (content, all, one) in
            [(Content::Zeroes, 0xffff, 1), (Content::Random, 0, 0), (Content::LastByteSet, 0x7fff, 0)]
        {
            let mut bytes = vec![0xee; BUF_BYTES_MAX];
            content.put(&mut bytes);
            assert_eq!(zero_blocks(&bytes, 0), all, "{content:?}");
            content.put(&mut bytes[..PAGE_BYTES]);
            assert_eq!(zero_blocks(&bytes[..PAGE_BYTES], 0), one, "{content:?}");
        }
    }
}
