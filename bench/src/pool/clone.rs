//! Random writes to a fresh clone: how much the device writes for what the host does.

use super::rows::{Bar, Row};
use super::world::{Pace, World};
use super::{made_of, rows, scaled};
use crate::args::PoolArgs;
use crate::failure::Failure;
use crate::load::pattern::Random;
use bdev::pool::control::Request;

const CHUNK: u64 = 64 << 10;
const BLOCK: u64 = 4096;

/// The case.
///
/// # Errors
/// The pool refuses or fails something.
pub(super) fn measure(args: &PoolArgs) -> Result<Vec<Row>, Failure> {
    let chunks = scaled(args, (16 << 30) / CHUNK);
    let writes = scaled(args, (4 << 30) / BLOCK);
    let disk = World::create(128 << 30)?;
    let mut world = World::open(&disk, Pace::Spread)?;
    let bdev = world.volume("v", chunks * CHUNK, false)?;
    world.write(bdev, CHUNK, 32, (0..chunks).map(|nth| nth * CHUNK))?;
    world.snapshot("s")?;
    world.ask(Request::VolumeClone { snapshot: "v@s".into(), name: "c".into(), provisioning: None })?;
    let bdev = world.attach("c")?;
    let (before, device) = (world.info()?.counts, disk.traffic());
    let mut random = Random::new(5);
    let blocks = chunks * CHUNK / BLOCK;
    world.write(bdev, BLOCK, 32, (0..writes).map(|_| random.below(blocks) * BLOCK))?;
    let (after, now) = (world.info()?.counts, disk.traffic());
    let ratio = (now.write_bytes - device.write_bytes) as f64 / (writes * BLOCK) as f64;
    Ok(vec![
        Row {
            case: "clone".into(),
            what: "device bytes a host byte, fresh clone".into(),
            value: ratio,
            unit: "",
            bar: Bar::Most(1.15),
            because: made_of(&before, &after),
        },
        Row {
            case: "clone".into(),
            what: "bytes read of the device".into(),
            value: (now.read_bytes - device.read_bytes) as f64,
            unit: "",
            bar: Bar::Most(0.0),
            because: format!(
                "pool's own count {}",
                rows::digits((after.data_read_bytes - before.data_read_bytes) as f64)
            ),
        },
    ])
}
