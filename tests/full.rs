//! Pools that run full under real machines.
//!
//! Goal: whoever needs space and gets none is stopped or told, and goes on by itself when there is some, without a restart
//! or a rescan, and no byte is wrong. Method: an emulated machine, first with a disk that qemu's own iSCSI driver brings
//! it: it is paused, the pool grows, it continues. Then with Linux's own initiator and a writer that tries again until a
//! volume was deleted.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tests::guest::Guest;
use tests::initiator::{Initiator, cdb16};
use tests::target::{Commands, Pollux, Setup};

const MIB: u64 = 1 << 20;
/// No script of ours takes longer under emulation.
const LIMIT: Duration = Duration::from_secs(120);

/// Space that the pool has for thin volumes in the beginning, what each writer writes, and what the pool grows by.
const LEFT_MIB: u64 = 4;
const WRITTEN_MIB: u64 = 8;
const GROWN_MIB: u64 = 10;

/// Pieces of 1 MiB that can't be mistaken for one another, nor their parts.
const PIECES: &str = r#"
piece() { # NUMBER SEED: as /tmp/piece
    seq -f "$2 $1 %09.0f" 1 70000 >/tmp/piece
    truncate -s 1M /tmp/piece
}
verify() { # DEVICE PIECES SEED
    local n
    for ((n = 0; n < $2; n++)); do
        piece $n "$3"
        dd if="$1" bs=1M skip=$n count=1 iflag=direct status=none >/tmp/found
        cmp /tmp/piece /tmp/found || fail "piece $n of $1 is not what was written"
    done
}
"#;

/// qemu's monitor.
struct Monitor(BufReader<UnixStream>);

impl Monitor {
    fn connect(socket: &Path) -> Monitor {
        let stream = UnixStream::connect(socket).expect("qemu's monitor listens");
        stream.set_read_timeout(Some(LIMIT)).expect("a timeout");
        let mut monitor = Monitor(BufReader::new(stream));
        monitor.say("qmp_capabilities");
        monitor
    }

    fn say(&mut self, command: &str) {
        writeln!(self.0.get_mut(), r#"{{"execute":"{command}"}}"#).expect("qemu's monitor takes commands");
    }

    /// Reads until a line has all of these.
    fn wait_for(&mut self, words: &[&str]) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).expect("qemu's monitor says something");
            assert!(!line.is_empty() && Instant::now() < deadline, "no {words:?} from qemu");
            if words.iter().all(|word| line.contains(word)) {
                return line;
            }
        }
    }
}

/// What thin volumes of the pool can still get.
fn available(commands: &Commands) -> u64 {
    let list = commands.run_well("pool list --json");
    let (_, pool) = list.split_once("\"small\"").expect("the pool is there");
    let of = |key: &str| -> u64 {
        let (_, rest) = pool.split_once(&format!("\"{key}\":")).expect("the pool tells it");
        let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
        digits.parse().expect("a number")
    };
    of("free_bytes").saturating_sub(of("reserved_bytes")).saturating_sub(of("heartbeat_reserve_bytes"))
}

