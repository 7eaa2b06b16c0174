//! What a world asks of its volumes: every operation, mostly where others are, small and large, aligned and not.

use crate::sim::content::{Contents, Fill, NOBODY, UNIT_BYTES};
use crate::sim::oracle::{Kind, Open, State};
use crate::sim::subject::{CopyAsk, Side, Subject};
use crate::sim::table::NEVER;
use crate::sim::world::World;
use bdev::geometry::Geometry;
use bdev::io::{ATOMIC_GRANULE_BYTES, BdevId, Io, Op, PIECE_BYTES, SWAP_BLOCKS_MAX, SWAP_PART_BYTES, Tag};
use bdev::stripe::{SLICES, STRIPE_BYTES};
use reactor::Core;
use reactor::buf::Buf;

/// Units of a piece.
const PIECE_UNITS: usize = PIECE_BYTES as usize / UNIT_BYTES;
/// Units of a stripe.
const STRIPE_UNITS: usize = STRIPE_BYTES as usize / UNIT_BYTES;

/// Units of a part of a compare and write.
const PART_UNITS: usize = SWAP_PART_BYTES as usize / UNIT_BYTES;

/// What can be left out of a world with `SIM_MUTE`, by its bit.
pub const KINDS: [&str; 11] =
    ["write", "read", "zeroes", "unmap", "compare", "or", "swap", "flush", "copy", "abandon", "control"];

/// How often each is done.
const WEIGHTS: [u64; 11] = [60, 30, 8, 8, 4, 5, 14, 6, 8, 4, 12];

/// What a copy of a whole stripe may be followed by: something is copied on from one of its ends, the other is lost, and
/// the first written to. Of a state, from a unit on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Planned {
    CopyFrom(u32, usize),
    Unmap(u32, usize),
    Write(u32, usize),
    /// A whole stripe, once no copy is under way any more.
    CopyStripe((u32, usize), (u32, usize)),
}

/// A volume that is a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device {
    pub(crate) state: u32,
    pub(crate) bdev: BdevId,
    pub(crate) geometry: Geometry,
}

impl Device {
    /// Units of a logical block.
    fn block_units(&self) -> usize {
        self.geometry.block_bytes as usize / UNIT_BYTES
    }

    fn units(&self) -> usize {
        (self.geometry.bytes() / UNIT_BYTES as u64) as usize
    }
}

fn device((&number, state): (&u32, &State)) -> Option<Device> {
    match state.kind {
        Kind::Volume { attached: Some((bdev, geometry)), .. } => {
            Some(Device { state: number, bdev, geometry })
        }
        _ => None,
    }
}

