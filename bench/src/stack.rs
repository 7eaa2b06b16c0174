//! `bench stack`: one LUN on two reactors, beside two reactors that share nothing: what it costs that any core may ask for any
//! block. In memory and without sockets, so that the way between cores is most of what there is.
//!
//! Each measurement is a process of its own, which is this program again: both reactors in one, or one in each of two that run
//! at once. Each reactor keeps a closed loop going over the whole unit; with two, half of what it asks for is the other's.

use crate::args::{StackArgs, StackKind, positive_seconds};
use crate::cases::{median, spread_percent};
use crate::failure::{Context, Failure};
use crate::load::pattern::Random;
use crate::machine;
use crate::micro::{mailbox::hops, round};
use crate::pool::file;
use crate::pool::world::{io, spec};
use bdev::io::{BdevId, Done, Op, Tag};
use bdev::pool;
use bdev::pool::control::{Answer, Request};
use bdev::router::Router;
use bdev::shard::{self, Shard};
use bdev::stack::{self, BdevConfig, BdevKind, Opened};
use bdev::storage::{COPY_BUFS, CopyIo, Outgoing, Storage};
use clap::ValueEnum;
use comfy_table::{Table, presets};
use reactor::Core;
use reactor::buf::{BUF_BYTES_MAX, Buf};
use reactor::clock::Time;
use reactor::disk::DiskDone;
use reactor::reactor::PollMode;
use reactor::ring::{Ready, RingConfig};
use reactor::service::{Activity, Cx, Service};
use reactor::start::{Mesh, MeshConfig};
use serde_json::{Value, json};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

const BLOCK: u64 = 4096;
const CHUNK: u64 = 64 << 10;
const STRIPE: u64 = bdev::stripe::STRIPE_BYTES;
/// What is copied from: a block in each chunk.
const SOURCE_BYTES: u64 = 1 << 30;
/// The volume that is copied in.
const VOLUME_BYTES: u64 = 64 << 30;
/// The pool's file: journals, maps, and the source; sparse.
const POOL_BYTES: u64 = 4 << 30;
/// Copies that begin in a turn: commands come by and by, and a core that begins all of its at once has the others wait for a
/// long turn's end, and then waits for theirs.
const COPIES_A_TURN: usize = 8;
/// Operations that the ring takes at once.
const OPERATIONS_MAX: usize = 4096;
/// The bar: of what two that share nothing do together.
const BAR: f64 = 0.92;
/// How the cost of a message is measured.
const HOPS: round::Plan = round::Plan { rounds: 5, time: Duration::from_millis(200) };

/// What a process has done.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Totals {
    /// A second, of all its reactors.
    rate: f64,
    /// Between reactors, for each.
    messages: f64,
}

/// The subcommand.
///
/// # Errors
/// A reactor doesn't start, something asked for fails.
pub fn run(args: &StackArgs) -> Result<ExitCode, Failure> {
    if let Some(kind) = args.alone {
        let done = measure(args, kind)?;
        println!("{}", json!({ "rate": done.rate, "messages": done.messages }));
        return Ok(ExitCode::SUCCESS);
    }
    let &[first, second] = &args.cpus[..] else {
        return Err(Failure::new("--cpus: two, as in 0,1: one for each reactor"));
    };
    if first == second {
        return Err(Failure::new("--cpus: two different ones, or the reactors take turns and not part"));
    }
    let mut rows = Vec::new();
    for kind in StackKind::value_variants() {
        let (mut ratios, mut together, mut apart, mut messages) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..args.repeats.max(1) {
            let one = finish(begin(args, *kind, &[first, second])?)?;
            let children = [begin(args, *kind, &[first])?, begin(args, *kind, &[second])?];
            let mut sum = 0.0;
            for child in children {
                sum += finish(child)?.rate;
            }
            eprintln!("{}: {:.0}/s on one unit, {sum:.0}/s apart", name_of(*kind), one.rate);
            ratios.push(one.rate / sum);
            together.push(one.rate);
            apart.push(sum);
            messages.push(one.messages);
        }
        rows.push((*kind, ratios, together, apart, messages));
    }
    let hop_ns = median(&hops(HOPS, first, second)?);
    let met = rows.iter().all(|(_, ratios, ..)| median(ratios) >= BAR);
    if args.json {
        let row = |(kind, ratios, together, apart, messages): &(
            StackKind,
            Vec<f64>,
            Vec<f64>,
            Vec<f64>,
            Vec<f64>,
        )| {
            json!({
                "case": name_of(*kind),
                "ratio": median(ratios),
                "ratios": ratios,
                "together_a_second": together,
                "apart_a_second": apart,
                "messages_each": median(messages),
            })
        };
        let rows: Vec<Value> = rows.iter().map(row).collect();
        println!("{:#}", json!({ "stack": rows, "bar": BAR, "hop_ns": hop_ns, "machine": machine::facts() }));
    } else {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
        table.set_header([
            "two reactors",
            "one unit, k/s",
            "apart, k/s",
            "ratio",
            "spread %",
            "bar",
            "met",
            "messages each",
        ]);
        for (kind, ratios, together, apart, messages) in &rows {
            let ratio = median(ratios);
            table.add_row([
                name_of(*kind).to_owned(),
                format!("{:.1}", median(together) / 1e3),
                format!("{:.1}", median(apart) / 1e3),
                format!("{ratio:.2}"),
                format!("{:.1}", spread_percent(ratios)),
                format!("≥ {BAR:.2}"),
                if ratio >= BAR { "yes" } else { "NO" }.to_owned(),
                format!("{:.2}", median(messages)),
            ]);
        }
        println!(
            "{table}\na hop between the two: {hop_ns:.0} ns, a turn of its receiver included\n{}",
            machine::sentence()
        );
    }
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn name_of(kind: StackKind) -> &'static str {
    match kind {
        StackKind::Read => "random reads of 4 KiB, ram",
        StackKind::Write => "random writes of 4 KiB, ram",
        StackKind::Copy => "copies of 4 MiB inside a volume",
    }
}

