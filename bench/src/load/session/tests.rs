//! A session against a peer that the test plays, PDU by PDU.

use super::*;
use crate::load::ledger::Lateness;
use crate::load::pace::{Deal, Rate};
use crate::load::pattern::{Pattern, Picker};
use crate::load::wire::{BHS_BYTES, put_u32};
use std::io::Write;
use std::net::TcpListener;

const TERMS: Terms = Terms {
    header_digest: false,
    data_digest: false,
    immediate_data: true,
    initial_r2t: true,
    first_burst: 1024,
    max_burst: 4096,
    max_receive: 65_536,
    max_send: 2048,
};

fn pair(terms: Terms, pattern: Pattern) -> (Session, TcpStream, Ledger) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let task = Task {
        lun: 0,
        block_bytes: 4096,
        logical_block_bytes: 512,
        depth: 4,
        keeps_data: false,
        writes: true,
    };
    let serials = Serials { cmd_sn: 1, max_cmd_sn: 2, exp_stat_sn: 10 };
    let mut ledger = Ledger::new(Picker::new(pattern, 50, 0, 64, 1, 1), None, 0, 64);
    ledger.measure(Time::ZERO, Time::NEVER);
    (Session::new(0, ours, terms, serials, task), peer, ledger)
}

fn header(peer: &mut TcpStream) -> Bhs {
    let mut bhs = [0; BHS_BYTES];
    peer.read_exact(&mut bhs).unwrap();
    bhs
}

fn answer(opcode: u8, flags: u8, tag: u32, stat_sn: u32, max_cmd_sn: u32) -> Bhs {
    let mut bhs = [0; BHS_BYTES];
    bhs[0] = opcode;
    bhs[1] = flags;
    put_u32(&mut bhs, 16, tag);
    put_u32(&mut bhs, 24, stat_sn);
    put_u32(&mut bhs, 32, max_cmd_sn);
    bhs
}

/// Goal: the window is kept although the queue is deeper. Method: a window of two, then one more.
#[test]
fn commands_stay_inside_the_window() {
    let (mut session, mut peer, mut ledger) = pair(TERMS, Pattern::Randread);
    session.fill(Time(1), true, &mut ledger);
    session.send().unwrap();
    assert_eq!(session.under_way(), 2);
    let first = header(&mut peer);
    assert_eq!(wire::get_u32(&first, 24), 1);
    let mut data_in =
        answer(opcode::DATA_IN, wire::FINAL | wire::STATUS_PRESENT, initiator_task_tag(&first), 10, 3);
    put_data_bytes(&mut data_in, 4096);
    let bytes = [&data_in[..], &[0; 4096]].concat();
    session.handle_bytes(Time(2), &bytes, &mut ledger).unwrap();
    session.fill(Time(3), true, &mut ledger);
    assert_eq!(session.under_way(), 2);
    assert_eq!(ledger.tally.reads.latencies.len(), 1);
}