impl<S: Subject> World<'_, S> {
    /// Volumes that can be asked.
    pub(crate) fn devices(&self) -> Vec<Device> {
        self.oracle.states.iter().filter_map(device).collect()
    }

    fn any_device(&mut self) -> Option<Device> {
        let devices = self.devices();
        if devices.is_empty() {
            return None;
        }
        let device = devices[self.chance.index(devices.len())];
        let state = self.oracle.state(device.state);
        // What is being detached is let alone; what is being deleted mostly.
        let leave = self.oracle.is_detaching(device.state) || state.dying && !self.chance.one_in(4);
        (!leave).then_some(device)
    }

    /// Something new is asked.
    pub(crate) fn act(&mut self) {
        let mut weights = WEIGHTS;
        for (kind, weight) in weights.iter_mut().enumerate() {
            if self.nature.mute >> kind & 1 == 1 {
                *weight = 0;
            } else {
                *weight *= [1, 1, 2, 4][(self.nature.taste >> (2 * kind) & 3) as usize];
            }
        }
        let kind = KINDS[self.chance.weighted(&weights)];
        match kind {
            "control" if self.able.control => return self.control(),
            "control" => return,
            "abandon" => return self.give_up(),
            _ if self.is_crowded() => return,
            _ => {}
        }
        if self.chance.one_in(if self.nature.stripes || self.nature.twins { 1 } else { 4 })
            && let Some(planned) = self.plan.pop_front()
        {
            return self.act_as_planned(planned);
        }
        let Some(device) = self.any_device() else { return };
        match kind {
            "copy" if self.able.copy => self.copy(device),
            "copy" => {}
            "write" if self.nature.atomic && device.geometry.atomic_bytes > 0 && self.chance.one_in(3) => {
                self.atomic(device);
            }
            "write" => self.data(device, Op::Write),
            "read" => self.data(device, Op::Read),
            "compare" => self.data(device, Op::Compare),
            "or" => self.data(device, Op::OrWrite),
            "swap" => self.data(device, Op::CompareAndWrite),
            "zeroes" => self.range(device, Op::WriteZeroes),
            "unmap" => self.range(device, Op::Unmap),
            _ => self.submit(device, Op::Flush, 0, 0, Fill::Stamp),
        }
    }

    fn act_as_planned(&mut self, planned: Planned) {
        let (Planned::CopyFrom(state, first)
        | Planned::Unmap(state, first)
        | Planned::Write(state, first)
        | Planned::CopyStripe((state, first), _)) = planned;
        let found = self.devices().into_iter().find(|device| device.state == state && first < device.units());
        let Some(device) = found.filter(|_| !self.oracle.is_detaching(state)) else {
            return self.plan.clear();
        };
        let block = device.block_units();
        let rest = device.units() - first;
        match planned {
            Planned::CopyFrom(..) => {
                let Some(to) = self.any_device().filter(|to| to.block_units() == block) else { return };
                let units = (8 * (1 + self.chance.index(24))).min(rest);
                let at = self.place(&to) / PIECE_UNITS * PIECE_UNITS;
                let units = units.min(to.units() - at);
                if !self.copy_range(device, first, to, at, units) {
                    self.plan.push_front(planned);
                }
            }
            Planned::CopyStripe(_, (state, at)) => {
                if self.oracle.open.values().any(|open| open.source.is_some()) {
                    return self.plan.push_front(planned);
                }
                let fits = |to: &Device| to.state == state && at + STRIPE_UNITS <= to.units();
                let Some(to) = self.devices().into_iter().find(fits) else { return self.plan.clear() };
                if rest >= STRIPE_UNITS && !self.oracle.is_detaching(state) {
                    self.copy_range(device, first, to, at, STRIPE_UNITS);
                }
            }
            Planned::Unmap(..) => {
                self.submit(device, Op::Unmap, first, rest.min(STRIPE_UNITS), Fill::Stamp);
            }
            Planned::Write(..) => {
                let units = (8 * (1 + self.chance.index(16))).min(rest);
                self.submit(device, Op::Write, first, units, Fill::Stamp);
            }
        }
    }

    /// Where things happen: in a few places, so that they meet.
    fn place(&mut self, device: &Device) -> usize {
        let units = device.units();
        let edge = self.chance.index(units.div_ceil(STRIPE_UNITS)) * STRIPE_UNITS;
        let spread = self.chance.of(&[0, 0, 1, 2, 5]) * PIECE_UNITS;
        let at = match self.chance.below(10) {
            0 => self.chance.index(units),
            1 => units - 1,
            2..=4 => edge.saturating_sub(1),
            _ => edge + spread,
        };
        at.min(units - 1)
    }

    /// A range within one piece, in whole blocks: first unit and length.
    fn piece_range(&mut self, device: &Device) -> (usize, usize) {
        let block = device.block_units();
        let piece = self.place(device) / PIECE_UNITS * PIECE_UNITS;
        let end = (piece + PIECE_UNITS).min(device.units());
        let room = end - piece;
        let (first, units) = match self.chance.below(8) {
            0 => (0, room),
            1 => (0, self.chance.index(room) + 1),
            2 => (self.chance.index(room), room),
            3 => (room - 1, room),
            // Within a few blocks of 4 KiB, whole or not.
            4 | 5 => (self.chance.index(room.min(24)), 1 + self.chance.index(16)),
            _ => (self.chance.index(room.min(64)) & !7, 8 * (1 + self.chance.index(3))),
        };
        let first = piece + first / block * block;
        let units = units.div_ceil(block) * block;
        (first, units.min(end - first))
    }

    /// A request for data of a piece.
    fn data(&mut self, device: Device, op: Op) {
        let (first, mut units) = self.piece_range(&device);
        if op == Op::CompareAndWrite {
            let block = device.block_units();
            if self.able.parts && self.chance.one_in(3) {
                return self.swap_parts(device);
            }
            // Both halves have to fit a buffer, and most swap one block.
            units = units.min(self.chance.of(&[block, block, 8, PIECE_UNITS / 2])).max(block);
        }
        let fill = match self.chance.below(8) {
            0 => Fill::Zeroes,
            1 | 2 => Fill::Mixed,
            _ => Fill::Stamp,
        };
        self.submit(device, op, first, units, fill);
    }

    /// A compare and write over the edges of parts, most of them over one that is a stripe's.
    fn swap_parts(&mut self, device: Device) {
        let block = device.block_units();
        let edge = self.place(&device) / PART_UNITS * PART_UNITS;
        let reach = self.chance.of(&[1, 2, 8, 24]);
        let back = block * (1 + self.chance.index(reach));
        let first = edge.saturating_sub(back) / block * block;
        let most = (SWAP_BLOCKS_MAX as usize * block).min(device.units() - first);
        let ahead = match self.chance.below(16) {
            0 => most,
            1 => self.chance.index(4 * PART_UNITS),
            _ => block * self.chance.index(8),
        };
        let units = (edge - first + ahead.next_multiple_of(block)).clamp(block, most);
        self.submit(device, Op::CompareAndWrite, first, units, Fill::Stamp);
    }

    /// A write of whole blocks of 4 KiB that comes all at once: within a piece, over pieces, or over a stripe's edge.
    fn atomic(&mut self, device: Device) {
        const GRANULE: usize = ATOMIC_GRANULE_BYTES as usize / UNIT_BYTES;
        let reach = self.chance.of(&[1, 2, 4, 16, 16]);
        let back = GRANULE * self.chance.index(reach + 1);
        let edge = if self.chance.one_in(2) {
            self.chance.index(device.units().div_ceil(STRIPE_UNITS)) * STRIPE_UNITS
        } else {
            self.place(&device) / PIECE_UNITS * PIECE_UNITS + PIECE_UNITS * self.chance.index(2)
        };
        let first = edge.saturating_sub(back);
        let first = (first / GRANULE * GRANULE).min(device.units() - GRANULE);
        let most = (device.geometry.atomic_bytes as usize / UNIT_BYTES).min(device.units() - first);
        let units = match self.chance.below(16) {
            0 => most,
            1 => GRANULE * (1 + self.chance.index(most / GRANULE)),
            2..=7 => GRANULE * (1 + self.chance.index(4)),
            _ => back + GRANULE * (1 + self.chance.index(reach)),
        };
        let fill = match self.chance.below(8) {
            0 => Fill::Zeroes,
            1 | 2 => Fill::Mixed,
            _ => Fill::Stamp,
        };
        let end = first + units.min(most);
        let (lower, upper) = (first / STRIPE_UNITS, (end - 1) / STRIPE_UNITS);
        if lower != upper && self.nature.checkpoints && self.chance.one_in(2) {
            // What the lower core has decided the upper one does not come to do before a checkpoint forgets it.
            let core = upper % SLICES as usize % self.cores();
            self.falls_asleep = Some((core, self.steps + 1 + self.chance.below(120)));
        }
        self.submit(device, Op::WriteAtomic, first, end - first, fill);
    }

    /// A request for a range of any length.
    fn range(&mut self, device: Device, op: Op) {
        let (mut first, mut units) = self.piece_range(&device);
        let rest = device.units() - first;
        let block = device.block_units();
        match self.chance.below(12) {
            0 => units = rest,
            1 => (first, units) = (0, device.units()),
            2 | 3 => units = (1 + self.chance.index(rest)).div_ceil(block) * block,
            4 => {
                first -= first % STRIPE_UNITS;
                return self.submit(device, op, first, STRIPE_UNITS.min(device.units() - first), Fill::Stamp);
            }
            // Over a few pieces, so over a stripe's edge where it began at one.
            5..=7 => units = ((1 + self.chance.index(4 * PIECE_UNITS)).div_ceil(block) * block).min(rest),
            _ => {}
        }
        self.submit(device, op, first, units.min(rest), Fill::Stamp);
    }

    /// A buffer of a core, full of what it must not come back with.
    fn take(&mut self, core: usize, units: usize) -> Option<Buf> {
        let mut buf = self.bufs[core].take(units * UNIT_BYTES)?;
        buf.fill(0xee);
        Some(buf)
    }

    /// Submits a request on a core of the seed's choice, if there are buffers for it.
    pub(crate) fn submit(&mut self, device: Device, op: Op, first: usize, units: usize, fill: Fill) {
        let core = self.chance.index(self.cores());
        let tag = self.fresh_name();
        let mut parts = Vec::new();
        for (first, units) in cut(op, first, units) {
            let (mut buf, mut scratch) = (None, None);
            if op.has_data() {
                buf = self.take(core, op.buf_bytes((units * UNIT_BYTES) as u64) as usize / UNIT_BYTES);
                if buf.is_none() {
                    return;
                }
            }
            if op.needs_scratch() {
                scratch = self.take(core, units);
                if scratch.is_none() {
                    return;
                }
            }
            parts.push((first, units, buf, scratch));
        }
        let fua = op.writes() && self.chance.one_in(8);
        if let Op::CompareAndWrite | Op::Compare = op {
            let mut expected = vec![0; units * UNIT_BYTES];
            self.expect(device.state, first, &mut expected);
            for (at, units, buf, _) in &mut parts {
                let (at, bytes) = ((*at - first) * UNIT_BYTES, *units * UNIT_BYTES);
                if let Some(buf) = buf {
                    buf[..bytes].copy_from_slice(&expected[at..at + bytes]);
                }
            }
        }
        let open = Open {
            op: Some(op),
            core,
            state: device.state,
            first,
            units,
            source: None,
            asked: 0,
            by: NOBODY,
            durable: fua || !device.geometry.write_cache,
            abandoned: false,
        };
        let by = self.oracle.ask(tag, open, fill);
        for (at, units, buf, _) in &mut parts {
            match (op, buf) {
                (Op::OrWrite, Some(buf)) => Contents::mask(by, buf),
                (Op::Write, Some(buf)) => self.stamp(by, 0, buf),
                (Op::WriteAtomic, Some(buf)) => self.stamp(by, *at - first, buf),
                (Op::CompareAndWrite, Some(buf)) => {
                    self.stamp(by, *at - first, &mut buf[*units * UNIT_BYTES..]);
                }
                _ => {}
            }
        }
        let name = &self.oracle.state(device.state).name;
        self.trace.line(|| {
            let fua = if fua { " fua" } else { "" };
            format!("-> {tag} core {core}: #{} {op:?}{fua} {name} units {first}+{units} {fill:?}", by.0)
        });
        self.oracle.stats.count(stat_of(op));
        let block = device.block_units();
        if parts.len() > 1 {
            let what = match op {
                Op::WriteAtomic => "atomic write of parts",
                _ => "compare and write of parts",
            };
            self.oracle.stats.count(what);
            self.parts_out.insert(tag, (parts.len(), Vec::new()));
        }
        let mut more_parts = parts.len() as u8;
        for (first, units, buf, scratch) in parts {
            more_parts -= 1;
            let io = Io {
                tag: Tag(tag),
                from: Core(core as u16),
                bdev: device.bdev,
                op,
                fua,
                heartbeat: false,
                disposable: false,
                more_parts,
                lba: (first / block) as u64,
                blocks: (units / block) as u64,
                buf,
                scratch,
            };
            self.side(core).submit(io);
        }
        self.collect(core);
    }

    fn stamp(&self, by: crate::sim::content::OpId, from: usize, into: &mut [u8]) {
        let content = crate::sim::content::Content { write: by, unit: from as i32, ors: 0 };
        for (k, unit) in into.chunks_exact_mut(UNIT_BYTES).enumerate() {
            self.oracle.contents.fill(content, k, unit);
        }
    }

    /// What may be there, mostly the youngest, or the youngest that is over.
    fn expect(&mut self, state: u32, first: usize, into: &mut [u8]) {
        let over = self.chance.one_in(2);
        let table = &self.oracle.states[&state].table;
        for (unit, bytes) in (first..).zip(into.chunks_exact_mut(UNIT_BYTES)) {
            let (block, k) = (unit / 8, unit % 8);
            let values = table.block(block).values.iter().filter(|value| value.mask >> k & 1 == 1);
            let mut values: Vec<_> = values.collect();
            if over && values.iter().any(|value| value.ended != NEVER) {
                values.retain(|value| value.ended != NEVER);
            }
            let back = if self.chance.one_in(40) { self.chance.index(values.len()) } else { 0 };
            self.oracle.contents.fill(values[values.len() - 1 - back].content, k, bytes);
        }
    }

    /// A copy from here to somewhere.
    fn copy(&mut self, to: Device) {
        let Some(from) = self.any_device() else { return };
        let from = if self.chance.one_in(3) { to } else { from };
        if from.geometry.block_bytes != to.geometry.block_bytes {
            return;
        }
        if self.nature.twins && self.plan.is_empty() && self.chance.one_in(2) {
            return self.copy_again_and_again(from, to);
        }
        let block = to.block_units();
        let mut first = self.place(&to);
        let mut source_first = self.place(&from);
        let stripes = self.chance.one_in(if self.nature.stripes { 2 } else { 5 });
        match self.chance.below(6) {
            _ if stripes => {
                first -= first % STRIPE_UNITS;
                source_first -= source_first % STRIPE_UNITS;
            }
            // Overlapping, by little or much.
            0 | 1 if from.state == to.state => {
                source_first = first + self.chance.of(&[1, 8, 9, 64, 128, 200]);
            }
            0 => {}
            // As in their pieces.
            1 | 2 => source_first = source_first / PIECE_UNITS * PIECE_UNITS + first % PIECE_UNITS,
            // Whole pieces.
            3 | 4 => {
                first -= first % PIECE_UNITS;
                source_first -= source_first % PIECE_UNITS;
            }
            _ => first = (first & !7) + source_first % 8,
        }
        if self.chance.one_in(2) {
            std::mem::swap(&mut first, &mut source_first);
        }
        let (first, source_first) = (first / block * block, source_first / block * block);
        if first >= to.units() || source_first >= from.units() {
            return;
        }
        let room = (to.units() - first).min(from.units() - source_first);
        let most = self.chance.of(&[8, 64, PIECE_UNITS, 3 * PIECE_UNITS, 40 * PIECE_UNITS]);
        let units = ((1 + self.chance.index(most)).div_ceil(block) * block).min(room);
        let units = if self.chance.one_in(2) { room.min(most.div_ceil(block) * block) } else { units };
        let units = if stripes { room.min(STRIPE_UNITS * (1 + self.chance.index(2))) } else { units };
        if stripes && self.nature.stripes {
            // Something that is its own and nobody else's yet.
            let units = PIECE_UNITS.min(from.units() - source_first);
            self.submit(from, Op::Write, source_first, units, Fill::Stamp);
        }
        if !self.copy_range(from, source_first, to, first, units) || !stripes || self.chance.one_in(2) {
            return;
        }
        let (mut kept, mut lost) = ((from.state, source_first), (to.state, first));
        if self.chance.one_in(2) {
            std::mem::swap(&mut kept, &mut lost);
        }
        self.plan = [
            Planned::CopyFrom(kept.0, kept.1),
            Planned::Unmap(lost.0, lost.1),
            Planned::Write(kept.0, kept.1),
        ]
        .into();
    }

    /// Copies of a whole stripe to two others, as it is, and once more when it has changed.
    fn copy_again_and_again(&mut self, from: Device, to: Device) {
        let (sources, places) = (from.units() / STRIPE_UNITS, to.units() / STRIPE_UNITS);
        if sources == 0 || places == 0 {
            return;
        }
        let first = self.chance.index(sources) * STRIPE_UNITS;
        let at = [0, 1].map(|_| (to.state, self.chance.index(places) * STRIPE_UNITS));
        let source = (from.state, first);
        if at.contains(&source) {
            return;
        }
        self.plan = [
            Planned::Write(from.state, first),
            Planned::CopyStripe(source, at[0]),
            Planned::CopyStripe(source, at[1]),
            Planned::CopyStripe(source, at[0]),
            Planned::Write(from.state, first),
            Planned::CopyStripe(source, at[1]),
            Planned::CopyStripe(source, at[0]),
        ]
        .into();
    }

    /// A copy, unless one is under way that it would take from, or bring to what is taken from.
    fn copy_range(
        &mut self,
        from: Device,
        source_first: usize,
        to: Device,
        first: usize,
        units: usize,
    ) -> bool {
        let block = to.block_units();
        let chained = self.oracle.open.values().any(|open| {
            let meets = |state: u32, at: usize, other: u32, other_first: usize| {
                state == other && at < other_first + open.units && other_first < at + units
            };
            open.source.is_some_and(|(state, source)| {
                meets(to.state, first, state, source)
                    || meets(from.state, source_first, open.state, open.first)
            })
        });
        if chained {
            // What the one takes from the other and back again is no end of possibilities.
            return false;
        }
        let (core, tag) = (self.chance.index(self.cores()), self.fresh_name());
        let open = Open {
            op: None,
            core,
            state: to.state,
            first,
            units,
            source: Some((from.state, source_first)),
            asked: 0,
            by: NOBODY,
            durable: !to.geometry.write_cache,
            abandoned: false,
        };
        let by = self.oracle.ask(tag, open, Fill::Stamp);
        let (source, destination) = (self.oracle.name(from.state), self.oracle.name(to.state));
        self.trace.line(|| {
            format!(
                "-> {tag} core {core}: #{} copy {source} {source_first}+{units} to {destination} {first}",
                by.0
            )
        });
        self.oracle.stats.count("copy");
        let ask = CopyAsk {
            tag: Tag(tag),
            source: (from.bdev, (source_first / block) as u64),
            destination: (to.bdev, (first / block) as u64),
            blocks: (units / block) as u64,
        };
        self.side(core).copy(ask);
        self.collect(core);
        true
    }

    /// Gives up something that is under way.
    fn give_up(&mut self) {
        let tags: Vec<u64> = self.oracle.open.keys().copied().collect();
        if tags.is_empty() {
            return;
        }
        let tag = tags[self.chance.index(tags.len())];
        let open = &self.oracle.open[&tag];
        let Some(Kind::Volume { attached: Some((bdev, _)), .. }) =
            self.oracle.states.get(&open.state).map(|state| &state.kind)
        else {
            return;
        };
        let (core, bdev) = (open.core, *bdev);
        self.oracle.abandoned(tag);
        self.trace.line(|| format!("-- {tag} is given up"));
        self.oracle.stats.count("given up");
        self.side(core).abandon(bdev, Tag(tag));
        (0..self.cores()).for_each(|core| self.collect(core));
    }
}

/// The parts of a request that the block device wants it in: first unit and length.
fn cut(op: Op, first: usize, units: usize) -> Vec<(usize, usize)> {
    let (piece, end) = (first / PIECE_UNITS * PIECE_UNITS, first + units);
    let part_units = match op {
        Op::CompareAndWrite if end > piece + PIECE_UNITS || units > PART_UNITS => PART_UNITS,
        Op::WriteAtomic => PIECE_UNITS,
        _ => return vec![(first, units)],
    };
    let mut parts = Vec::new();
    let mut at = first;
    while at < end {
        let until = ((at / part_units + 1) * part_units).min(end);
        parts.push((at, until - at));
        at = until;
    }
    parts
}

fn stat_of(op: Op) -> &'static str {
    match op {
        Op::Read => "read",
        Op::Write => "write",
        Op::WriteZeroes => "write zeroes",
        Op::Unmap => "unmap",
        Op::Flush => "flush",
        Op::Compare => "compare",
        Op::OrWrite => "or-write",
        Op::CompareAndWrite => "compare and write",
        Op::WriteAtomic => "atomic write",
        Op::Stage => unreachable!("no asker's"),
    }
}
