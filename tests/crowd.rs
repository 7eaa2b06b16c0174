//! A crowd at the door, a disk that is stuck, and a file system that is full.
//!
//! Goal: a thousand initiators that reconnect, a thousand connections that say nothing, and a file system that takes no
//! writes harm nobody who uses something else: a ping is answered within 1 s, a login within 1 s, a task management
//! function within 5 s. Method: the real program; the stuck disk is a file on a frozen file system.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tests::initiator::{Initiator, cdb16};
use tests::process::{run, run_well, scratch_root, words};
use tests::target::{FILLER, Pollux, Setup, small_file_systems};

const PING_MAX: Duration = Duration::from_secs(1);
const LOGIN_MAX: Duration = Duration::from_secs(1);
const FUNCTION_MAX: Duration = Duration::from_secs(5);
const CROWD: u32 = 1000;
const LONG: Duration = Duration::from_secs(60);

fn address(pollux: &Pollux) -> SocketAddr {
    pollux.addresses()[0].parse().expect("the harness knows its own addresses")
}

/// A small ext4 on a loop device, which can be frozen: writes to it wait in the kernel until it thaws.
struct Frozen {
    directory: PathBuf,
}

impl Frozen {
    /// `None`: this machine has no loop devices, or we are not root.
    fn mount() -> Option<Frozen> {
        let root = scratch_root();
        let name = format!("frozen-{}", std::process::id());
        let (image, directory) = (root.join(format!("{name}.img")), root.join(name));
        std::fs::create_dir_all(&directory).ok()?;
        let limit = Duration::from_secs(60);
        run_well("truncate", &words(&format!("-s 256M {}", image.display())), limit);
        run_well("mkfs.ext4", &words(&format!("-q -F {}", image.display())), limit);
        let mount = format!("-o loop {} {}", image.display(), directory.display());
        let mounted = run("mount", &words(&mount), limit);
        // The loop device keeps the image.
        let _ = std::fs::remove_file(&image);
        mounted.end.is_success().then_some(Frozen { directory })
    }

    fn freeze(&self) {
        run_well("fsfreeze", &words(&format!("-f {}", self.directory.display())), LONG);
    }

    fn thaw(&self) {
        run("fsfreeze", &words(&format!("-u {}", self.directory.display())), LONG);
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.thaw();
        run("umount", &words(&format!("-l {}", self.directory.display())), LONG);
        let _ = std::fs::remove_dir(&self.directory);
    }
}

/// Initiators that log in, say something, and go without a word, until told to stop. Counts their logins.
fn crowd(
    address: SocketAddr,
    stop: &Arc<AtomicBool>,
    logins: &Arc<AtomicU64>,
) -> Vec<thread::JoinHandle<()>> {
    const THREADS: u32 = 8;
    (0..THREADS)
        .map(|part| {
            let (stop, logins) = (Arc::clone(stop), Arc::clone(logins));
            thread::spawn(move || {
                let each = CROWD / THREADS;
                let mut sessions: Vec<Option<Initiator>> = (0..each).map(|_| None).collect();
                while !stop.load(Ordering::Relaxed) {
                    for (place, session) in sessions.iter_mut().enumerate() {
                        let isid = part * each + place as u32;
                        let name = format!("iqn.2026-11.io.pollux:crowd-{isid}");
                        // The new one first: it reinstates the old one's session.
                        if let Ok(new) = Initiator::login(address, &name, isid, LONG) {
                            logins.fetch_add(1, Ordering::Relaxed);
                            *session = Some(new);
                        }
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                    }
                }
            })
        })
        .collect()
}