/// Goal: in an open loop what finds the window closed waits, keeps its intended start, and its latency counts from
/// there, so that a stall shows in every command that it holds up; the time-out doesn't count the wait. Method: one
/// command a millisecond, a window of two, a target that stalls for 8 ms.
#[test]
fn a_stall_shows_in_every_command_it_holds_up() {
    let at = |tenths_of_ms: u64| Time(tenths_of_ms * 100_000);
    let (mut session, mut peer, mut ledger) = pair(TERMS, Pattern::Randread);
    ledger.measure_by_start(Time::ZERO, Time::NEVER);
    let deal = Deal { rate: Rate::new(1000).unwrap(), thread: 0, threads: 1, sessions: 1 };
    session.set_pace(deal.pace(0, at(0), at(100)));
    // At 0 the first is due; at 0.5 ms none; at 3.2 ms three, of which the window takes one.
    for (now, under_way) in [(0, 1), (5, 1), (32, 2)] {
        session.fill(at(now), true, &mut ledger);
        assert_eq!(session.under_way(), under_way, "{now}");
    }
    session.send().unwrap();
    let first = initiator_task_tag(&header(&mut peer));
    header(&mut peer);
    let mut finish = |session: &mut Session, now, tag, stat_sn| {
        let mut data_in = answer(opcode::DATA_IN, wire::FINAL | wire::STATUS_PRESENT, tag, stat_sn, 4);
        put_data_bytes(&mut data_in, 4096);
        let bytes = [&data_in[..], &[0; 4096]].concat();
        session.handle_bytes(now, &bytes, &mut ledger).unwrap();
        session.fill(now, true, &mut ledger);
    };
    finish(&mut session, at(80), first, 10);
    assert_eq!(session.under_way(), 3, "the window has room for those of 2 and 3 ms");
    assert_eq!(session.oldest(), Some(at(32)), "when it was built, not when it was due");
    session.send().unwrap();
    let third = initiator_task_tag(&header(&mut peer));
    finish(&mut session, at(90), third, 11);
    let tally = ledger.into_tally();
    let latencies = &tally.reads.latencies;
    let near = |found: u64, ns: u64| assert!(found.abs_diff(ns) <= ns / 1000, "{found}, not {ns}");
    assert_eq!(latencies.len(), 2);
    near(latencies.min(), 7_000_000);
    near(latencies.max(), 8_000_000);
    assert_eq!(tally.lateness, Lateness { late: 3, unsent: 0, longest: Duration::from_millis(6) });
    assert_eq!(session.pace().map(Pace::next_at), Some(at(40)));
}

/// Goal: a large write sends its first burst with the command, and the rest against R2T in PDUs that the target
/// takes, each byte once. Method: play the target for one write.
#[test]
fn a_write_follows_its_r2ts() {
    let (mut session, mut peer, mut ledger) = pair(TERMS, Pattern::Randwrite);
    session.fill(Time(1), true, &mut ledger);
    session.send().unwrap();
    let command = header(&mut peer);
    let tag = initiator_task_tag(&command);
    assert_eq!((command[1] & wire::FINAL, data_bytes(&command)), (wire::FINAL, 1024));
    let mut got = vec![0; 4096];
    peer.read_exact(&mut got[..1024]).unwrap();
    let mut r2t = answer(opcode::R2T, wire::FINAL, tag, 10, 2);
    put_u32(&mut r2t, 20, 77);
    put_u32(&mut r2t, 40, 1024);
    put_u32(&mut r2t, 44, 3072);
    session.handle_bytes(Time(2), &r2t, &mut ledger).unwrap();
    session.fill(Time(2), true, &mut ledger);
    session.send().unwrap();
    // The window's other command had gone out before.
    let other = header(&mut peer);
    peer.read_exact(&mut vec![0; data_bytes(&other) as usize]).unwrap();
    for (sn, at, bytes, last) in [(0, 1024, 2048, 0), (1, 3072, 1024, wire::FINAL)] {
        let out = header(&mut peer);
        assert_eq!((opcode_of(&out), out[1]), (opcode::DATA_OUT, last));
        assert_eq!((wire::data_sn(&out), wire::target_transfer_tag(&out)), (sn, 77));
        assert_eq!((wire::buffer_offset(&out), data_bytes(&out)), (at, bytes));
        peer.read_exact(&mut got[at as usize..(at + bytes) as usize]).unwrap();
    }
    let slot = tag as usize & (DEPTH_MAX - 1);
    assert_eq!(got, session.payload[slot * 4096..(slot + 1) * 4096]);
    let response = answer(opcode::SCSI_RESPONSE, wire::FINAL, tag, 10, 3);
    session.handle_bytes(Time(9), &response, &mut ledger).unwrap();
    assert_eq!(ledger.tally.writes.latencies.len(), 1);
    peer.flush().unwrap();
}