#[test]
#[ignore = "needs qemu, the guest and an optimised pollux: run by tests/run"]
fn full_pools_stop_machines_and_let_them_go_on() {
    let began = Instant::now();
    let mut pollux = Pollux::start(Setup::with_luns(&["ram:16M"]));
    let commands = pollux.commands();
    let member = pollux.dir().join("small.img");
    commands.run_well(&format!("pool create small {}:1G", member.display()));
    let filler = available(&commands) - LEFT_MIB * MIB;
    commands.run_well(&format!("volume create filler {filler} --thick"));
    for (volume, lun) in [("one", 1), ("two", 2)] {
        commands.run_well(&format!("volume create {volume} 64M --thin"));
        commands.run_well(&format!("lun map {volume} --lun {lun}"));
    }

    let dir = TempDir::new().expect("a directory for the monitor");
    let socket = dir.path().join("monitor");
    let mut guest = Guest::boot_with(&[
        ("qmp", format!("unix:{},server=on,wait=off", socket.display())),
        (
            "drive",
            format!(
                "if=none,id=full,format=raw,cache=none,werror=enospc,rerror=report,file={}",
                pollux.url(1)
            ),
        ),
        ("device", "virtio-blk-pci,drive=full,serial=full,addr=0x10".to_owned()),
    ]);
    println!("guest: booted after {:.1} s", began.elapsed().as_secs_f32());
    let mut monitor = Monitor::connect(&socket);

    let script = format!(
        r#"{PIECES}
device=$(readlink -f /dev/disk/by-id/virtio-full)
[[ -b $device ]] || fail "no disk"
for ((n = 0; n < {WRITTEN_MIB}; n++)); do
    piece $n machine
    dd if=/tmp/piece of="$device" bs=256k seek=$((4 * n)) oflag=direct conv=notrunc status=none
done
verify "$device" {WRITTEN_MIB} machine
"#
    );
    let answer = scope(|scope| {
        let machine = scope.spawn(|| guest.run(LIMIT, &script));
        let line = monitor.wait_for(&["BLOCK_IO_ERROR", "\"nospace\": true"]);
        assert!(line.contains("\"action\": \"stop\"") && line.contains("\"operation\": \"write\""), "{line}");
        monitor.wait_for(&["\"STOP\""]);
        println!("paused after {:.1} s", began.elapsed().as_secs_f32());
        let grown = format!("pool grow small {}:{GROWN_MIB}M", pollux.dir().join("more.img").display());
        commands.run_well(&grown);
        monitor.say("cont");
        machine.join().expect("the guest answers")
    });
    assert_eq!(answer.status, 0, "{}", answer.text);
    println!("the machine has gone on and read what it wrote after {:.1} s", began.elapsed().as_secs_f32());

    let port = pollux.ports()[0];
    let script = format!(
        r#"{PIECES}
login {port} >/dev/null
device=$(disk 2 {port})
refused=0
for ((n = 0; n < {RETRIED_MIB}; n++)); do
    piece $n writer
    until dd if=/tmp/piece of="$device" bs=256k seek=$((4 * n)) oflag=direct conv=notrunc status=none 2>/tmp/error; do
        grep -q 'No space left on device' /tmp/error || fail "$(cat /tmp/error)"
        refused=$((refused + 1))
        touch /tmp/refused
        sleep 0.2
    done
done
verify "$device" {RETRIED_MIB} writer
echo "refused $refused times"
((refused > 0)) || fail "there was space all the time"
sg_get_lba_status --maxlen=256 "$device"
sg_get_lba_status --maxlen=256 "$device" | grep -q deallocated || fail "all is mapped"
"#
    );
    let answer = scope(|scope| {
        let writer = scope.spawn(|| guest.run(LIMIT, &script));
        let deadline = Instant::now() + LIMIT;
        // Less than a write takes: it is refused from here on.
        while available(&commands) >= MIB / 4 && !writer.is_finished() {
            assert!(Instant::now() < deadline, "the writer doesn't fill the pool");
            sleep(Duration::from_millis(100));
        }
        sleep(Duration::from_secs(2));
        commands.run_well("volume delete filler");
        writer.join().expect("the guest answers")
    });
    println!("{}", answer.text.trim_end());
    assert_eq!(answer.status, 0, "{}", answer.text);

    // There was space again, and now there is none again: the kernel is told with its next command.
    sleep(Duration::from_secs(3));
    commands.run_well(&format!("volume create filler {} --thick", available(&commands) - LEFT_MIB * MIB));
    let script = format!(
        r#"
for ((tries = 0; tries < 50; tries++)); do
    dd if="$(disk 2 {port})" of=/dev/null bs=4k count=1 iflag=direct status=none
    ! dmesg | grep -i 'soft threshold' || break
    sleep 0.2
done
((tries < 50)) || fail "nobody told the kernel of the threshold"
logout >/dev/null
"#
    );
    let answer = guest.run(LIMIT, &script);
    println!("{}", answer.text.trim_end());
    assert_eq!(answer.status, 0, "{}", answer.text);
    pollux.stop();
    println!("all done after {:.1} s", began.elapsed().as_secs_f32());
}

