//! Paths that are lost and come back, and a target that is started again.

use super::command::{Command, MIB};
use super::image::stamped;
use super::sense::Code;
use super::session::{Port, Session};
use super::{LUNS, RAM, Rig, THIN, THIN_TOO, hear_once, step_name};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A host with two paths.
const HOST: u16 = 20;
/// Where it writes: 4 KiB at each place.
const DISK: u64 = 600 * MIB;
const PLACE_BLOCKS: u64 = 8;
/// RecoveryTimeout, and time for a start.
const RECOVERY_MAX: Duration = Duration::from_secs(30);
/// A path that is cut stops only itself.
const OTHER_PATH_MAX: Duration = Duration::from_secs(2);
/// An old session that is replaced has gone.
const GONE_MAX: Duration = Duration::from_secs(5);

fn write(lun: u8, place: u64, stamp: u64) -> Command {
    let lba = DISK + place * PLACE_BLOCKS;
    Command::write(lun, lba, stamped(stamp, lba, PLACE_BLOCKS))
}

/// Each place holds one of its stamps.
#[track_caller]
fn check_places(session: &mut Session, lun: u8, stamps: &BTreeMap<u64, Vec<u64>>) {
    let reads =
        stamps.keys().map(|place| Command::read(lun, DISK + place * PLACE_BLOCKS, PLACE_BLOCKS as u32));
    session.run_all(16, reads, |answer| {
        let answer = answer.good();
        let lba = u64::from(u32::from_be_bytes(answer.command.cdb[2..6].try_into().expect("four bytes")));
        let allowed = &stamps[&((lba - DISK) / PLACE_BLOCKS)];
        let is_right = allowed.iter().any(|&stamp| answer.data == stamped(stamp, lba, PLACE_BLOCKS));
        answer.check(is_right, &format!("an answered write is lost: one of {allowed:x?} was written last"));
    });
}

/// A connection is cut under outstanding writes: what was not answered goes by the other path, and nothing is lost. The
/// path comes back with the same ISID.
pub fn path_loss(rig: &Rig) -> String {
    const WRITES: u64 = 64;
    let (mut first, mut second) = (rig.host(HOST, 0), rig.host(HOST, 1));
    let mut under = BTreeMap::new();
    for place in 0..WRITES {
        let tag = first.send(write(THIN_TOO, place, 0x7000 + place)).expect("a write");
        under.insert(tag, place);
    }
    for _ in 0..WRITES / 4 {
        let answer = first.next_answer().expect("an answer").good();
        under.remove(&answer.tag);
    }
    for place in 2 * WRITES..2 * WRITES + 16 {
        second.send(write(THIN_TOO, place, 0x7000 + place)).expect("a write on the other path");
    }
    first.cut();
    let cut = Instant::now();
    let unanswered: BTreeSet<u64> = under.values().copied().collect();
    // The host moves them to the other path, and writes what comes next there, too.
    let moved = unanswered.iter().copied().chain(WRITES..2 * WRITES);
    let writes = moved.map(|place| write(THIN_TOO, place, 0x7000 + place));
    let mut longest = Duration::ZERO;
    second.run_all(32, writes, |answer| longest = longest.max(answer.good().took));
    assert!(longest < OTHER_PATH_MAX, "step `{}`: a write on the other path took {longest:?}", step_name());

    let port = Port::of_host(HOST, 0);
    let mut first = Session::login(rig.portal(0), &port).expect("the path comes back");
    let codes: Vec<Code> =
        LUNS.iter().map(|&lun| hear_once(&mut first, lun, &[Code::NEXUS_LOSS, Code::POWER_ON])).collect();
    let places = (0..2 * WRITES + 16).map(|place| (place, vec![0x7000 + place])).collect();
    check_places(&mut first, THIN_TOO, &places);
    check_places(&mut second, THIN_TOO, &places);
    format!(
        "{} writes moved, {longest:?} at most, back after {:?} with {}",
        unanswered.len(),
        cut.elapsed(),
        codes[0]
    )
}