/// Goal: a burst of odd length is padded, and digests cover header and padding. Method: an R2T for five bytes.
#[test]
fn odd_bursts_are_padded_under_the_digest() {
    let terms = Terms { header_digest: true, data_digest: true, immediate_data: false, ..TERMS };
    let (mut session, mut peer, mut ledger) = pair(terms, Pattern::Randwrite);
    session.serials.max_cmd_sn = 1;
    session.fill(Time(1), true, &mut ledger);
    session.send().unwrap();
    let command = header(&mut peer);
    let mut digest = [0; 4];
    peer.read_exact(&mut digest).unwrap();
    assert_eq!(digest, crc32c(&command));
    let mut r2t = answer(opcode::R2T, wire::FINAL, initiator_task_tag(&command), 10, 1);
    put_u32(&mut r2t, 40, 7);
    put_u32(&mut r2t, 44, 5);
    let bytes = [&r2t[..], &crc32c(&r2t)].concat();
    session.handle_bytes(Time(2), &bytes, &mut ledger).unwrap();
    session.fill(Time(2), true, &mut ledger);
    session.send().unwrap();
    let out = header(&mut peer);
    assert_eq!((data_bytes(&out), wire::buffer_offset(&out), out[1]), (5, 7, wire::FINAL));
    let mut rest = [0; 4 + 8 + 4];
    peer.read_exact(&mut rest).unwrap();
    let slot = initiator_task_tag(&command) as usize & (DEPTH_MAX - 1);
    assert_eq!(rest[4..9], session.payload[slot * 4096 + 7..slot * 4096 + 12]);
    assert_eq!(rest[9..12], [0; 3]);
    assert_eq!(rest[12..], crc32c(&rest[4..12]));
}

/// Goal: bad status, residuals and short data are errors and no IO. Method: one answer of each kind.
#[test]
fn what_is_not_good_is_an_error() {
    let (mut session, mut peer, mut ledger) = pair(TERMS, Pattern::Randread);
    session.serials.max_cmd_sn = 4;
    session.fill(Time(1), true, &mut ledger);
    session.send().unwrap();
    let tags: Vec<u32> = (0..4).map(|_| initiator_task_tag(&header(&mut peer))).collect();
    let mut check = answer(opcode::SCSI_RESPONSE, wire::FINAL, tags[0], 10, 4);
    check[3] = 2;
    put_data_bytes(&mut check, 20);
    let mut sense = [0; 20];
    sense[..5].copy_from_slice(&[0, 18, 0x70, 0, 5]);
    sense[14] = 0x24;
    session.handle_bytes(Time(2), &[&check[..], &sense].concat(), &mut ledger).unwrap();
    let short = answer(opcode::SCSI_RESPONSE, wire::FINAL, tags[1], 11, 4);
    session.handle_bytes(Time(2), &short, &mut ledger).unwrap();
    let mut residual = answer(opcode::SCSI_RESPONSE, wire::FINAL | 2, tags[2], 12, 4);
    put_u32(&mut residual, 44, 4096);
    session.handle_bytes(Time(2), &residual, &mut ledger).unwrap();
    assert_eq!(ledger.tally.errors, 3);
    assert!(ledger.tally.first_errors[0].ends_with("status 02h, sense 5h/24h/00h"));
    assert_eq!(ledger.tally.reads.latencies.len(), 0);
    let gap = answer(opcode::SCSI_RESPONSE, wire::FINAL, tags[3], 14, 4);
    assert!(session.handle_bytes(Time(2), &gap, &mut ledger).is_err(), "StatSN 13 is missing");
}

/// Goal: unsolicited data beyond the command follows it at once, without R2T. Method: no immediate data.
#[test]
fn unsolicited_data_follows_its_command() {
    let terms = Terms { immediate_data: false, initial_r2t: false, ..TERMS };
    let (mut session, mut peer, mut ledger) = pair(terms, Pattern::Randwrite);
    session.fill(Time(1), true, &mut ledger);
    session.send().unwrap();
    for _ in 0..2 {
        let command = header(&mut peer);
        assert_eq!((command[1] & wire::FINAL, data_bytes(&command)), (0, 0));
        let out = header(&mut peer);
        assert_eq!(initiator_task_tag(&out), initiator_task_tag(&command));
        assert_eq!(
            (wire::target_transfer_tag(&out), out[1], data_bytes(&out)),
            (TAG_NONE, wire::FINAL, 1024)
        );
        peer.read_exact(&mut [0; 1024]).unwrap();
    }
}
