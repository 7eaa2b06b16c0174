//! `bench zero`: WRITE SAME of 1 MiB, depth 16.

use super::Rows;
use super::encode::{self, Pieces};
use super::rig::{Rig, count};
use crate::args::ZeroArgs;
use crate::failure::Failure;
use std::sync::Arc;

const MIB: u64 = 1 << 20;

pub(super) fn run(rig: &mut Rig, args: &ZeroArgs, rows: &mut Rows) -> Result<(), Failure> {
    rig.write_image()?;
    let (commit, path) = rig.commit_seconds()?;
    rows.note("durable commit, file beside the pool, p50", commit * 1e6, "µs");
    rows.note("durable commit, 4 KiB overwrite less TEST UNIT READY, p50", path * 1e6, "µs");
    let image = rig.image;
    for clone in 1..=args.clones {
        rig.copy(0, clone * image, 16 * MIB, 4)?;
    }
    let ranges = [
        ("already zero", (args.clones + 1) * image, image),
        ("mapped, shared by clones", image, args.clones * image),
    ];
    for (name, start, bytes) in ranges {
        let zero: Arc<[u8]> = Arc::from([0; 512]);
        let mut pieces = Pieces::once(start, bytes, MIB);
        let before = rig.pool()?;
        let source = || pieces.next().map(|at| encode::write_same(at, MIB, Arc::clone(&zero)));
        let (time, latency) = rig.stream(16, source)?;
        let after = rig.pool()?;
        let grown = |counter| count(&after, counter) - count(&before, counter);
        let what = format!("WRITE SAME, {name}");
        let rate = bytes as f64 / time.as_secs_f64();
        if start == image {
            let bar = 0.7 * (16 * MIB) as f64 / commit;
            rows.at_least(what, rate / 1e9, "GB/s", bar / 1e9);
            rows.note(format!("journal, {name}"), grown("journal_write_bytes"), "B");
            rows.note(
                format!("commands a commit, {name}"),
                (bytes / MIB) as f64 / grown("commits").max(1.0),
                "",
            );
        } else {
            rows.at_least(what, rate / 1e9, "GB/s", 200.0);
            rows.at_most(format!("journal, {name}"), grown("journal_write_bytes"), "B", 0.0);
        }
        rows.note(format!("p99, {name}"), latency.value_at_quantile(0.99) as f64 / 1e3, "µs");
        rows.note(format!("data written, {name}"), grown("data_write_bytes"), "B");
    }
    Ok(())
}