#[test]
#[ignore = "needs root, loop devices and an optimised pollux: run by tests/run"]
fn a_stuck_disk_and_a_crowd_harm_nobody() {
    let Some(frozen) = Frozen::mount() else {
        println!("SKIP: no loop device can be mounted here (root and a kernel with loop are needed)");
        return;
    };
    let unit = format!("file:{}:64M", frozen.directory.join("unit").display());
    let mut pollux = Pollux::start(Setup::with_luns(&["ram:64M", &unit]));
    let address = address(&pollux);
    let mut user = Initiator::login(address, "iqn.2026-11.io.pollux:user", 1, LONG).expect("login");
    user.test_ready(0, LONG).expect("unit 0");
    user.test_ready(1, LONG).expect("unit 1");
    let data = vec![0x5a; 4096];
    let itt = user.command(1, &cdb16(0x8a, 0, 8), &data, 0).expect("write");
    assert_eq!(user.answer(itt, LONG).expect("not frozen yet").bhs[3], 0);

    frozen.freeze();
    let stuck: Vec<u32> = (0..32)
        .map(|place| user.command(1, &cdb16(0x8a, 1024 + place * 8, 8), &data, 0).expect("write"))
        .collect();
    let (stop, logins) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let threads = crowd(address, &stop, &logins);

    let (mut pings, mut entries, mut functions) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let end = Instant::now() + Duration::from_secs(8);
    let mut probes = 0u32;
    while Instant::now() < end {
        let began = Instant::now();
        let itt = user.ping().expect("ping");
        user.answer(itt, LONG).expect("the ping's answer");
        pings = pings.max(began.elapsed());

        let began = Instant::now();
        let name = format!("iqn.2026-11.io.pollux:probe-{probes}");
        let mut probe = Initiator::login(address, &name, 1, LONG).expect("a login beside the crowd");
        entries = entries.max(began.elapsed());

        // A unit that works works, and one that is stuck can still be read where nothing waits.
        probe.test_ready(0, LONG).expect("unit 0");
        let itt = probe.command(0, &cdb16(0x88, 0, 8), &[], 4096).expect("read");
        assert_eq!(probe.answer(itt, LONG).expect("unit 0 answers").bhs[3], 0);

        let began = Instant::now();
        let itt = probe.task_management(1, 1, 0x7777).expect("abort of what is not there");
        assert_eq!(probe.answer(itt, LONG).expect("its answer").bhs[2], 0);
        let itt = probe.task_management(5, 0, u32::MAX).expect("reset of the unit that works");
        assert_eq!(probe.answer(itt, LONG).expect("its answer").bhs[2], 0);
        functions = functions.max(began.elapsed());
        probes += 1;
    }
    // What a device holds is not answered before the device has let go of it.
    let abort = user.task_management(1, 1, stuck[0]).expect("abort of a stuck write");
    assert!(user.answer(abort, Duration::from_secs(2)).is_err(), "the write is still in the kernel");
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().expect("a thread of the crowd");
    }
    frozen.thaw();
    assert_eq!(user.answer(abort, LONG).expect("the abort's answer").bhs[2], 0);
    for itt in &stuck[1..] {
        assert_eq!(user.answer(*itt, LONG).expect("a write that was not aborted").bhs[3], 0);
    }
    assert!(user.answer(stuck[0], Duration::from_millis(200)).is_err(), "an aborted write is never answered");
    println!(
        "{probes} probes beside {} logins of {CROWD} initiators: ping {pings:?}, login {entries:?}, functions {functions:?} at most",
        logins.load(Ordering::Relaxed)
    );
    assert!(probes > 5, "{probes} probes in 8 s");
    assert!(logins.load(Ordering::Relaxed) >= u64::from(CROWD), "the crowd is no crowd");
    assert!(pings < PING_MAX && entries < LOGIN_MAX && functions < FUNCTION_MAX);
    pollux.assert_running();
    drop(user);
    pollux.stop();
}

#[test]
#[ignore = "needs an optimised pollux: run by tests/run"]
fn silent_connections_keep_nobody_out() {
    let mut pollux = Pollux::start(Setup::with_luns(&["ram:64M"]));
    let address = address(&pollux);
    let silent: Vec<TcpStream> = (0..CROWD)
        .map(|_| TcpStream::connect_timeout(&address, LONG).expect("a port that listens"))
        .collect();
    let mut slowest = Duration::ZERO;
    for isid in 0..20 {
        let began = Instant::now();
        let mut user = Initiator::login(address, "iqn.2026-11.io.pollux:user", isid, LONG).expect("login");
        slowest = slowest.max(began.elapsed());
        user.test_ready(0, LONG).expect("the unit");
    }
    println!("login beside {CROWD} silent connections: {slowest:?} at most");
    assert!(slowest < LOGIN_MAX);
    drop(silent);
    pollux.stop();
}

