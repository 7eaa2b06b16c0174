//! From a configuration to running reactors, and to their end.
//!
//! Starting has two phases, since every ring registers the memory of every core: first each thread binds itself
//! and makes its pool, then, when all pools are there, each makes its ring. No service sees anything before all
//! cores are up; if one can't be, none runs and the error says which and why.

use crate::Core;
use crate::buf::{Pool, PoolConfig, Region};
use crate::clock::Time;
use crate::durable::Failures;
use crate::limits::{RingError, Warning};
use crate::mailbox::{Mailbox, Post, mailbox, mailbox_bytes};
use crate::mesh::{CreditConfig, Outbox, Remote};
use crate::pin::{self, PinError};
use crate::reactor::{Own, PollMode, Reactor, Stop};
use crate::ring::{Ring, RingConfig};
use crate::service::Service;
use crate::timer::Timers;
use crate::trace::{self, Counters, EVENTS, Event, Published};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use tracing::{info, warn};

/// What all reactors of a process are made from.
#[derive(Debug)]
pub struct MeshConfig {
    /// One reactor for each, bound to it. [`pin::parse_cpus`] reads a list and refuses one CPU twice; here it is
    /// allowed, for tests on small machines.
    pub cpus: Vec<usize>,
    /// What idle reactors do.
    pub poll: PollMode,
    /// The longest sleep of an idle reactor: how old its published counters may become. Nothing else needs it.
    pub sleep_max: Duration,
    /// Buffer memory of each reactor, in bytes.
    pub buffer_bytes: usize,
    /// Each reactor's ring.
    pub ring: RingConfig,
    /// Timers that a service sets at once. Its bound, asserted.
    pub timers_max: usize,
    /// Requests between reactors.
    pub credits: CreditConfig,
    /// Files registered with every ring: `FileId(0)` and so on.
    pub files: Vec<OwnedFd>,
}

impl MeshConfig {
    /// One reactor on each of `cpus`, 64 MiB of buffers each, and defaults for the rest.
    pub fn new(cpus: Vec<usize>) -> MeshConfig {
        MeshConfig {
            cpus,
            poll: PollMode::default(),
            sleep_max: Duration::from_secs(1),
            buffer_bytes: 64 << 20,
            ring: RingConfig::default(),
            timers_max: 65_536,
            credits: CreditConfig::default(),
            files: Vec::new(),
        }
    }

    /// The memory that reactors of this configuration take, the services' own aside.
    pub fn memory<M>(&self) -> Memory {
        let cores = self.cpus.len();
        Memory {
            cores,
            buffers: PoolConfig::for_bytes(self.buffer_bytes, 0).bytes(),
            ring: self.ring.bytes(),
            mailbox: mailbox_bytes::<M>(cores),
            outbox_max: self.credits.outbox_bytes::<M>(cores),
            trace: EVENTS * size_of::<Event>(),
        }
    }
}

/// Memory of the reactors, in bytes; each figure but the total is for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// How many reactors.
    pub cores: usize,
    /// IO buffers, taken at start.
    pub buffers: usize,
    /// The ring's queues and the table behind it, taken at start.
    pub ring: usize,
    /// The mailbox, taken at start.
    pub mailbox: usize,
    /// What waits for other cores, at the very most.
    pub outbox_max: usize,
    /// The last events.
    pub trace: usize,
}

impl Memory {
    /// All reactors together.
    pub fn total(&self) -> usize {
        self.cores * (self.buffers + self.ring + self.mailbox + self.outbox_max + self.trace)
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        write!(
            f,
            "{:.1} MiB for {} reactors, each: buffers {:.1}, ring {:.1}, mailbox {:.1}, outbox up to {:.1}, trace {:.1}",
            mib(self.total()),
            self.cores,
            mib(self.buffers),
            mib(self.ring),
            mib(self.mailbox),
            mib(self.outbox_max),
            mib(self.trace)
        )
    }
}

/// Why the reactors did not start. None of them is left running.
#[derive(Debug)]
pub enum StartError {
    /// The CPU list can't be used.
    Pin(PinError),
    /// The mailboxes, their doorbells or a thread could not be made.
    Resources {
        /// What.
        what: &'static str,
        /// The kernel's answer.
        error: io::Error,
    },
    /// A reactor's buffers could not be mapped.
    Buffers {
        /// Whose.
        core: Core,
        /// How many bytes.
        bytes: usize,
        /// The kernel's answer.
        error: io::Error,
    },
    /// A reactor's ring could not be made.
    Ring {
        /// Whose.
        core: Core,
        /// Why.
        error: RingError,
    },
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Pin(error) => write!(f, "{error}"),
            StartError::Resources { what, error } => {
                write!(
                    f,
                    "can't make {what}: {error}; check RLIMIT_NOFILE (ulimit -n) and RLIMIT_NPROC (ulimit -u)"
                )
            }
            StartError::Buffers { core, bytes, error } => write!(
                f,
                "reactor {}: no memory for {bytes} bytes of IO buffers ({error}): configure less, or raise the \
                 memory limit of the control group",
                core.0
            ),
            StartError::Ring { core, error } => write!(f, "reactor {}: {error}", core.0),
        }
    }
}