/// What the second writer writes: more than is left then.
const RETRIED_MIB: u64 = LEFT_MIB + GROWN_MIB - WRITTEN_MIB + 2;

/// Blocks of a write here: a chunk of the pool.
const BLOCKS: u32 = 128;
const BYTES: u32 = BLOCKS * 512;
/// Sense key, code and qualifier.
const NO_SPACE: u32 = 0x07_2707;
const THRESHOLD: u32 = 0x06_3807;

/// A command's sense, 0 without; and its data.
fn ask(user: &mut Initiator, lun: u8, cdb: &[u8], data: &[u8], room: u32) -> (u32, Vec<u8>) {
    let itt = user.command(lun, cdb, data, room).expect("a command");
    let answer = user.answer(itt, LIMIT).expect("an answer");
    if answer.opcode() == 0x25 || answer.bhs[3] == 0 {
        return (0, answer.data);
    }
    assert_eq!(answer.bhs[3], 2, "{answer:?}");
    // Two bytes of length, then fixed sense.
    let at = |index: usize| u32::from(answer.data[2 + index]);
    ((at(2) & 0xf) << 16 | at(12) << 8 | at(13), Vec::new())
}

fn write(user: &mut Initiator, lun: u8, piece: u32, byte: u8) -> u32 {
    ask(user, lun, &cdb16(0x8a, piece * BLOCKS, BLOCKS), &vec![byte; BYTES as usize], 0).0
}

/// Writes one piece after the other until there is no space. The first that was refused.
fn fill(user: &mut Initiator, from: u32) -> u32 {
    let mut piece = from;
    loop {
        match write(user, 1, piece, piece as u8 | 1) {
            0 => piece += 1,
            code => {
                assert_eq!(code, NO_SPACE);
                return piece;
            }
        }
        assert!(piece < 1024, "it has no end");
    }
}