/// Goal: a sparse pool on a file system that runs full tells hosts 07h/27h/07h for what takes space, serves the rest,
/// says how much there is, and goes on when there is space, also when that is what hosts have given back. Method: a file
/// system of 80 MiB in memory, filled by writes; then a file there goes; filled again, and a part unmapped.
#[test]
#[ignore = "needs an optimised pollux and namespaces: run by tests/run"]
fn a_full_file_system_is_told() {
    const BLOCKS: u32 = 128;
    if !small_file_systems() {
        println!("SKIP: no file system can be mounted in a namespace here");
        return;
    }
    let mut pollux = Pollux::start(Setup { data_mib: 80, ..Setup::with_luns(&["thin:256M"]) });
    let mut user = Initiator::login(address(&pollux), "iqn.2026-11.io.pollux:user", 1, LONG).expect("login");
    user.test_ready(0, LONG).expect("unit 0");
    let table = pollux.commands().run_well("pool list");
    assert!(table.contains("promised: data: "), "{table}");
    let write = |user: &mut Initiator, piece: u32, byte: u8| {
        let data = vec![byte; BLOCKS as usize * 512];
        let itt = user.command(0, &cdb16(0x8A, piece * BLOCKS, BLOCKS), &data, 0).expect("a command");
        user.answer(itt, LONG).expect("an answer")
    };
    let mut written = 0;
    let refused = loop {
        let answer = write(&mut user, written, written as u8 | 1);
        if answer.bhs[3] != 0 {
            break answer;
        }
        written += 1;
        assert!(written < 4096, "it has no end");
    };
    // Two bytes of length, then sense data of either format.
    let sense = &refused.data[2..];
    let told = if sense[0] & 0x7e == 0x72 {
        [sense[1] & 0xf, sense[2], sense[3]]
    } else {
        [sense[2] & 0xf, sense[12], sense[13]]
    };
    assert_eq!((refused.bhs[3], told), (2, [0x7, 0x27, 0x07]), "{refused:?}");
    assert!(written > 100, "{written} chunks of 80 MiB");
    // Where there is space already, writes go on.
    assert_eq!(write(&mut user, 0, 0xEE).bhs[3], 0);
    assert_eq!(write(&mut user, written - 1, 0xEE).bhs[3], 0);
    let full = pollux.commands().run_well("pool list --json");
    assert!(full.contains("\"free_bytes\": 0") || full.contains("\"file_system_free_bytes\": 0"), "{full}");
    std::fs::remove_file(pollux.data_dir().join(FILLER)).expect("it was made at the start");
    for piece in written..written + 64 {
        assert_eq!(write(&mut user, piece, 0xDD).bhs[3], 0, "piece {piece} after space was made");
    }
    let itt = user.command(0, &cdb16(0x88, written * BLOCKS, BLOCKS), &[], BLOCKS * 512).expect("a command");
    let read = user.answer(itt, LONG).expect("an answer");
    assert_eq!(read.data, vec![0xDD; BLOCKS as usize * 512]);
    // Full again; then hosts give something back, and that comes to the file system by itself.
    let mut next = written + 64;
    while write(&mut user, next, 0x11).bhs[3] == 0 {
        next += 1;
    }
    let mut unmap = cdb16(0x93, 0, 64 * BLOCKS);
    // UNMAP, and no data-out buffer.
    unmap[1] = 0x09;
    let itt = user.command(0, &unmap, &[], 0).expect("a command");
    assert_eq!(user.answer(itt, LONG).expect("an answer").bhs[3], 0);
    let since = Instant::now();
    for piece in next..next + 32 {
        while write(&mut user, piece, 0x22).bhs[3] != 0 {
            assert!(since.elapsed() < LONG, "{}", pollux.commands().run_well("pool list --json"));
            thread::sleep(Duration::from_millis(200));
        }
    }
    println!("what was unmapped could be written elsewhere after {:?}", since.elapsed());
    let counts = pollux.commands().run_well("pool list --json");
    assert!(!counts.contains("\"punched_bytes\": 0"), "{counts}");
    pollux.commands().run_well("volume list --usage");
    pollux.assert_running();
    pollux.stop();
}

/// A loop device over a small file.
struct Loop {
    device: PathBuf,
}

impl Loop {
    /// `None`: this machine has no loop devices, or we are not root.
    fn make() -> Option<Loop> {
        let image = scratch_root().join(format!("loop-{}.img", std::process::id()));
        run_well("truncate", &words(&format!("-s 64M {}", image.display())), LONG);
        let made = run("losetup", &words(&format!("-f --show {}", image.display())), LONG);
        // The loop device keeps the image.
        let _ = std::fs::remove_file(&image);
        let device = PathBuf::from(made.text.trim());
        (made.end.is_success() && device.starts_with("/dev")).then_some(Loop { device })
    }

    /// A word of what sysfs says of it.
    fn says(&self, what: &str, word: usize) -> String {
        let name = self.device.file_name().expect("a device has a name").to_string_lossy();
        let said = std::fs::read_to_string(format!("/sys/block/{name}/{what}")).unwrap_or_default();
        said.split_whitespace().nth(word).unwrap_or_default().to_owned()
    }

    /// Flushes that have reached it.
    fn flushes(&self) -> u64 {
        const FLUSHES: usize = 15;
        self.says("stat", FLUSHES).parse().expect("a kernel since 5.5 counts them")
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", &words(&format!("-d {}", self.device.display())), LONG);
    }
}

/// Goal: what is answered on a block device has gone through its cache. Method: a loop device, which has one, counts flushes.
/// Its node lies in a file system in memory, for which it was taken once.
#[test]
#[ignore = "needs root, loop devices and an optimised pollux: run by tests/run"]
fn writes_to_a_block_device_are_flushed() {
    let Some(device) = Loop::make() else {
        println!("SKIP: no loop device can be made here (root and a kernel with loop are needed)");
        return;
    };
    if device.says("queue/write_cache", 1) != "back" || device.says("queue/fua", 0) != "0" {
        println!("SKIP: this kernel's loop devices have no volatile cache, or write past it");
        return;
    }
    let mut pollux = Pollux::start(Setup::with_luns(&[&format!("file:{}", device.device.display())]));
    let mut user = Initiator::login(address(&pollux), "iqn.2026-11.io.pollux:user", 1, LONG).expect("login");
    user.test_ready(0, LONG).expect("unit 0");
    let data = vec![0x5a; 4096];
    for place in 0..8 {
        let before = device.flushes();
        let itt = user.command(0, &cdb16(0x8a, 1024 + place * 8, 8), &data, 0).expect("write");
        assert_eq!(user.answer(itt, LONG).expect("a device takes it").bhs[3], 0);
        assert!(device.flushes() > before, "write {place} was answered with nothing flushed");
    }
    pollux.stop();
}
