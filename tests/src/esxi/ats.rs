//! ATS: heartbeats of eight hosts in the blocks of one physical block, a lock that all want, and both beside bulk work.

use super::answer::Answer;
use super::command::{BLOCK_BYTES, Command, MIB, Segment};
use super::image::stamped;
use super::sense::{Code, GOOD};
use super::session::Session;
use super::{Rig, THIN, THIN_TOO, step_name};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Hosts of the datastore.
pub const HOSTS: u16 = 8;
/// ESXi aborts a heartbeat after 8 s, and a host that is slow for a while needs some of that itself.
const HEARTBEAT_MAX: Duration = Duration::from_secs(2);
/// The eight heartbeats: one physical block.
const HEARTBEATS: u64 = 16 * MIB;
/// The lock: in a physical block with nothing else.
const LOCK: u64 = 17 * MIB;
/// What bulk work reads, zeroes, and frees.
const BULK_SOURCE: u64 = 840 * MIB;
const BULK: u64 = 900 * MIB;
const BULK_MIB: u64 = 64;

/// A heartbeat's block: which host's it is, and its count.
fn heartbeat(host: u16, count: u64) -> Vec<u8> {
    let mut block = stamped(u64::from(host) << 32 | count, HEARTBEATS + u64::from(host), 1);
    // The count is at its end alone, so that a comparison has to go there.
    block[..504].copy_from_slice(&stamped(u64::from(host) << 32 | 1, HEARTBEATS + u64::from(host), 1)[..504]);
    block[504..].copy_from_slice(&count.to_be_bytes());
    block
}

/// The first byte in which two blocks differ.
fn first_difference(one: &[u8], other: &[u8]) -> Option<u64> {
    one.iter().zip(other).position(|(one, other)| one != other).map(|at| at as u64)
}

/// A miscompare that says where, and nothing else.
#[track_caller]
fn check_miscompare(answer: &Answer, held: &[u8]) {
    let compared = &answer.command.data_out[..BLOCK_BYTES as usize];
    answer.check(answer.code() == Some(Code::MISCOMPARE), "the block is another: a miscompare");
    let said = answer.sense.and_then(|sense| sense.information);
    let want = first_difference(compared, held);
    answer.check(said == want, &format!("INFORMATION {said:?}, and {want:?} is the first byte that differs"));
}

/// What the lock's and heartbeats' answers took.
#[derive(Clone, Debug, Default)]
struct Times(Vec<Duration>);

impl Times {
    fn told(&mut self) -> String {
        self.0.sort_unstable();
        let at = |part: usize| self.0.get((self.0.len() * part / 1000).min(self.0.len() - 1));
        match (at(500), at(990), self.0.last()) {
            (Some(median), Some(most), Some(max)) => {
                format!("{} in all, median {median:.1?}, 99 % {most:.1?}, longest {max:.1?}", self.0.len())
            }
            _ => "none".to_owned(),
        }
    }
}

/// One host's heartbeats until told to stop; every seventh is compared with an image that is not there. Returns its last
/// count.
fn beat(session: &mut Session, host: u16, stop: impl Fn(u64) -> bool, times: &mut Times) -> u64 {
    let lba = HEARTBEATS + u64::from(host);
    let before = session.run(Command::read(THIN, lba, 1)).good().data;
    session.run(Command::compare_and_write(THIN, lba, &before, &heartbeat(host, 0))).good();
    let mut count = 0;
    while !stop(count) {
        let (held, next) = (heartbeat(host, count), heartbeat(host, count + 1));
        if count % 7 == 3 {
            let mut wrong = held.clone();
            wrong[(count * 31 % 512) as usize] ^= 0x10;
            let answer = session.run(Command::compare_and_write(THIN, lba, &wrong, &[0xEE; 512]));
            check_miscompare(&answer, &held);
            times.0.push(answer.took);
            let read = session.run(Command::read(THIN, lba, 1)).good();
            read.check(read.data == held, "a miscompare writes nothing");
        }
        let answer = session.run(Command::compare_and_write(THIN, lba, &held, &next)).good();
        times.0.push(answer.took);
        count += 1;
    }
    count
}