/// Goal: a full pool refuses exactly what needs space, with 07h/27h/07h, and the same write goes on after an UNMAP, after
/// growth and after a volume was deleted; thick units never notice; the threshold is told once to each nexus of a thin unit,
/// and again when it is crossed again; the map is told. Method: two initiators on the wire.
#[test]
#[ignore = "needs an optimised pollux: run by tests/run"]
fn full_pools_refuse_what_needs_space() {
    let mut pollux = Pollux::start(Setup::with_luns(&["ram:16M"]));
    let commands = pollux.commands();
    commands.run_well(&format!("pool create small {}:1G", pollux.dir().join("small.img").display()));
    commands.run_well("volume create thick 4M --thick");
    commands.run_well("volume create thin 64M --thin");
    commands.run_well("lun map thin --lun 1");
    commands.run_well("lun map thick --lun 2");
    let address: SocketAddr = pollux.addresses()[0].parse().expect("an address");
    let mut users: Vec<Initiator> = (1..=2)
        .map(|isid| Initiator::login(address, "iqn.2026-11.io.pollux:user", isid, LIMIT).expect("login"))
        .collect();
    for user in &mut users {
        user.test_ready(1, LIMIT).expect("unit 1");
        user.test_ready(2, LIMIT).expect("unit 2");
    }
    sleep(Duration::from_millis(2500));
    let told = |users: &mut Vec<Initiator>, lun: u8| {
        let codes: Vec<u32> = users.iter_mut().map(|user| ask(user, lun, &[0; 6], &[], 0).0).collect();
        codes
    };
    assert_eq!(told(&mut users, 1), [0, 0]);
    let filler = available(&commands) - 4 * MIB;
    for _ in 0..2 {
        commands.run_well(&format!("volume create filler {filler} --thick"));
        sleep(Duration::from_millis(2500));
        assert_eq!(told(&mut users, 1), [THRESHOLD; 2]);
        assert_eq!([told(&mut users, 1), told(&mut users, 2)], [[0; 2]; 2]);
        commands.run_well("volume delete filler");
        sleep(Duration::from_millis(2500));
        assert_eq!(told(&mut users, 1), [0, 0]);
    }
    commands.run_well(&format!("volume create filler {filler} --thick"));
    sleep(Duration::from_millis(2500));
    assert_eq!(told(&mut users, 1), [THRESHOLD; 2]);
    let user = &mut users[0];

    let refused = fill(user, 0);
    assert!(refused > 32, "{refused} pieces of 4 MiB");
    for byte in [1, 2] {
        assert_eq!(write(user, 1, refused, byte), NO_SPACE, "still");
    }
    let same = |zero: bool| [if zero { 0 } else { 7u8 }; 512];
    assert_eq!(ask(user, 1, &cdb16(0x93, refused * BLOCKS, BLOCKS), &same(false), 0).0, NO_SPACE);
    assert_eq!(ask(user, 1, &cdb16(0x93, refused * BLOCKS, BLOCKS), &same(true), 0).0, 0);
    assert_eq!(write(user, 1, 3, 0xEE), 0, "where there is space");
    assert_eq!(ask(user, 1, &cdb16(0x88, 3 * BLOCKS, BLOCKS), &[], BYTES).1, vec![0xEE; BYTES as usize]);
    assert_eq!(ask(user, 1, &cdb16(0x88, refused * BLOCKS, BLOCKS), &[], BYTES).1, vec![0; BYTES as usize]);
    let mut swap = cdb16(0x89, 3 * BLOCKS, 0);
    swap[13] = 1;
    assert_eq!(ask(user, 1, &swap, &[[0xEE; 512], [0xDD; 512]].concat(), 0).0, 0);
    assert_eq!(ask(user, 1, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0).0, 0);
    for piece in 0..64 {
        assert_eq!(write(user, 2, piece, 9), 0, "thick");
    }

    let mut status = cdb16(0x9e, 0, 256);
    status[1] = 0x12;
    let (code, runs) = ask(user, 1, &status, &[], 256);
    let runs: Vec<(u32, u8)> = runs[8..]
        .chunks(16)
        .map(|run| (u32::from_be_bytes([run[8], run[9], run[10], run[11]]), run[12]))
        .collect();
    assert_eq!((code, runs), (0, vec![(refused * BLOCKS, 0), ((1024 - refused) * BLOCKS, 1)]));

    // UNMAP of two descriptors: a part of a block, which is zeroed, and two whole chunks, which come back.
    let mut list = vec![0, 38, 0, 32, 0, 0, 0, 0];
    for (lba, blocks) in [(5 * u64::from(BLOCKS) + 3, 2u32), (8 * u64::from(BLOCKS), 2 * BLOCKS)] {
        list.extend(lba.to_be_bytes());
        list.extend(blocks.to_be_bytes());
        list.extend([0; 4]);
    }
    assert_eq!(ask(user, 1, &[0x42, 0, 0, 0, 0, 0, 0, 0, 40, 0], &list, 0).0, 0);
    let mut fifth = vec![5; BYTES as usize];
    fifth[3 * 512..5 * 512].fill(0);
    assert!(ask(user, 1, &cdb16(0x88, 5 * BLOCKS, BLOCKS), &[], BYTES).1 == fifth);
    assert_eq!(write(user, 1, refused, 0xAB), 0, "after UNMAP");

    let refused = fill(user, refused + 1);
    let more = pollux.dir().join("more.img");
    commands.run_well(&format!("pool grow small {}:8M", more.display()));
    assert_eq!(write(user, 1, refused, 0xAC), 0, "after growth");

    let refused = fill(user, refused + 1);
    commands.run_well("volume delete filler");
    assert_eq!(write(user, 1, refused, 0xAD), 0, "after a volume was deleted");
    assert_eq!(
        ask(user, 1, &cdb16(0x88, refused * BLOCKS, BLOCKS), &[], BYTES).1,
        vec![0xAD; BYTES as usize]
    );
    pollux.stop();
}