/// This program again, for one measurement.
fn begin(args: &StackArgs, kind: StackKind, cpus: &[usize]) -> Result<Child, Failure> {
    let program = std::env::current_exe().doing("finding this program")?;
    let cpus = cpus.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let kind = kind.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
    Command::new(program)
        .args(["stack", "--alone", &kind, "--cpus", &cpus])
        .args(["--depth", &args.depth.to_string(), "--copies", &args.copies.to_string()])
        .args(["--range", &args.range.to_string()])
        .args(["--warmup", &args.warmup.to_string(), "--time", &args.time.to_string()])
        .arg("--dir")
        .arg(&args.dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .doing("starting this program again")
}

fn finish(child: Child) -> Result<Totals, Failure> {
    let output = child.wait_with_output().doing("waiting for a measurement")?;
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    match (output.status.success(), said["rate"].as_f64(), said["messages"].as_f64()) {
        (true, Some(rate), Some(messages)) => Ok(Totals { rate, messages }),
        _ => Err(Failure::new(format!("a measurement ended with {}", output.status))),
    }
}

/// What reactors say to each other.
enum Mail {
    Bdev(shard::Mail),
    /// The volume is filled: copy in it.
    Go(BdevId),
    Seen,
}

/// What one of them has done in the window.
struct Report {
    ended: u64,
    messages: u64,
    seconds: f64,
}

/// All reactors of this process, over one unit.
fn measure(args: &StackArgs, kind: StackKind) -> Result<Totals, Failure> {
    let warmup = positive_seconds("--warmup", args.warmup)?;
    let time = positive_seconds("--time", args.time)?;
    let ram = BdevConfig {
        kind: BdevKind::Ram { bytes: args.range },
        block_bytes: 512,
        physical_block_bytes: 4096,
        read_only: false,
        write_cache: false,
    };
    let mut devices = stack::open(&[ram]).doing("taking memory for the unit")?;
    let path = args.dir.join(format!("pollux-bench-stack-{}", std::process::id()));
    let pool = if kind == StackKind::Copy { Some(make_pool(args, &path, &mut devices)?) } else { None };
    let files = devices.take_files();
    let (sender, receiver) = channel();
    let parts = Arc::new((devices, pool));
    let cores = args.cpus.len();
    let distinct = args.cpus.iter().collect::<std::collections::BTreeSet<_>>().len();
    let (depth, copies, range) = (args.depth, args.copies, args.range);
    let config = MeshConfig {
        files,
        ring: RingConfig { operations_max: OPERATIONS_MAX, ..RingConfig::default() },
        // Two that spin on one CPU would wait for each other's ticks.
        poll: if args.cpus.len() == distinct { PollMode::Busy } else { PollMode::default() },
        ..MeshConfig::new(args.cpus.clone())
    };
    let running = Mesh::start(config, move |core| Driver {
        parts: Arc::clone(&parts),
        reports: sender.clone(),
        plan: Plan { kind, depth, copies, range, warmup, time, cores: cores as u16 },
        random: Random::new(u64::from(core.0) + 1),
        storage: None,
        state: State::Starting,
        bufs: Vec::new(),
        out: 0,
        ended: 0,
        messages: 0,
    });
    let running = running.doing("starting reactors");
    // Nobody else needs its name.
    let _ = std::fs::remove_file(&path);
    let running = running?;
    let mut sum = Totals::default();
    let mut ended = 0;
    let mut result = Ok(());
    for _ in 0..cores {
        match receiver.recv().unwrap_or_else(|_| Err(Failure::new("a reactor ended early"))) {
            Ok(report) => {
                sum.rate += report.ended as f64 / report.seconds;
                sum.messages += report.messages as f64;
                ended += report.ended;
            }
            Err(failure) => {
                result = Err(failure);
                break;
            }
        }
    }
    running.stop();
    running.join();
    result?;
    sum.messages /= ended.max(1) as f64;
    Ok(sum)
}

fn make_pool(
    args: &StackArgs,
    path: &std::path::Path,
    devices: &mut Opened,
) -> Result<pool::Opened, Failure> {
    let file = std::fs::File::create_new(path).doing(format!("making {}", path.display()))?;
    file.set_len(POOL_BYTES).doing(format!("growing {}", path.display()))?;
    drop(file);
    file::open_pool(path, devices, args.cpus.len() as u16)
}

/// What a reactor is to do.
#[derive(Clone, Copy)]
struct Plan {
    kind: StackKind,
    depth: usize,
    copies: usize,
    range: u64,
    warmup: Duration,
    time: Duration,
    cores: u16,
}

enum State {
    Starting,
    /// Core 0: the volume is made, or attached.
    Asking,
    /// Core 0: the source is filled, up to this chunk.
    Filling(BdevId, u64),
    /// The others: until it is.
    Waiting,
    Loading {
        bdev: BdevId,
        counts_from: Time,
        until: Time,
        /// Messages before the window.
        before: u64,
        counting: bool,
    },
    Over,
}

/// One reactor.
struct Driver {
    parts: Arc<(Opened, Option<pool::Opened>)>,
    reports: Sender<Result<Report, Failure>>,
    plan: Plan,
    random: Random,
    storage: Option<Storage>,
    state: State,
    bufs: Vec<Buf>,
    out: usize,
    ended: u64,
    messages: u64,
}

impl Driver {
    fn make(&mut self, cx: &mut Cx<'_, Mail>) -> Result<(), Failure> {
        let (devices, pool) = &*self.parts;
        let cores = self.plan.cores;
        let stacks = devices.stacks_for(cx.core, cores, cx.pool).doing("making the unit")?;
        let mut shard = Shard::new(cx.core, stacks);
        let mut bufs = Vec::new();
        if let Some(pool) = pool {
            shard.add_pool(pool.shard(cx.core, cx.pool).doing("taking the pool's shard")?);
            bufs = (0..COPY_BUFS).map_while(|_| cx.pool.take(BUF_BYTES_MAX)).collect();
        }
        let router = Router::new(cx.core, cores, devices.geometries());
        let mut storage = Storage::new(cx.core, cores, router, shard, bufs);
        for seed in 0..self.plan.depth as u64 {
            let Some(mut buf) = cx.pool.take(BLOCK as usize) else {
                return Err(Failure::new("--depth: too few buffers for that; ask for less"));
            };
            let mut random = Random::new(seed + 1);
            buf.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random.draw().to_le_bytes()));
            self.bufs.push(buf);
        }
        self.state = match self.plan.kind {
            StackKind::Read | StackKind::Write => self.loading(BdevId(0)),
            StackKind::Copy if cx.core == Core(0) => {
                storage.ask(0, 1, Request::VolumeCreate(spec("v", VOLUME_BYTES, false)), 1_700_000_000);
                State::Asking
            }
            StackKind::Copy => State::Waiting,
        };
        self.storage = Some(storage);
        Ok(())
    }

    fn loading(&self, bdev: BdevId) -> State {
        let counts_from = Time::now() + self.plan.warmup;
        State::Loading { bdev, counts_from, until: counts_from + self.plan.time, before: 0, counting: false }
    }

    fn fail(&mut self, failure: Failure) {
        self.state = State::Over;
        // Nobody listening means that nobody wants to know.
        let _ = self.reports.send(Err(failure));
    }

    fn request(&mut self, core: Core, bdev: BdevId, op: Op, offset: u64) {
        let (Some(storage), Some(buf)) = (&mut self.storage, self.bufs.pop()) else { return };
        self.out += 1;
        storage.submit(bdev::io::Io { from: core, ..io(bdev, op, offset, BLOCK, Some(buf)) });
    }

    /// As much as is due; whether there was something.
    fn feed(&mut self, cx: &mut Cx<'_, Mail>) -> bool {
        match self.state {
            State::Filling(bdev, mut chunk) => {
                let before = chunk;
                while chunk < SOURCE_BYTES / CHUNK && !self.bufs.is_empty() {
                    self.request(cx.core, bdev, Op::Write, chunk * CHUNK);
                    chunk += 1;
                }
                self.state = State::Filling(bdev, chunk);
                if chunk == SOURCE_BYTES / CHUNK && self.out == 0 {
                    (1..self.plan.cores).for_each(|core| cx.outbox.request(Core(core), Mail::Go(bdev)));
                    self.state = self.loading(bdev);
                }
                chunk != before
            }
            State::Loading { bdev, counts_from, until, before, counting } => {
                let now = cx.now;
                if !counting && now >= counts_from {
                    self.ended = 0;
                    self.state = State::Loading {
                        bdev,
                        counts_from: now,
                        until: now + self.plan.time,
                        before: self.messages,
                        counting: true,
                    };
                    return true;
                }
                if now >= until {
                    if counting {
                        let seconds = now.since(counts_from).as_secs_f64();
                        let report = Report { ended: self.ended, messages: self.messages - before, seconds };
                        let _ = self.reports.send(Ok(report));
                    }
                    self.state = State::Over;
                    return true;
                }
                self.load(cx.core, bdev)
            }
            _ => false,
        }
    }

    fn load(&mut self, core: Core, bdev: BdevId) -> bool {
        let op = match self.plan.kind {
            StackKind::Read => Op::Read,
            StackKind::Write => Op::Write,
            StackKind::Copy => {
                let any = self.out < self.plan.copies;
                let until = self.plan.copies.min(self.out + COPIES_A_TURN);
                while self.out < until {
                    let source = self.random.below(SOURCE_BYTES / STRIPE) * STRIPE;
                    let destination =
                        SOURCE_BYTES + self.random.below((VOLUME_BYTES - SOURCE_BYTES) / STRIPE) * STRIPE;
                    let Some(storage) = &mut self.storage else { break };
                    self.out += 1;
                    storage.copy(CopyIo {
                        tag: Tag(1),
                        source: bdev,
                        source_bytes: source,
                        destination: bdev,
                        destination_bytes: destination,
                        bytes: STRIPE,
                    });
                }
                return any;
            }
        };
        let any = !self.bufs.is_empty();
        while !self.bufs.is_empty() {
            let offset = self.random.below(self.plan.range / BLOCK) * BLOCK;
            self.request(core, bdev, op, offset);
        }
        any
    }

    fn came_back(&mut self, done: Done) {
        self.out -= 1;
        self.ended += 1;
        self.bufs.extend(done.io.buf);
        if let Err(error) = done.result {
            self.fail(Failure::new(format!("{:?} at block {}: {error:?}", done.io.op, done.io.lba)));
        }
    }

    fn answered(&mut self, answer: Result<Answer, bdev::pool::control::Refusal>) {
        let Some(storage) = &mut self.storage else { return };
        match answer {
            Ok(Answer::Attached { bdev, .. }) => self.state = State::Filling(bdev, 0),
            Ok(_) => storage.ask(0, 1, Request::Attach { volume: "v".into() }, 1_700_000_000),
            Err(refusal) => self.fail(Failure::new(refusal.to_string())),
        }
    }

    /// Carries what this core has for others to them.
    fn carry(&mut self, cx: &mut Cx<'_, Mail>) -> bool {
        let mut any = false;
        let Some(storage) = &mut self.storage else { return false };
        while let Some(Outgoing { to, reply, mail }) = storage.poll_mail() {
            any = true;
            self.messages += 1;
            if reply {
                cx.outbox.reply(to, Mail::Bdev(mail));
            } else {
                cx.outbox.request(to, Mail::Bdev(mail));
            }
        }
        any
    }
}