impl std::error::Error for StartError {}

/// The reactors as a whole.
#[derive(Debug)]
pub struct Mesh;

impl Mesh {
    /// Starts one reactor for each CPU of `config`, each with the service that `make_service` makes for it on
    /// its own thread, and returns when all are up. Warnings are logged, and kept in [`Running::warnings`].
    ///
    /// # Errors
    /// What stands in the way, and the cure. Nothing is left running.
    pub fn start<S, F>(config: MeshConfig, make_service: F) -> Result<Running<S::Message>, StartError>
    where
        S: Service + 'static,
        F: Fn(Core) -> S + Send + Sync + 'static,
    {
        let allowed = pin::allowed_cpus()
            .map_err(|error| StartError::Resources { what: "the list of allowed CPUs", error })?;
        pin::check_cpus(&config.cpus, &allowed).map_err(StartError::Pin)?;
        if !config.ring.worker_cpus.is_empty() {
            pin::check_cpus(&config.ring.worker_cpus, &allowed).map_err(StartError::Pin)?;
        }
        let cores = config.cpus.len();
        let mut posts = Vec::with_capacity(cores);
        let mut mailboxes = Vec::with_capacity(cores);
        for _ in 0..cores {
            let (post, mailbox) = mailbox(cores)
                .map_err(|error| StartError::Resources { what: "a mailbox's eventfd", error })?;
            posts.push(post);
            mailboxes.push(mailbox);
        }
        let failures = Arc::new(Failures::for_files(config.ring.file_places(config.files.len())));
        let shared = Arc::new(Common { config, failures, stop: Arc::new(Stop::new(cores)), make_service });
        let published: Vec<Arc<Published>> = (0..cores).map(|_| Arc::default()).collect();
        let (reports, inbox) = channel();
        let mut steps = Vec::with_capacity(cores);
        let mut threads = Vec::with_capacity(cores);
        for (number, mailbox) in (0u16..).zip(mailboxes) {
            let (step, next_steps) = channel();
            let seat = Seat {
                core: Core(number),
                common: Arc::clone(&shared),
                mailbox,
                posts: posts.clone(),
                published: Arc::clone(&published[usize::from(number)]),
                reports: reports.clone(),
                steps: next_steps,
            };
            let thread = std::thread::Builder::new()
                .name(format!("pollux-{number}"))
                .spawn(move || seat.run())
                .map_err(|error| StartError::Resources { what: "a reactor's thread", error })?;
            steps.push(step);
            threads.push(thread);
        }
        drop(reports);
        // Any error drops `steps`, which is what tells the threads to give up.
        let mut warnings = Vec::new();
        let mut regions = Vec::with_capacity(cores);
        for _ in 0..cores {
            match inbox.recv() {
                Ok(Report::Pool(region, warning)) => {
                    regions.push(region);
                    add_warnings(&mut warnings, warning);
                }
                Ok(Report::Failed(error)) => return Err(give_up(error, steps, threads)),
                Ok(Report::Ring(_)) | Err(_) => unreachable!("a thread reports its pool, or that it failed"),
            }
        }
        regions.sort_by_key(|region| region.arena);
        let regions: Arc<[Region]> = regions.into();
        for step in &steps {
            // A thread that is gone has reported why.
            let _ = step.send(Step::MakeRing(Arc::clone(&regions)));
        }
        for _ in 0..cores {
            match inbox.recv() {
                Ok(Report::Ring(more)) => add_warnings(&mut warnings, more),
                Ok(Report::Failed(error)) => return Err(give_up(error, steps, threads)),
                Ok(Report::Pool(..)) | Err(_) => unreachable!("a thread reports its ring, or that it failed"),
            }
        }
        for warning in &warnings {
            warn!("{warning}");
        }
        for step in &steps {
            let _ = step.send(Step::Go);
        }
        info!(memory = %shared.config.memory::<S::Message>(), "reactors are up");
        Ok(Running { posts, published, stop: Arc::clone(&shared.stop), threads, warnings })
    }
}

/// Keeps each warning once, since every core has the same to say.
fn add_warnings(warnings: &mut Vec<Warning>, more: impl IntoIterator<Item = Warning>) {
    for warning in more {
        let text = warning.to_string();
        if warnings.iter().all(|known| known.to_string() != text) {
            warnings.push(warning);
        }
    }
}

/// Waits for the threads that were told to give up by dropping `steps`.
fn give_up(error: StartError, steps: Vec<Sender<Step>>, threads: Vec<JoinHandle<()>>) -> StartError {
    drop(steps);
    for thread in threads {
        let _ = thread.join();
    }
    error
}

/// What the threads share while they start.
struct Common<F> {
    config: MeshConfig,
    /// The rings have their files in common, and so the failures of these.
    failures: Arc<Failures>,
    stop: Arc<Stop>,
    make_service: F,
}