/// The host logs in anew while the target still has the old session, with writes under way: the old session ends first,
/// and nothing of it is done afterwards.
pub fn reinstatement(rig: &Rig) -> String {
    const WRITES: u64 = 96;
    let mut told = BTreeSet::new();
    // What each place may hold.
    let mut stamps: BTreeMap<u64, Vec<u64>> = (0..WRITES).map(|place| (place, vec![0])).collect();
    let mut count = 0;
    for round in 0..4 {
        let port = Port::of_host(HOST + 1, 0);
        let mut old = rig.host(HOST + 1, 0);
        for place in 0..WRITES {
            old.send(write(THIN, place, 0x8000 + round)).expect("a write");
        }
        let mut new = Session::login(rig.portal(0), &port).expect("a login with the same ISID");
        for lun in LUNS {
            told.insert(hear_once(&mut new, lun, &[Code::NEXUS_LOSS, Code::POWER_ON]).to_string());
        }
        let writes = (0..WRITES).step_by(2).map(|place| write(THIN, place, 0x9000 + round));
        new.run_all(16, writes, |answer| {
            answer.good();
        });
        // The old connection is closed, behind what was answered on it before.
        for stamps in stamps.values_mut() {
            stamps.push(0x8000 + round);
        }
        let since = Instant::now();
        while let Ok(answer) = old.next_answer() {
            let lba = u64::from(u32::from_be_bytes(answer.command.cdb[2..6].try_into().expect("four bytes")));
            stamps.insert((lba - DISK) / PLACE_BLOCKS, vec![0x8000 + round]);
            answer.good();
            count += 1;
        }
        assert!(since.elapsed() < GONE_MAX, "the old connection is there after {:?}", since.elapsed());
        stamps.extend((0..WRITES).step_by(2).map(|place| (place, vec![0x9000 + round])));
        check_places(&mut new, THIN, &stamps);
        thread::sleep(Duration::from_millis(100));
        check_places(&mut new, THIN, &stamps);
        new.logout().expect("a logout");
    }
    let told: Vec<String> = told.into_iter().collect();
    format!("{count} of {} old writes answered; each unit told once: {}", 4 * WRITES, told.join(", "))
}

