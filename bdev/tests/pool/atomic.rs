//! Atomic writes: what they cost and where they go. That no crash and no reader finds a part of one is the simulator's.

use super::*;

impl World {
    /// An atomic write of `blocks` of 512 bytes, in as many parts as it takes.
    fn write_atomic(
        &mut self,
        core: u16,
        bdev: BdevId,
        lba: u64,
        blocks: u64,
        byte: u8,
    ) -> Result<(), IoError> {
        self.tags += 1;
        let (tag, end) = (Tag(self.tags), lba + blocks);
        let mut parts = Vec::new();
        let mut at = lba;
        while at < end {
            let until = ((at / 128 + 1) * 128).min(end);
            parts.push((at, until - at));
            at = until;
        }
        let mut more_parts = parts.len() as u8;
        let count = parts.len();
        for (lba, blocks) in parts {
            more_parts -= 1;
            let mut buf = self.bufs.take(blocks as usize * 512).unwrap();
            buf.fill(byte);
            let (from, fua, heartbeat, op) = (Core(core), false, false, Op::WriteAtomic);
            let (buf, scratch) = (Some(buf), None);
            let io = Io {
                tag,
                from,
                bdev,
                op,
                fua,
                heartbeat,
                disposable: false,
                more_parts,
                lba,
                blocks,
                buf,
                scratch,
            };
            self.cores[usize::from(core)].submit(io);
        }
        let mut results = Vec::new();
        for _ in 0..100_000 {
            self.step();
            while let Some(done) = self.cores[usize::from(core)].poll_done() {
                assert_eq!((done.io.tag, done.io.op), (tag, Op::WriteAtomic));
                assert!(done.io.buf.is_some());
                results.push(done.result);
            }
            if results.len() == count {
                assert!(results.iter().all(|result| *result == results[0]), "one step, one result");
                return results[0];
            }
        }
        panic!("it never ends");
    }

    fn read_all(&mut self, bdev: BdevId, lba: u64, blocks: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        for at in (lba..lba + blocks).step_by(8) {
            bytes.extend(self.read(bdev, at, 8));
        }
        bytes
    }
}

/// Goal: a write of a MiB is one entry of the journal on one core, and one on each side over a stripe's edge; it is there
/// after an opening, also with another number of cores, and so is what it left alone.
#[test]
fn one_entry_for_all_of_it() {
    let disk = World::create(96 << 20);
    for (cores, lba) in [(1, 8), (2, 128), (2, 8192 - 1024)] {
        let mut world = World::open(&disk, cores);
        let name = format!("v{cores}-{lba}");
        let a = world.volume(&name, Provisioning::Thin);
        world.io(0, a, Op::Write, lba - 8, 8, 1);
        world.io(0, a, Op::Write, lba + 2048, 8, 2);
        let edges = u64::from(lba / 8192 != (lba + 2047) / 8192);
        for byte in [3, 4] {
            let before = world.info().counts.records;
            assert_eq!(world.write_atomic(0, a, lba, 2048, byte), Ok(()));
            assert_eq!(world.info().counts.records - before, 1 + edges);
        }
        let expected = [vec![1; 4096], vec![4; 1 << 20], vec![2; 4096]].concat();
        assert_eq!(world.read_all(a, lba - 8, 2064), expected);
        for cores in [cores, 2, 1] {
            let mut world = World::open(&disk, cores);
            let a = world.attach(&name);
            assert!(world.read_all(a, lba - 8, 2064) == expected, "{name} on {cores} cores");
        }
    }
}

/// Goal: a page that is written again and again goes to new blocks each time, and back to its own when those are free: two
/// places do for it, and the pool does not fill.
#[test]
fn a_page_has_two_places() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 1);
    let a = world.volume("a", Provisioning::Thin);
    world.io(0, a, Op::Write, 0, 128, 9);
    let free = world.free();
    for turn in 0..200_u64 {
        let in_place = world.info().counts.writes_in_place;
        assert_eq!(world.write_atomic(0, a, turn % 4 * 32, 32, turn as u8), Ok(()));
        assert_eq!(world.info().counts.writes_in_place, in_place, "never where it was");
    }
    for (page, byte) in [(0, 196), (1, 197), (2, 198), (3, 199)] {
        assert_eq!(world.read(a, page * 32, 32), vec![byte; 16384]);
    }
    let taken = free - world.free();
    assert!(taken <= 4 * 65536, "{taken} bytes for four pages");
    // A plain write goes to where its block is now.
    let in_place = world.info().counts.writes_in_place;
    world.io(0, a, Op::Write, 40, 8, 7);
    assert_eq!(world.info().counts.writes_in_place, in_place + 1);
}

/// Goal: where there is no space for all of it nothing is written, and what it had taken comes back; with space again the
/// same write succeeds. Thick volumes have no atomic writes: nothing is reserved for a second place.
#[test]
fn a_full_pool_takes_all_or_nothing() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 2);
    let a = world.volume("a", Provisioning::Thin);
    let geometry = |world: &World, bdev| *world.cores[0].router.geometry(bdev).unwrap();
    assert_eq!(geometry(&world, a).atomic_bytes, 1 << 20);
    world.write_atomic(0, a, 8192 - 1024, 2048, 1).unwrap();
    let mut filled = 0;
    while world.attempt(0, a, Op::Write, 65536 + filled * 128, 128, (2, 0)).is_ok() {
        filled += 1;
    }
    let free = world.free();
    assert_eq!(world.write_atomic(1, a, 8192 - 1024, 2048, 3), Err(IoError::OutOfSpace));
    assert_eq!(world.read_all(a, 8192 - 1024, 2048), vec![1; 1 << 20]);
    for _ in 0..50 {
        world.step();
    }
    assert_eq!(world.free(), free, "what was taken is back");
    world.io(0, a, Op::Unmap, 65536, 32 * 128, 0);
    assert_eq!(world.write_atomic(1, a, 8192 - 1024, 2048, 3), Ok(()));
    assert_eq!(world.read_all(a, 8192 - 1024, 2048), vec![3; 1 << 20]);
    world.io(0, a, Op::Unmap, 0, 1 << 20, 0);
    let spec = VolumeSpec {
        name: "thick".into(),
        bytes: 16 << 20,
        block_bytes: 4096,
        physical_block_bytes: 4096,
        provisioning: Provisioning::Thick,
        zero_detect: true,
        write_cache: false,
    };
    world.ask(Request::VolumeCreate(spec)).unwrap();
    let thick = world.attach("thick");
    assert_eq!(geometry(&world, thick).atomic_bytes, 0);
}
