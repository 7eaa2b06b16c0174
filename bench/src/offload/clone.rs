//! `bench clone`: one image by EXTENDED COPY and by the host; many with `--vdi`.

use super::Rows;
use super::encode::{self, Pieces};
use super::rig::{CHUNK_BYTES, Rig, count};
use crate::args::{CloneArgs, Fill};
use crate::failure::Failure;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

const MIB: u64 = 1 << 20;

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

pub(super) fn one(rig: &mut Rig, args: &CloneArgs, rows: &mut Rows) -> Result<(), Failure> {
    rig.write_image()?;
    let (commit, path) = rig.commit_seconds()?;
    rows.note("durable commit, file beside the pool, p50", commit * 1e6, "µs");
    rows.note("durable commit, 4 KiB overwrite less TEST UNIT READY, p50", path * 1e6, "µs");
    let image = rig.image;
    let before = rig.pool()?;
    let small = rig.copy(0, image, 4 * MIB, 1)?;
    let middle = rig.pool()?;
    let large = rig.copy(0, 2 * image, 16 * MIB, 4)?;
    let after = rig.pool()?;
    for (name, start, end) in [("4 MiB", &before, &middle), ("64 MiB", &middle, &after)] {
        for counter in ["data_read_bytes", "data_write_bytes"] {
            rows.at_most(
                format!("{counter}, {name} a command"),
                count(end, counter) - count(start, counter),
                "B",
                0.0,
            );
        }
        for counter in ["copy_shared_bytes", "journal_write_bytes", "commits"] {
            rows.note(
                format!("{counter}, {name} a command"),
                count(end, counter) - count(start, counter),
                "",
            );
        }
    }
    let rounds = image as f64 / (4 * MIB * 8) as f64;
    let bar = if rows.pool == "ram" { 40.0 } else { 2.2 * rounds * commit * 1e3 + 20.0 };
    rows.at_most("XCOPY of 4 MiB, depth 8", ms(small), "ms", bar);
    rows.note("XCOPY of 4 x 16 MiB, depth 8", ms(large), "ms");
    let bytes = args.host_bytes.min(image) / MIB * MIB;
    let host = host_copy(rig, 3 * image, bytes)?;
    let host = host.as_secs_f64() * 1e3 * image as f64 / bytes as f64;
    rows.note(format!("READ and WRITE of 1 MiB, depth 8, scaled from {} MiB", bytes / MIB), host, "ms");
    rows.at_least("host ÷ XCOPY of 4 MiB", host / ms(small), "", 40.0);
    rows.at_least("host ÷ XCOPY of 4 x 16 MiB", host / ms(large), "", 300.0);
    Ok(())
}

/// READs and WRITEs in turn, eight under way together, each WRITE with what the READ before it brings.
fn host_copy(rig: &mut Rig, to: u64, bytes: u64) -> Result<Duration, Failure> {
    let data = rig.mebibyte();
    let mut pieces = Pieces::once(0, bytes, MIB);
    let mut pending = None;
    let source = || match pending.take() {
        Some(at) => Some(encode::write(to + at, Arc::clone(&data))),
        None => pieces.next().map(|at| {
            pending = Some(at);
            encode::read(at, MIB as u32)
        }),
    };
    Ok(rig.stream(8, source)?.0)
}

/// A generator of numbers: xorshift, seeded the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

pub(super) fn vdi(rig: &mut Rig, args: &CloneArgs, rows: &mut Rows) -> Result<(), Failure> {
    rig.write_image()?;
    let (image, clones) = (rig.image, args.clones);
    let before = rig.pool()?;
    let half = clones.div_ceil(2);
    let mut time = Duration::ZERO;
    // Clone n is image n. The second half are clones of the first, which has ended by then.
    for wave in [1..half + 1, half + 1..clones + 1] {
        let naa = rig.naa;
        let mut commands = wave.flat_map(|clone| {
            let from = if clone > half { (clone - half) * image } else { 0 };
            Pieces::once(0, image, 64 * MIB)
                .map(move |at| encode::extended_copy(&naa, from + at, clone * image + at, 16 * MIB, 4))
        });
        time += rig.stream(8, || commands.next())?.0;
    }
    let cloned = rig.pool()?;
    rows.at_most(format!("{clones} clones, half of them of clones"), time.as_secs_f64(), "s", 60.0);
    let grown = |from: &serde_json::Value, to: &serde_json::Value, name| count(to, name) - count(from, name);
    rows.at_most(
        "data read while cloning, predicted 0",
        grown(&before, &cloned, "data_read_bytes"),
        "B",
        0.0,
    );
    rows.at_most(
        "data written while cloning, predicted 0",
        grown(&before, &cloned, "data_write_bytes"),
        "B",
        0.0,
    );
    rows.at_most(
        "space taken by cloning, predicted 0",
        -grown(&before, &cloned, "free_chunk_bytes"),
        "B",
        0.0,
    );
    rows.note("maps in memory", count(&cloned, "map_memory_bytes") / MIB as f64, "MiB");
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let used = clones.min(100);
    let range = image.min(2 << 30);
    let data: Arc<[u8]> = Arc::from(&rig.mebibyte()[..4096]);
    let (mut chunks, mut blocks) = (HashSet::new(), HashSet::new());
    let mut left = args.operations;
    let writes = || {
        left = left.checked_sub(1)?;
        // The last clones: clones of clones.
        let at = (clones - random.below(used)) * image + random.below(range / 4096) * 4096;
        chunks.insert(at / CHUNK_BYTES);
        blocks.insert(at / 4096);
        Some(encode::write(at, Arc::clone(&data)))
    };
    let (write_time, latency) = rig.stream(32, writes)?;
    let written = rig.pool()?;
    rows.note(
        format!("4 KiB writes on {used} clones, depth 32"),
        args.operations as f64 / write_time.as_secs_f64(),
        "/s",
    );
    rows.note("their p99", latency.value_at_quantile(0.99) as f64 / 1e3, "µs");
    let predicted = (chunks.len() as u64 * CHUNK_BYTES) as f64;
    rows.at_most(
        "space they took; the bar is what is predicted",
        -grown(&cloned, &written, "free_chunk_bytes"),
        "B",
        predicted,
    );
    rows.at_most("data read by them, predicted 0", grown(&cloned, &written, "data_read_bytes"), "B", 0.0);
    let full = rig.fill == Fill::Full;
    let mut mapped = 0;
    let mut left = args.operations;
    let reads = || {
        left = left.checked_sub(1)?;
        let pages = 1 + random.below(16);
        let first = random.below(range / 4096 - pages + 1);
        let at = (clones - random.below(used)) * image + first * 4096;
        mapped += (at / 4096..at / 4096 + pages)
            .filter(|block| full || block % (CHUNK_BYTES / 4096) == 0 || blocks.contains(block))
            .count();
        Some(encode::read(at, pages as u32 * 4096))
    };
    let (read_time, latency) = rig.stream(32, reads)?;
    let read = rig.pool()?;
    rows.note(
        "reads of 4 to 64 KiB of the first 2 GiB, depth 32",
        args.operations as f64 / read_time.as_secs_f64(),
        "/s",
    );
    rows.note("their p99", latency.value_at_quantile(0.99) as f64 / 1e3, "µs");
    rows.at_most(
        "device reads; the bar is what is predicted",
        grown(&written, &read, "data_read_bytes"),
        "B",
        (mapped * 4096) as f64,
    );
    Ok(())
}