impl Service for Driver {
    type Message = Mail;

    fn start(&mut self, cx: &mut Cx<'_, Mail>) {
        if let Err(failure) = self.make(cx) {
            self.fail(failure);
        }
    }

    fn expect(&mut self, message: &Mail) {
        if let (Mail::Bdev(mail), Some(storage)) = (message, &self.storage) {
            storage.expect(mail);
        }
    }

    fn on_message(&mut self, cx: &mut Cx<'_, Mail>, from: Core, message: Mail) {
        let Some(storage) = &mut self.storage else { return };
        match message {
            Mail::Bdev(shard::Mail::Submit(mut io)) => {
                if storage.perform_now(&mut io) {
                    self.messages += 1;
                    let done = shard::Mail::Done(Done { io, result: Ok(()) });
                    cx.outbox.reply(from, Mail::Bdev(done));
                } else {
                    storage.on_request(from, shard::Mail::Submit(io));
                }
            }
            Mail::Bdev(
                mail @ (shard::Mail::Swap(_)
                | shard::Mail::Edge(_)
                | shard::Mail::PoolAsk(..)
                | shard::Mail::PoolData(..)),
            ) => {
                storage.on_request(from, mail);
            }
            Mail::Bdev(mail) => storage.on_reply(from, mail),
            Mail::Go(bdev) => {
                cx.outbox.reply(from, Mail::Seen);
                self.state = self.loading(bdev);
            }
            Mail::Seen => {}
        }
    }

