//! A subject without a pool: each volume is a disk of its own, driven by today's router, shards and layers. Proves the
//! disk and the oracle with code that is known, and that code with crashes.

use crate::sim::disk::Disk;
use crate::sim::subject::{Able, CopyAsk, CopyEnd, CreateAs, Letter, OpenAs, Report, Side, Subject};
use bdev::align::Align;
use bdev::atomic::{Atomic, Steps};
use bdev::base::uring::{Uring, UringConfig};
use bdev::geometry::Geometry;
use bdev::io::{BdevId, Done, Io, Tag};
use bdev::pool::control::{
    Against, Answer, Answered, Provisioning, Refusal, Request, VolumeInfo, VolumeSpec,
};
use bdev::router::Router;
use bdev::shard::Shard;
use bdev::stack::Stack;
use bdev::stripe::Deal;
use reactor::Core;
use reactor::buf::{BUF_BYTES_MAX, Pool};
use reactor::clock::Time;
use reactor::disk::{DiskDone, DiskOp, FileId};
use std::collections::VecDeque;

const SIZES: &[u64] = &[9 << 20, 4 << 20];
const CAPACITY: usize = 512;

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain {
    /// From it come block sizes and write caches.
    pub seed: u64,
}

impl Plain {
    fn spec(self, index: usize) -> VolumeSpec {
        let dice = self.seed >> (index * 2);
        VolumeSpec {
            name: format!("disk{index}"),
            bytes: SIZES[index],
            block_bytes: if dice & 1 == 0 { 512 } else { 4096 },
            physical_block_bytes: 4096,
            provisioning: Provisioning::Thin,
            zero_detect: false,
            write_cache: dice & 2 != 0,
        }
    }
}

fn geometry(spec: &VolumeSpec) -> Geometry {
    Geometry {
        block_bytes: spec.block_bytes,
        physical_block_bytes: spec.physical_block_bytes,
        blocks: spec.bytes / u64::from(spec.block_bytes),
        unmap_granularity_bytes: 4096,
        write_zeroes: true,
        write_cache: spec.write_cache,
        read_only: false,
        rotational: false,
        pooled: false,
        atomic_bytes: 0,
    }
}

/// What cores say to each other.
#[derive(Debug)]
pub enum Mail {
    /// For the owner.
    Submit(Io),
    /// Its answer.
    Done(Done),
    /// Of a shard's own.
    Shard(bdev::shard::Mail),
    /// For the owner.
    Abandon(BdevId, Tag),
    /// Its answer.
    Abandoned,
}

/// One core's part.
#[derive(Debug)]
pub struct PlainSide {
    core: Core,
    deal: Deal,
    router: Router,
    shard: Shard,
    letters: VecDeque<Letter<Mail>>,
    infos: Vec<(VolumeInfo, Geometry)>,
    answers: VecDeque<(u64, Answered)>,
}

impl PlainSide {
    fn send(&mut self, to: Core, reply: bool, mail: bdev::shard::Mail) {
        if to == self.core {
            self.on_mail(to, mail);
        } else {
            self.letters.push_back(Letter { to, reply, mail: Mail::Shard(mail) });
        }
    }

    fn on_mail(&mut self, from: Core, mail: bdev::shard::Mail) {
        match mail {
            bdev::shard::Mail::Swap(swap) => self.shard.submit_swap(*swap),
            bdev::shard::Mail::Swapped(swap, result) => self.router.swap_answered(*swap, result),
            bdev::shard::Mail::Edge(ask) => self.shard.on_edge(from, *ask),
            bdev::shard::Mail::EdgeTold(tell) => self.shard.on_edge_told(*tell),
            other => unreachable!("there is no pool, and the rest has its own letters: {other:?}"),
        }
    }

    fn carry(&mut self) {
        loop {
            if let Some((to, io)) = self.router.poll_send() {
                if to == self.core {
                    self.shard.submit(io);
                } else {
                    self.letters.push_back(Letter { to, reply: false, mail: Mail::Submit(io) });
                }
            } else if let Some((to, swap)) = self.router.poll_send_swap() {
                self.send(to, false, bdev::shard::Mail::Swap(swap));
            } else if let Some((to, reply, mail)) = self.shard.poll_edge() {
                self.send(to, reply, mail);
            } else if let Some(done) = self.shard.poll_done() {
                let to = done.io.from;
                if to == self.core {
                    self.router.answered(done);
                } else {
                    self.letters.push_back(Letter { to, reply: true, mail: Mail::Done(done) });
                }
            } else {
                return;
            }
        }
    }
}

impl Side for PlainSide {
    type Mail = Mail;

    fn submit(&mut self, io: Io) {
        self.router.submit(io);
        self.carry();
    }

    fn copy(&mut self, ask: CopyAsk) {
        unreachable!("files don't copy: {ask:?}")
    }

    fn abandon(&mut self, bdev: BdevId, tag: Tag) {
        let mut told = Vec::new();
        self.router.abandon(tag, |core, bdev, tag| told.push((core, bdev, tag)));
        // Who asked knows where a request for data went; here everybody is told.
        told.extend((0..self.deal.cores()).map(|core| (Core(core), bdev, tag)));
        for (to, bdev, tag) in told {
            if to == self.core {
                self.shard.abandon(self.core, bdev, tag);
            } else {
                self.letters.push_back(Letter { to, reply: false, mail: Mail::Abandon(bdev, tag) });
            }
        }
        self.carry();
    }