/// Logs in until it works, as ESXi does when a path is dead. What the target has must be there with its first answer.
fn come_back(address: SocketAddr, port: &Port) -> io::Result<Session> {
    let began = Instant::now();
    loop {
        match Session::login(address, port) {
            Ok(session) => return Ok(session),
            Err(error) if began.elapsed() > RECOVERY_MAX => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// What a host does while the target is started again.
struct Host {
    address: SocketAddr,
    port: Port,
    lun: u8,
    /// Its places: so many from here on.
    first: u64,
    stamp: u64,
}

impl Host {
    /// Writes its places over and over. Says what each place may hold, after how many returns.
    fn write_on(
        &self,
        mut session: Session,
        stop: &AtomicBool,
        done: &AtomicU64,
    ) -> (BTreeMap<u64, Vec<u64>>, u32) {
        const PLACES: u64 = 64;
        let mut stamps: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        let mut returns = 0;
        let mut round = 0;
        while !stop.load(Ordering::Relaxed) || round == 0 {
            let mut left: BTreeSet<u64> = (self.first..self.first + PLACES).collect();
            let stamp = self.stamp + round;
            // Until all of the round is answered; what the target took with it is sent again.
            while !left.is_empty() {
                let is_lost = self.try_write(&mut session, &mut left, stamp).is_err();
                if is_lost || session.is_asked_to_leave() {
                    if !is_lost {
                        // The target may not wait for it.
                        let _ = session.logout();
                    }
                    session = self.return_to_target();
                    returns += 1;
                }
            }
            (self.first..self.first + PLACES).for_each(|place| drop(stamps.insert(place, vec![stamp])));
            done.fetch_add(PLACES, Ordering::Relaxed);
            round += 1;
        }
        (stamps, returns)
    }

    fn try_write(&self, session: &mut Session, left: &mut BTreeSet<u64>, stamp: u64) -> io::Result<()> {
        let mut waiting = left.clone().into_iter();
        loop {
            while session.depth() < 8 && !session.is_asked_to_leave() {
                let Some(place) = waiting.next() else { break };
                session.send(write(self.lun, place, stamp))?;
            }
            if session.depth() == 0 {
                return Ok(());
            }
            let answer = session.next_answer()?.good();
            let lba = u64::from(u32::from_be_bytes(answer.command.cdb[2..6].try_into().expect("four bytes")));
            left.remove(&((lba - DISK) / PLACE_BLOCKS));
        }
    }

    /// A portal that is open has all units behind it: one answer of LOGICAL UNIT NOT SUPPORTED, and ESXi takes the device
    /// for lost.
    fn return_to_target(&self) -> Session {
        let began = Instant::now();
        loop {
            let mut session = come_back(self.address, &self.port).expect("the target comes back");
            // The last moments of the old program: its connections end without an answer.
            let Ok(first) = session.try_run(Command::test_unit_ready(self.lun)) else {
                assert!(began.elapsed() < RECOVERY_MAX, "no session lasts");
                continue;
            };
            first.check(
                first.code() == Some(Code::POWER_ON) || first.code() == Some(Code::NEXUS_LOSS),
                "it says why",
            );
            let luns = session.run(Command::report_luns(0, 4096)).good();
            luns.check(
                luns.number(0, 4) == 8 * LUNS.len() as u64,
                "all units are there with the first answer",
            );
            session.run(Command::test_unit_ready(self.lun)).good();
            for lun in LUNS.into_iter().filter(|&lun| lun != self.lun) {
                hear_once(&mut session, lun, &[Code::POWER_ON, Code::NEXUS_LOSS]);
            }
            return session;
        }
    }
}

/// SIGTERM and a new start under writes of two hosts over both portals: they come back by themselves, all units are there,
/// and so is all that was answered.
pub fn restart(rig: &mut Rig) -> String {
    let hosts = [(THIN, 1024, 0), (THIN_TOO, 2048, 1)].map(|(lun, first, portal)| Host {
        address: rig.portal(portal),
        port: Port::of_host(HOST + 2 + portal as u16, portal as u16),
        lun,
        first,
        stamp: 0xA_0000 + 0x1_0000 * portal as u64,
    });
    let sessions = [rig.host(HOST + 2, 0), rig.host(HOST + 3, 1)];
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let before = Instant::now();
    let (outcome, away) = thread::scope(|scope| {
        let threads: Vec<_> = hosts
            .iter()
            .zip(sessions)
            .map(|(host, session)| {
                let (stop, done) = (&stop, &done);
                scope.spawn(move || host.write_on(session, stop, done))
            })
            .collect();
        thread::sleep(Duration::from_millis(400));
        let begin = Instant::now();
        rig.pollux.stop();
        rig.pollux.start_again();
        let away = begin.elapsed();
        thread::sleep(Duration::from_millis(800));
        stop.store(true, Ordering::Relaxed);
        let outcome: Vec<_> =
            threads.into_iter().map(|thread| thread.join().expect("a host finds its way back")).collect();
        (outcome, away)
    });
    for (host, (stamps, returns)) in hosts.iter().zip(&outcome) {
        assert!(*returns >= 1, "step `{}`: LUN {}'s host has not noticed", step_name(), host.lun);
        let mut session = rig.host(HOST + 5, 0);
        check_places(&mut session, host.lun, stamps);
        session.logout().expect("a logout");
    }
    format!("away for {away:?}, {} writes answered in {:?}", done.load(Ordering::Relaxed), before.elapsed())
}

/// Units are the same devices as before, and what was in memory alone is gone.
pub fn same_devices(rig: &Rig) {
    let mut session = Session::login(rig.portal(1), &Port::of_host(1, 1)).expect("a login");
    let units = super::claim::claim_units(&mut session);
    assert_eq!(units, rig.units, "units have kept their names, through another portal, too");
    let read = session.run(Command::read(RAM, 8 * MIB, 8)).good();
    read.check(read.data.iter().all(|&byte| byte == 0), "memory is empty");
}
