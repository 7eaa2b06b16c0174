//! Zero-detect on data without zeroes against the same without it, by CPU time over a disk in memory.

use super::rows::{Bar, Row};
use super::world::{Pace, World};
use super::{rows, scaled};
use crate::args::PoolArgs;
use crate::cases::median;
use crate::cpu;
use crate::failure::Failure;
use crate::load::pattern::Random;

const CHUNK: u64 = 64 << 10;
const BYTES: u64 = 1 << 30;

/// The case.
///
/// # Errors
/// The pool refuses or fails something.
pub(super) fn measure(args: &PoolArgs) -> Result<Vec<Row>, Failure> {
    let disk = World::create_kept(4 << 30)?;
    let mut world = World::open(&disk, Pace::Even)?;
    let off = world.volume("off", BYTES, false)?;
    let on = world.volume("on", BYTES, true)?;
    for bdev in [off, on] {
        world.write(bdev, CHUNK, 32, (0..BYTES / CHUNK).map(|nth| nth * CHUNK))?;
    }
    let mut measured = Vec::new();
    for (name, bytes) in [("4 KiB", 4096), ("64 KiB", CHUNK)] {
        let writes = scaled(args, 2_000_000 * 4096 / bytes.min(16384));
        let mut ratios = Vec::new();
        let mut each = 0.0;
        for round in 0..args.rounds.max(1) {
            let mut spent = [0.0; 2];
            let sides = if round % 2 == 0 { [0, 1] } else { [1, 0] };
            for side in sides {
                let mut random = Random::new(round as u64);
                let then = cpu::thread_time();
                let offsets = (0..writes).map(|_| random.below(BYTES / bytes) * bytes);
                world.write([off, on][side], bytes, 32, offsets)?;
                spent[side] = cpu::thread_time().saturating_sub(then).as_secs_f64();
            }
            each = spent[0] * 1e9 / writes as f64;
            ratios.push((spent[1] / spent[0] - 1.0) * 100.0);
        }
        measured.push(Row {
            case: "zero".into(),
            what: format!("zero-detect slower, {name} overwrites"),
            value: median(&ratios),
            unit: "%",
            bar: Bar::Most(2.0),
            because: format!(
                "by CPU time over a disk in memory, {} ns a write; {} rounds from {} to {} %",
                rows::digits(each),
                ratios.len(),
                rows::digits(ratios.iter().copied().fold(f64::MAX, f64::min)),
                rows::digits(ratios.iter().copied().fold(f64::MIN, f64::max)),
            ),
        });
    }
    Ok(measured)
}