    fn receive(&mut self, from: Core, letter: Letter<Mail>) {
        match letter.mail {
            Mail::Submit(io) => self.shard.submit(io),
            Mail::Done(done) => self.router.answered(done),
            Mail::Shard(mail) => self.on_mail(from, mail),
            Mail::Abandon(bdev, tag) => {
                self.shard.abandon(from, bdev, tag);
                self.letters.push_back(Letter { to: from, reply: true, mail: Mail::Abandoned });
            }
            Mail::Abandoned => {}
        }
        self.carry();
    }

    fn poll_letter(&mut self) -> Option<Letter<Mail>> {
        self.letters.pop_front()
    }

    fn poll_disk(&mut self) -> Option<DiskOp> {
        self.shard.poll_disk()
    }

    fn complete(&mut self, done: DiskDone) {
        self.shard.complete(done);
        self.carry();
    }

    fn poll_done(&mut self) -> Option<Done> {
        self.router.poll_done()
    }

    fn poll_copied(&mut self) -> Option<CopyEnd> {
        None
    }

    fn ask(&mut self, ticket: u64, request: Request) {
        let answered = match request {
            Request::Volumes => {
                Ok(Answer::Volumes(self.infos.iter().map(|(info, _)| info.clone()).collect()))
            }
            Request::Snapshots { .. } => Ok(Answer::Snapshots(Vec::new())),
            Request::Attach { volume } => match self.infos.iter_mut().find(|(info, _)| info.name == volume) {
                Some((info, geometry)) => {
                    info.attached = true;
                    let (bdev, geometry) = (BdevId(info.id as u16 - 1), *geometry);
                    Ok(Answer::Attached { bdev, geometry, uuid: info.uuid, reservations: Vec::new() })
                }
                None => Err(Refusal::new(Against::NotFound, volume, "name another")),
            },
            other => Err(Refusal::new(Against::Invalid, format!("{other:?}"), "have a pool")),
        };
        self.answers.push_back((ticket, answered));
    }

    fn poll_answer(&mut self) -> Option<(u64, Answered)> {
        self.answers.pop_front()
    }

    fn turn(&mut self, now: Time) -> bool {
        let more = self.shard.turn(now);
        self.carry();
        more
    }

    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

impl Subject for Plain {
    type Side = PlainSide;

    fn able(&self) -> Able {
        Able {
            control: false,
            copy: false,
            parts: true,
            space: false,
            redirects: false,
            fails: false,
            disk_bytes: SIZES,
        }
    }

    fn fixed_volumes(&self) -> Vec<VolumeSpec> {
        (0..SIZES.len()).map(|index| self.spec(index)).collect()
    }

    fn create(&mut self, _: &[Disk], _: CreateAs) -> Result<(), String> {
        Ok(())
    }

    fn open(&mut self, disks: &[Disk], how: OpenAs, bufs: &mut [Pool]) -> Result<Vec<PlainSide>, String> {
        let specs = self.fixed_volumes();
        let geometries: Vec<Geometry> = specs.iter().map(geometry).collect();
        let infos = specs.iter().enumerate().map(|(index, spec)| VolumeInfo {
            name: spec.name.clone(),
            id: index as u64 + 1,
            uuid: [index as u8; 16],
            bytes: spec.bytes,
            block_bytes: spec.block_bytes,
            physical_block_bytes: spec.physical_block_bytes,
            provisioning: spec.provisioning,
            zero_detect: spec.zero_detect,
            write_cache: spec.write_cache,
            mapped_bytes: 0,
            reserved_bytes: 0,
            usage: None,
            snapshots: 0,
            origin: None,
            attached: false,
            damage: None,
        });
        let infos: Vec<_> = infos.zip(geometries.iter().copied()).collect();
        let side = |(core, bufs): (u16, &mut Pool)| {
            let mut take =
                |count: usize| (0..count).map(|_| bufs.take(BUF_BYTES_MAX)).collect::<Option<Vec<_>>>();
            let mut stacks = Vec::new();
            for ((bdev, &geometry), disk) in (0..).zip(&geometries).zip(disks) {
                let align_bytes = disk.align_bytes() as u32;
                let (bdev, file) = (BdevId(bdev), FileId(disk.file.0));
                let config = UringConfig { bdev, file, align_bytes, punch_hole: true, zero_range: true };
                let uring = Uring::new(geometry, config, take(2).ok_or("no buffers")?, CAPACITY);
                let steps = Steps { zeroes_bytes: 1 << 20, unmap_bytes: 3 << 20 };
                stacks.push(if align_bytes <= geometry.block_bytes {
                    Stack::File(Atomic::over(uring, steps, CAPACITY))
                } else {
                    let align = Align::over(uring, align_bytes, take(2).ok_or("no buffers")?, CAPACITY);
                    Stack::SmallBlocks(Atomic::over(align, steps, CAPACITY))
                });
            }
            let core = Core(core);
            Ok(PlainSide {
                core,
                deal: Deal::among(how.cores),
                router: Router::new(core, how.cores, geometries.clone().into()),
                shard: Shard::new(core, stacks),
                letters: VecDeque::new(),
                infos: infos.clone(),
                answers: VecDeque::new(),
            })
        };
        (0..how.cores).zip(bufs).map(side).collect()
    }

    fn walk(&mut self, _: &[Disk]) -> Result<Report, String> {
        Ok(Report::default())
    }
}
