//! Goal: an IO that finds the tables warm takes nothing from the heap, from its PDU to its response. Method: the target runs
//! in this process and its initiator in another; what many commands took from the heap beyond what few took is told of
//! each kind, and is nothing but what the program does now and then by itself.
#![allow(clippy::unwrap_used, reason = "a test program")]

use pollux::args::Serve;
use pollux::boot::Serving;
use pollux::config::Config;
use pollux::identity::DataDir;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command as Process;
use tests::esxi::command::Command;
use tests::esxi::session::{Port, Session};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const BLOCK: usize = 512;
/// What the initiator's process is told: the address, the kind, how many.
const ORDER: &str = "POLLUX_TEST_ORDER";
const FEW: u64 = 500;
const MANY: u64 = 5_500;
/// More than this a command would be one each, or a table that grows with what was ever done.
const MOST: f64 = 0.01;
const KINDS: [&str; 8] = [
    "read",
    "write",
    "large read",
    "large write",
    "compare and write",
    "write same",
    "unmap",
    "unmap, write",
];

/// The `nth` command of a kind. All go to places that were written before.
fn command(kind: &str, lun: u8, nth: u64) -> Command {
    let lba = nth * 8 % 16_384;
    match kind {
        "read" => Command::read(lun, lba, 8),
        "write" => Command::write(lun, lba, vec![nth as u8; 8 * BLOCK]),
        "large read" => Command::read(lun, lba, 512),
        "large write" => Command::write(lun, lba, vec![nth as u8; 512 * BLOCK]),
        // The first of each pair of rounds over these blocks finds the other's byte, and is told so.
        "compare and write" => {
            Command::compare_and_write(lun, 40_000, &[nth as u8; BLOCK], &[nth as u8 + 1; BLOCK])
        }
        "write same" => Command::write_same(lun, 32_768, 128),
        "unmap" => Command::unmap(lun, &[(49_152, 128)]),
        // A chunk is given back, and another taken.
        "unmap, write" if nth.is_multiple_of(2) => Command::unmap(lun, &[(49_152 + nth * 64, 128)]),
        "unmap, write" => Command::write(lun, 49_152 + nth * 64 - 64, vec![nth as u8; 128 * BLOCK]),
        _ => panic!("no such kind: {kind}"),
    }
}

fn all_of(session: &mut Session, kind: &str, lun: u8, count: u64) {
    let commands = (0..count).map(|nth| command(kind, lun, nth % 250));
    // Locks are taken one by one; the first of a run finds what the last run left.
    let depth = if ["compare and write", "unmap, write"].contains(&kind) { 1 } else { 16 };
    session.run_all(depth, commands, |answer| {
        assert!(answer.code().is_none() || kind == "compare and write", "{kind}: {answer:?}");
    });
}

/// The initiator's process.
#[test]
#[ignore = "started by the other test"]
fn initiator() {
    let order = std::env::var(ORDER).unwrap();
    let [address, lun, kind, count] = order.split('/').collect::<Vec<_>>().try_into().unwrap();
    let address: SocketAddr = address.parse().unwrap();
    let (lun, count) = (lun.parse().unwrap(), count.parse().unwrap());
    let mut session = Session::login(address, &Port::of_host(1, 0)).unwrap();
    while session.run(Command::test_unit_ready(lun)).code().is_some() {}
    all_of(&mut session, kind, lun, count);
    session.logout().unwrap();
}

fn order(address: SocketAddr, lun: u8, kind: &str, count: u64) {
    let ended = Process::new(std::env::current_exe().unwrap())
        .args(["initiator", "--exact", "--ignored", "--nocapture"])
        .env(ORDER, format!("{address}/{lun}/{kind}/{count}"))
        .output()
        .unwrap();
    assert!(
        ended.status.success(),
        "{}{}",
        String::from_utf8_lossy(&ended.stdout),
        String::from_utf8_lossy(&ended.stderr)
    );
}

/// What the heap was asked for while the initiator did `count` of these.
fn asked(address: SocketAddr, lun: u8, kind: &str, count: u64) -> usize {
    let region = Region::new(HEAP);
    order(address, lun, kind, count);
    let stats = region.change();
    stats.allocations + stats.reallocations
}

#[test]
fn an_io_takes_nothing_from_the_heap() {
    let dir = tempfile::tempdir().unwrap();
    let data = [dir.path().join("data"), "ram:128M".into()];
    let luns = [&["ram:64M", "thin:64M"][..], &["thin:64M"]];
    let mut too_many = Vec::new();
    for (data, luns) in data.into_iter().zip(luns) {
        too_many.extend(taken_by_each(data, luns));
    }
    assert!(too_many.is_empty(), "taken from the heap by each command: {}", too_many.join("; "));
}

/// The kinds of commands to these LUNs of which each takes something.
fn taken_by_each(data: PathBuf, luns: &[&str]) -> Vec<String> {
    let pool = data.display().to_string();
    let serve = Serve {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        data: Some(data),
        reactors: Some("0".parse().unwrap()),
        memory: Some(64 << 20),
        lun: luns.iter().map(|spec| spec.parse().unwrap()).collect(),
        ..Serve::default()
    };
    let config = Config::load(&serve, Path::new("/")).unwrap().config;
    let data = match config.data_memory {
        Some(_) => DataDir::fleeting(&config.data),
        None => DataDir::open(&config.data),
    };
    let data = data.unwrap();
    let ids = data.identify(&config.luns).unwrap();
    let serving = Serving::start(&config, &ids).unwrap();
    let address = serving.portals[0];
    let mut too_many = Vec::new();
    for (lun, name) in (0..).zip(luns) {
        for kind in KINDS {
            // The first finds cold tables.
            order(address, lun, kind, MANY);
            let few = asked(address, lun, kind, FEW);
            let many = asked(address, lun, kind, MANY);
            let each = (many as f64 - few as f64) / (MANY - FEW) as f64;
            println!("{name:9} {kind:18} {each:8.4} a command ({few} for {FEW}, {many} for {MANY})");
            // Nodes of a map are the heap's, within their own budget, and here a run of chunks becomes a node and a run again.
            if each > if kind == "unmap, write" { 1.0 } else { MOST } {
                too_many.push(format!("{name} with {pool}, {kind}: {each:.3}"));
            }
        }
    }
    serving.stop();
    too_many
}