enum Report {
    Pool(Region, Option<Warning>),
    Ring(Vec<Warning>),
    Failed(StartError),
}

enum Step {
    MakeRing(Arc<[Region]>),
    Go,
}

/// One thread's part of the start.
struct Seat<M, F> {
    core: Core,
    common: Arc<Common<F>>,
    mailbox: Mailbox<M>,
    posts: Vec<Post<M>>,
    published: Arc<Published>,
    reports: Sender<Report>,
    steps: Receiver<Step>,
}

impl<M: Send + 'static, F> Seat<M, F> {
    fn run<S>(self)
    where
        S: Service<Message = M>,
        F: Fn(Core) -> S,
    {
        let _guard = TakeDownOnPanic { core: self.core };
        let (own, common) = match self.make() {
            Ok(Some(own)) => (own, self.common),
            // Another core failed.
            Ok(None) => return,
            Err(error) => {
                let _ = self.reports.send(Report::Failed(error));
                return;
            }
        };
        trace::start();
        let service = (common.make_service)(own.core);
        let stop = Arc::clone(&common.stop);
        let MeshConfig { poll, sleep_max, .. } = common.config;
        Reactor::new(service, own, self.mailbox, poll, sleep_max, stop, self.published).run();
    }

    /// What the reactor owns, made on its own thread; `None` when the start was given up.
    fn make(&self) -> Result<Option<Own<M>>, StartError> {
        let Seat { core, .. } = *self;
        let config = &self.common.config;
        pin::pin_thread(config.cpus[core.index()]).map_err(StartError::Pin)?;
        let warning = pin::prefer_own_node().err().map(|error| Warning::MemoryPolicy { error });
        let pool_config = PoolConfig::for_bytes(config.buffer_bytes, core.0);
        let pool = Pool::new(pool_config).map_err(|error| StartError::Buffers {
            core,
            bytes: pool_config.bytes(),
            error,
        })?;
        let _ = self.reports.send(Report::Pool(pool.region(), warning));
        let Ok(Step::MakeRing(regions)) = self.steps.recv() else {
            return Ok(None);
        };
        let files: Vec<_> = config.files.iter().map(AsFd::as_fd).collect();
        let failures = Arc::clone(&self.common.failures);
        let (ring, warnings) = Ring::sharing(failures, &config.ring, &regions, &files)
            .map_err(|error| StartError::Ring { core, error })?;
        let outbox = Outbox::new(core, self.posts.clone(), &config.credits);
        let _ = self.reports.send(Report::Ring(warnings));
        let Ok(Step::Go) = self.steps.recv() else {
            return Ok(None);
        };
        Ok(Some(Own {
            core,
            now: Time::now(),
            pool,
            timers: Timers::with_capacity(config.timers_max),
            ring,
            outbox,
            counters: Counters::default(),
        }))
    }
}

/// A reactor that panics takes the process with it: the others would wait for its answers for ever, and a target
/// that serves half of its blocks is worse than one that restarts.
struct TakeDownOnPanic {
    core: Core,
}

impl Drop for TakeDownOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("pollux: reactor {} panicked, so the process ends. Its last events:", self.core.0);
            for Event { at, code, a, b } in trace::last(32) {
                eprintln!("  {:>20} ns  {code:#x} {a:#x} {b:#x}", at.0);
            }
            std::process::abort();
        }
    }
}

/// Reactors that run. Dropping it leaves them running; [`Running::stop`] and [`Running::join`] end them.
#[derive(Debug)]
pub struct Running<M> {
    posts: Vec<Post<M>>,
    published: Vec<Arc<Published>>,
    stop: Arc<Stop>,
    threads: Vec<JoinHandle<()>>,
    warnings: Vec<Warning>,
}

impl<M> Running<M> {
    /// How many reactors there are.
    pub fn cores(&self) -> usize {
        self.posts.len()
    }

    /// A way into one of them.
    ///
    /// # Panics
    /// When there is no such core.
    pub fn remote(&self, core: Core) -> Remote<M> {
        Remote::new(core, self.posts[core.index()].clone())
    }

    /// What each has done so far; a millisecond old if it is busy, [`MeshConfig::sleep_max`] if it sleeps.
    pub fn counters(&self) -> Vec<Counters> {
        self.published.iter().map(|published| published.read()).collect()
    }

    /// The counters' source, for a thread that outlives this value.
    pub fn published(&self) -> Vec<Arc<Published>> {
        self.published.clone()
    }

    /// What works less well than it could.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Asks all services to wind down. They decide when they are done; see [`Service::stopped`].
    pub fn stop(&self) {
        self.stop.request();
        for post in &self.posts {
            post.shared.doorbell.ring_if_asleep();
        }
    }

    /// Waits until all reactors have ended. Without [`Running::stop`] that is never.
    pub fn join(self) {
        for thread in self.threads {
            // A reactor that panics doesn't get here: the process is gone.
            let _ = thread.join();
        }
    }
}