/// All hosts at once.
fn beat_all(hosts: &mut [Session], stop: impl Fn(u64) -> bool + Sync) -> Times {
    let (counts, times): (Vec<u64>, Vec<Times>) = thread::scope(|scope| {
        let threads: Vec<_> = (0u16..)
            .zip(hosts.iter_mut())
            .map(|(host, session)| {
                let stop = &stop;
                scope.spawn(move || {
                    let mut times = Times::default();
                    (beat(session, host, stop, &mut times), times)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a host's heartbeats")).unzip()
    });
    let read = hosts[0].run(Command::read(THIN, HEARTBEATS, u32::from(HOSTS))).good();
    for ((host, count), block) in (0u16..).zip(&counts).zip(read.data.chunks_exact(BLOCK_BYTES as usize)) {
        read.check(
            block == heartbeat(host, *count),
            "each host's last heartbeat, beside those of the others",
        );
    }
    Times(times.into_iter().flat_map(|times| times.0).collect())
}

fn check_longest(times: &Times) {
    let longest = times.0.iter().max().copied().unwrap_or_default();
    assert!(longest < HEARTBEAT_MAX, "step `{}`: a heartbeat took {longest:?}", step_name());
}

/// Eight hosts in eight adjacent blocks of one physical one, as fast as they can.
pub fn heartbeats(hosts: &mut [Session]) -> String {
    let mut times = beat_all(hosts, |count| count >= 200);
    check_longest(&times);
    times.told()
}

/// All want one lock at once: exactly one gets it, the others hear where its image differs.
pub fn one_lock(hosts: &mut [Session]) -> String {
    const ROUNDS: u64 = 100;
    let image = |round: u64, host: u16| {
        let mut block = vec![0; BLOCK_BYTES as usize];
        if round > 0 {
            // Hosts' images differ from each other at different places.
            block[64..72].copy_from_slice(&round.to_be_bytes());
            block[200 + usize::from(host)] = host as u8 + 1;
        }
        block
    };
    let mut held = hosts[0].run(Command::read(THIN, LOCK, 1)).good().data;
    let barrier = Barrier::new(hosts.len());
    let mut wins = vec![0; hosts.len()];
    for round in 1..=ROUNDS {
        let answers: Vec<Answer> = thread::scope(|scope| {
            let threads: Vec<_> = (0u16..)
                .zip(hosts.iter_mut())
                .map(|(host, session)| {
                    let command = Command::compare_and_write(THIN, LOCK, &held, &image(round, host));
                    let barrier = &barrier;
                    scope.spawn(move || {
                        barrier.wait();
                        session.run(command)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("a host's try")).collect()
        });
        let winners: Vec<u16> = (0u16..)
            .zip(&answers)
            .filter(|(_, answer)| answer.status == GOOD)
            .map(|(host, _)| host)
            .collect();
        let &[winner] = &winners[..] else {
            answers[0].fail(format!("round {round}: hosts {winners:?} have the lock at once"));
        };
        held = image(round, winner);
        wins[usize::from(winner)] += 1;
        for answer in answers.iter().filter(|answer| answer.status != GOOD) {
            check_miscompare(answer, &held);
        }
        let read = hosts[0].run(Command::read(THIN, LOCK, 1)).good();
        read.check(read.data == held, "the winner's image is there");
    }
    format!("{ROUNDS} rounds, won {wins:?}")
}

/// Copies of 4 MiB, WRITE SAME and UNMAP of 1 MiB and more, twelve at once, until told to stop. Says how many.
fn bulk(session: &mut Session, rig: &Rig, stop: &AtomicBool) -> u64 {
    const COPY_MIB: u64 = 4;
    let command = |number: u64| {
        let at = |mib: u64| BULK + number * mib % BULK_MIB * MIB;
        let lun = if number.is_multiple_of(2) { THIN } else { THIN_TOO };
        match number % 6 {
            0..4 => {
                let segment = Segment {
                    from: BULK_SOURCE + number % 4 * COPY_MIB * MIB,
                    to: at(COPY_MIB),
                    blocks: (COPY_MIB * MIB) as u16,
                };
                Command::extended_copy(lun, rig.naa(THIN), rig.naa(lun), &[segment])
            }
            4 => Command::write_same(lun, at(2), (2 * MIB) as u32),
            _ => Command::unmap(lun, &(0..16).map(|n| (BULK + n * 4 * MIB, MIB as u32)).collect::<Vec<_>>()),
        }
    };
    let mut done = 0;
    let commands = (0..).map(command).take_while(|_| !stop.load(Ordering::Relaxed));
    session.run_all(12, commands, |answer| {
        answer.good();
        done += 1;
    });
    done
}

/// The same heartbeats while another host clones, zeroes and frees.
pub fn beside_bulk(hosts: &mut [Session], other: &mut Session, rig: &Rig) -> String {
    let source = stamped(0xB17, BULK_SOURCE, MIB);
    for mib in 0..16 {
        other.run(Command::write(THIN, BULK_SOURCE + mib * MIB, source.clone())).good();
    }
    let stop = AtomicBool::new(false);
    let end = Instant::now() + Duration::from_secs(4);
    let (mut times, done) = thread::scope(|scope| {
        let bulk = scope.spawn(|| bulk(other, rig, &stop));
        let times = beat_all(hosts, |_| Instant::now() >= end);
        stop.store(true, Ordering::Relaxed);
        (times, bulk.join().expect("the bulk work"))
    });
    check_longest(&times);
    format!("{}; beside {done} copies, WRITE SAMEs and UNMAPs", times.told())
}