    fn on_disk(&mut self, _: &mut Cx<'_, Mail>, done: DiskDone) {
        if let Some(storage) = &mut self.storage {
            storage.complete(done);
        }
    }

    fn on_ready(&mut self, _: &mut Cx<'_, Mail>, _: u64, _: Ready) {}

    fn on_timer(&mut self, _: &mut Cx<'_, Mail>, _: u64) {}

    fn turn(&mut self, cx: &mut Cx<'_, Mail>) -> Activity {
        let Some(storage) = &mut self.storage else { return Activity::Idle };
        let mut busy = storage.turn(cx.now);
        if let Some((_, answer)) = storage.poll_answer() {
            self.answered(answer);
        }
        busy |= self.feed(cx);
        busy |= self.carry(cx);
        while let Some(done) = self.storage.as_mut().and_then(Storage::poll_done) {
            busy = true;
            self.came_back(done);
        }
        while let Some(copied) = self.storage.as_mut().and_then(Storage::poll_copied) {
            self.out -= 1;
            self.ended += 1;
            if let Err(error) = copied.result {
                self.fail(Failure::new(format!("a copy: {error:?}")));
            }
        }
        let Some(storage) = &mut self.storage else { return Activity::Idle };
        while cx.ring.disk_in_flight() < OPERATIONS_MAX
            && let Some(op) = storage.poll_disk()
        {
            cx.ring.disk(op);
        }
        // Until the window ends there is always something to look at: the clock, if nothing else.
        let waits = matches!(self.state, State::Waiting | State::Over);
        if busy || !waits { Activity::Busy } else { Activity::Idle }
    }

    fn before_sleep(&mut self, _: &mut Cx<'_, Mail>) {}

    fn stopped(&mut self, cx: &mut Cx<'_, Mail>) -> bool {
        self.state = State::Over;
        self.out == 0 && cx.ring.disk_in_flight() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(cpus: &[usize], kind: StackKind) -> StackArgs {
        StackArgs {
            cpus: cpus.to_vec(),
            depth: 4,
            copies: 4,
            range: 16 << 20,
            warmup: 0.01,
            time: 0.05,
            repeats: 1,
            dir: std::env::temp_dir(),
            json: false,
            alone: Some(kind),
        }
    }

    /// Goal: every kind does something on one reactor, and two have something to say to each other. Method: both on one CPU, for
    /// a moment, where a copy's many steps would take too long.
    #[test]
    fn each_kind_runs() {
        for kind in StackKind::value_variants() {
            for cpus in [&[0][..], &[0, 0]] {
                if cpus.len() == 2 && *kind == StackKind::Copy {
                    continue;
                }
                let done = measure(&args(cpus, *kind), *kind).unwrap();
                assert!(done.rate > 0.0, "{kind:?} on {cpus:?}");
                assert_eq!(done.messages > 0.0, cpus.len() == 2, "{kind:?} on {cpus:?}: {done:?}");
            }
        }
    }

    /// Goal: what can't be measured is told.
    #[test]
    fn two_cpus_are_wanted() {
        for cpus in [&[0][..], &[0, 0], &[0, 1, 2]] {
            assert!(run(&StackArgs { alone: None, ..args(cpus, StackKind::Read) }).is_err());
        }
    }
}
