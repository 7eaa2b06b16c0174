//! Initiators on this machine: qemu's tools and fio, over libiscsi; and one of our own for what these can't say.
//!
//! Goal: what they write is what they read, whatever the sizes, digests and portals. Method: patterns, whole images
//! and checksummed blocks, on units of each kind, against one target a test.

use std::fs;
use std::path::Path;
use std::time::Duration;
use tests::initiator::{Initiator, cdb16};
use tests::peers::{QemuUnit, fio, qemu_img, write_noise};
use tests::process::is_long_run;
use tests::target::{IQN, Pollux, Setup, check};

/// 512-byte and 4096-byte blocks, in memory, in a file and as volumes of a pool.
const UNITS: [&str; 5] = [
    "ram:256M,block=512,physical=4096",
    "file:{dir}/unit:256M,block=512,physical=4096",
    "ram:256M,block=4096",
    "thin:256M,block=512,physical=4096",
    "thin:256M,block=4096",
];
/// The same for qemu, without 4096-byte blocks: to find holes its driver (7.2) asks a thin unit for the state of
/// 2^31 - 512 bytes at once, and then asserts that those are whole blocks.
const QEMU_UNITS: [&str; 4] = [
    "ram:256M,block=512,physical=4096",
    "file:{dir}/unit:256M,block=512,physical=4096",
    "ram:256M,block=512,physical=512",
    "thin:256M,block=512,physical=4096",
];

/// Patterns at the edges of what a layer below could cut at: blocks, 64 KiB pieces, 4 MiB stripes, the unit's end.
#[test]
#[ignore = "needs qemu-utils and an optimised pollux: run by tests/run"]
fn qemu_io_reads_the_patterns_it_wrote() {
    let mut pollux = Pollux::start(Setup::with_luns(&QEMU_UNITS));
    for lun in 0..QEMU_UNITS.len() {
        let unit = QemuUnit::new(&pollux.url(lun), &[]);
        unit.io(&[
            "write -P 0x11 0 4k",
            "write -P 0x22 60k 8k",
            "write -P 0x33 4092k 8k",
            "write -P 0x44 8M 3M",
            "write -P 0x55 256764k 5380k",
            "flush",
            "read -P 0x11 0 4k",
            "read -P 0 4k 56k",
            "read -P 0x22 60k 8k",
            "read -P 0 68k 4024k",
            "read -P 0x33 4092k 8k",
            "read -P 0x44 8M 3M",
            "read -P 0x55 256764k 5380k",
        ]);
        // Many at once, over one another's neighbours.
        unit.io(&[
            "aio_write -P 0x61 16M 1M",
            "aio_write -P 0x62 17M 64k",
            "aio_write -P 0x63 17472k 4k",
            "aio_write -P 0x64 17476k 2044k",
            "aio_flush",
            "read -P 0x61 16M 1M",
            "read -P 0x62 17M 64k",
            "read -P 0x63 17472k 4k",
            "read -P 0x64 17476k 2044k",
        ]);
        // Zeroes and discards, also in the middle of what was written.
        unit.io(&[
            "write -P 0x77 32M 8M",
            "write -z 33M 1M",
            "write -z -u 35M 64k",
            "discard 36M 2M",
            "read -P 0x77 32M 1M",
            "read -P 0 33M 1M",
            "read -P 0x77 34M 1M",
            "read -P 0 35M 64k",
            "read -P 0x77 35904k 960k",
            "read -P 0x77 38M 2M",
        ]);
    }
    pollux.assert_running();
    pollux.stop();
}

/// An image copied onto the unit and back is the image; holes stay holes.
#[test]
#[ignore = "needs qemu-utils and an optimised pollux: run by tests/run"]
fn qemu_img_copies_an_image_there_and_back() {
    let mut pollux = Pollux::start(Setup::with_luns(&QEMU_UNITS));
    let noise = pollux.dir().join("noise");
    let image = pollux.dir().join("image.qcow2");
    let back = pollux.dir().join("back.raw");
    let path = |path: &Path| path.display().to_string();
    write_noise(&noise, 48 << 20, 7);
    // 256 MiB, of which only the noise in the middle is there.
    qemu_img(&["create", "-q", "-f", "qcow2", &path(&image), "256M"]);
    let middle = format!(
        "driver=raw,offset={},size={},file.driver=qcow2,file.file.filename={}",
        100 << 20,
        48 << 20,
        path(&image)
    );
    qemu_img(&[
        "convert",
        "-n",
        "--image-opts",
        &format!("driver=raw,file.filename={}", path(&noise)),
        "--target-image-opts",
        &middle,
    ]);
    for lun in 0..QEMU_UNITS.len() {
        let unit = QemuUnit::new(&pollux.url(lun), &[]);
        qemu_img(&["info", "--image-opts", unit.image_options()]);
        qemu_img(&[
            "convert",
            "-n",
            "-f",
            "qcow2",
            &path(&image),
            "--target-image-opts",
            unit.image_options(),
        ]);
        let source = format!("driver=qcow2,file.filename={}", path(&image));
        qemu_img(&["compare", "--image-opts", &source, unit.image_options()]);
        qemu_img(&["convert", "-O", "raw", "--image-opts", unit.image_options(), &path(&back)]);
        qemu_img(&["compare", "-f", "qcow2", "-F", "raw", &path(&image), &path(&back)]);
        fs::remove_file(&back).expect("the copy is there");
    }
    pollux.assert_running();
    pollux.stop();
}

/// Checksummed blocks of many sizes, at depth, without digests and with header digests, on each kind of unit. fio's
/// engine leaves the choice of header digests to the target, so the target is told what to choose. libiscsi 1.19 has
/// no data digests: the Linux guest brings those.
#[test]
#[ignore = "needs fio with libiscsi and an optimised pollux: run by tests/run"]
fn fio_reads_the_checksums_it_wrote() {
    let size = if is_long_run() { "size=200m" } else { "size=48m" };
    let loops = if is_long_run() { "loops=20" } else { "loops=1" };
    for header_digest in ["never", "require"] {
        let config = format!("[target]\niqn = \"{IQN}\"\n[iscsi]\nheader_digest = \"{header_digest}\"\n");
        let mut pollux = Pollux::start(Setup { config: Some(config), ..Setup::with_luns(&UNITS) });
        for lun in 0..UNITS.len() {
            let url = pollux.url(lun);
            let mixed = "bssplit=4k/40:8k/20:12k/10:64k/15:256k/10:1m/5";
            let common = ["verify=crc32c", "do_verify=1", size, loops];
            let run = |options: &[&str]| fio(&url, &[&common, options].concat());
            run(&["rw=randwrite", mixed, "iodepth=32"]);
            run(&["rw=write", "bs=1m", "iodepth=8"]);
            run(&["rw=randrw", "bs=4k", "iodepth=64", "size=16m"]);
        }
        pollux.assert_running();
        pollux.stop();
    }
}

/// Several initiators at once on one unit, each in a part of its own, through two portals.
#[test]
#[ignore = "needs fio with libiscsi and an optimised pollux: run by tests/run"]
fn fio_sessions_side_by_side() {
    let mut pollux = Pollux::start(Setup { portals: 2, ..Setup::with_luns(&UNITS) });
    std::thread::scope(|scope| {
        for job in 0..4 {
            let url = pollux.url_at(job % 2, 1);
            scope.spawn(move || {
                let offset = format!("offset={}m", job * 64);
                let mixed = "bssplit=4k/60:16k/20:128k/20";
                fio(
                    &url,
                    &[
                        "rw=randwrite",
                        "verify=crc32c",
                        "do_verify=1",
                        "size=24m",
                        "iodepth=16",
                        mixed,
                        &offset,
                    ],
                );
            });
        }
    });
    pollux.assert_running();
    pollux.stop();
}

/// Header digests as the initiator wants them: none, and on every PDU.
#[test]
#[ignore = "needs qemu-utils and an optimised pollux: run by tests/run"]
fn qemu_io_chooses_header_digests() {
    let mut pollux = Pollux::start(Setup::with_luns(&["ram:64M"]));
    for (header_digest, pattern) in [("none", "0x01"), ("crc32c", "0x02"), ("crc32c-none", "0x03")] {
        let unit = QemuUnit::new(&pollux.url(0), &[&format!("header-digest={header_digest}")]);
        unit.io(&[
            &format!("write -P {pattern} 1M 9M"),
            &format!("read -P {pattern} 1M 9M"),
            "read -P 0 0 1M",
        ]);
    }
    pollux.assert_running();
    pollux.stop();
}

/// CHAP as libiscsi does it (MD5), both ways, and what is refused.
#[test]
#[ignore = "needs qemu-utils and an optimised pollux: run by tests/run"]
fn qemu_io_logs_in_with_chap() {
    let host = "iqn.2026-11.io.pollux:qemu";
    let config = format!(
        "[target]\niqn = \"{IQN}\"\n[[host]]\niqn = \"{host}\"\nchap = {{ user = \"qemu\", secret = \"a secret of qemu's\" }}\n"
    );
    let mut pollux = Pollux::start(Setup { config: Some(config), ..Setup::with_luns(&["ram:64M"]) });
    let url = pollux.url(0);
    let unit = |name: &str, password: &str| {
        QemuUnit::new(
            &url,
            &[&format!("initiator-name={name}"), "user=qemu", &format!("password={password}")],
        )
    };
    let read = &["read -P 0 0 1M"];
    unit(host, "a secret of qemu's").io(read);
    unit(host, "another secret").io_fails(read);
    unit("iqn.2026-11.io.pollux:stranger", "a secret of qemu's").io_fails(read);
    QemuUnit::new(&url, &[&format!("initiator-name={host}")]).io_fails(read);
    pollux.assert_running();
    pollux.stop();
}

/// A portal on IPv6, beside one on IPv4.
#[test]
#[ignore = "needs qemu-utils and an optimised pollux: run by tests/run"]
fn qemu_io_comes_over_ipv6() {
    let setup = Setup { also_on: vec!["[::1]".to_owned()], ..Setup::with_luns(&["ram:64M"]) };
    let mut pollux = Pollux::start(setup);
    QemuUnit::new(&pollux.url_at(0, 0), &[]).io(&["write -P 0x66 1M 1M"]);
    QemuUnit::new(&pollux.url_at(1, 0), &[]).io(&["read -P 0x66 1M 1M"]);
    pollux.assert_running();
    pollux.stop();
}

/// A unit that is write-protected says so, and a restart keeps what a file holds.
#[test]
#[ignore = "needs qemu-utils and an optimised pollux: run by tests/run"]
fn data_are_there_after_a_restart() {
    let mut pollux = Pollux::start(Setup::with_luns(&["file:{dir}/unit:64M", "ram:64M,ro"]));
    let unit = QemuUnit::new(&pollux.url(0), &[]);
    unit.io(&["write -P 0x5a 0 8M", "discard 2M 1M", "flush"]);
    pollux.stop();
    pollux.start_again();
    unit.io(&["read -P 0x5a 0 2M", "read -P 0x5a 3M 5M", "write -P 0xa5 4M 1M"]);
    // No flush: an acknowledged write is on the medium, and a crash of the program takes nothing with it.
    pollux.kill();
    pollux.start_again();
    unit.io(&["read -P 0x5a 3M 1M", "read -P 0xa5 4M 1M", "read -P 0x5a 5M 3M"]);
    QemuUnit::new(&pollux.url(1), &[]).io_fails(&["write -P 1 0 4k"]);
    pollux.stop();
}

const ANSWER_LIMIT: Duration = Duration::from_secs(10);
const RESERVATION_CONFLICT: u8 = 0x18;

/// A session that has heard of power on.
fn session(pollux: &Pollux, name: &str, isid: u32) -> Initiator {
    let address = pollux.addresses()[0].parse().expect("an address");
    let mut initiator = Initiator::login(address, name, isid, ANSWER_LIMIT).expect("a login");
    for lun in 0..2 {
        initiator.test_ready(lun, ANSWER_LIMIT).expect("a unit that is ready");
    }
    initiator
}

fn status(initiator: &mut Initiator, lun: u8, cdb: &[u8], data_out: &[u8], room: u32) -> u8 {
    let itt = initiator.command(lun, cdb, data_out, room).expect("a connection");
    initiator.answer(itt, ANSWER_LIMIT).expect("an answer").bhs[3]
}

/// PERSISTENT RESERVE OUT.
fn reserve_out(
    initiator: &mut Initiator,
    lun: u8,
    action: u8,
    (kind, key, action_key): (u8, u64, u64),
    aptpl: u8,
) -> u8 {
    let mut list = [key.to_be_bytes(), action_key.to_be_bytes(), [0; 8]].concat();
    list[20] = aptpl;
    status(initiator, lun, &[0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0], &list, 0)
}

/// READ KEYS.
fn keys(initiator: &mut Initiator) -> Vec<u8> {
    let itt = initiator.command(0, &[0x5e, 0, 0, 0, 0, 0, 0, 1, 0, 0], &[], 256).expect("a connection");
    initiator.answer(itt, ANSWER_LIMIT).expect("an answer").data
}

/// Goal: registrations and a reservation with APTPL outlive a kill, and stop others from the first moment; without it they
/// are gone; a unit that nothing keeps refuses it. Method: two initiators, killed between their answers and what they ask
/// next.
#[test]
#[ignore = "needs an optimised pollux: run by tests/run"]
fn reservations_are_there_after_a_restart() {
    const EXCLUSIVE_ACCESS: u8 = 3;
    let mut pollux = Pollux::start(Setup::with_luns(&["thin:64M", "ram:64M"]));
    let (one, two) = ("iqn.2026-11.test:one", "iqn.2026-11.test:two");
    let read = cdb16(0x88, 0, 1);
    let mut holder = session(&pollux, one, 1);
    let mut other = session(&pollux, two, 2);
    assert_eq!(reserve_out(&mut holder, 1, 0, (0, 0, 7), 1), 2, "nothing keeps what is in memory");
    assert_eq!(reserve_out(&mut holder, 0, 0, (0, 0, 7), 1), 0);
    assert_eq!(reserve_out(&mut other, 0, 0, (0, 0, 8), 1), 0);
    assert_eq!(reserve_out(&mut holder, 0, 1, (EXCLUSIVE_ACCESS, 7, 0), 0), 0);
    pollux.kill();
    pollux.start_again();
    let mut other = session(&pollux, two, 2);
    assert_eq!(status(&mut other, 0, &read, &[], 512), RESERVATION_CONFLICT);
    assert_eq!(keys(&mut other)[..8], [0, 0, 0, 0, 0, 0, 0, 16], "the generation begins anew");
    let mut holder = session(&pollux, one, 1);
    assert_eq!(status(&mut holder, 0, &read, &[], 512), 0);
    // The same initiator by another port is somebody else.
    assert_eq!(status(&mut session(&pollux, one, 3), 0, &read, &[], 512), RESERVATION_CONFLICT);
    // Registering without it is the last word for all.
    assert_eq!(reserve_out(&mut holder, 0, 0, (0, 7, 9), 0), 0);
    pollux.kill();
    pollux.start_again();
    let mut other = session(&pollux, two, 2);
    assert_eq!(status(&mut other, 0, &read, &[], 512), 0);
    assert_eq!(keys(&mut other)[..8], [0; 8]);
    pollux.stop();
}

/// 83h or 84h with a list identifier and a length.
fn token_cdb(opcode: u8, action: u8, length: usize) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (opcode, action);
    cdb[if opcode == 0x83 { 9 } else { 5 }] = 1;
    cdb[10..14].copy_from_slice(&(length as u32).to_be_bytes());
    cdb
}

/// POPULATE TOKEN's or WRITE USING TOKEN's list: what stands before its one range, and that.
fn token_list(header: Vec<u8>, lba: u64, blocks: u32) -> Vec<u8> {
    let mut list = header;
    let (length, at) = (list.len() as u16 + 14, list.len() - 1);
    list[..2].copy_from_slice(&length.to_be_bytes());
    list[at] = 16;
    list.extend(lba.to_be_bytes());
    list.extend(blocks.to_be_bytes());
    list.extend([0; 4]);
    list
}

/// WRITE USING TOKEN: its status, and of its sense data the codes.
fn write_using(initiator: &mut Initiator, lun: u8, token: &[u8], lba: u64, blocks: u32) -> (u8, [u8; 2]) {
    let mut header = vec![0; 536];
    header[16..528].copy_from_slice(token);
    let list = token_list(header, lba, blocks);
    let itt = initiator.command(lun, &token_cdb(0x83, 0x11, list.len()), &list, 0).expect("a connection");
    let answer = initiator.answer(itt, ANSWER_LIMIT).expect("an answer");
    let code = answer.data.get(14..16).map_or([0; 2], |code| [code[0], code[1]]);
    (answer.bhs[3], code)
}

/// Goal: a token that one session gets is used by others, on a volume and on a unit that is none, after its source has
/// changed; it takes no space of its own; after a kill nobody knows it, its space is free, and what was written with it is
/// there. Method: sessions of our own on two reactors, the program's own count, and a check.
#[test]
#[ignore = "needs an optimised pollux: run by tests/run"]
fn tokens_work_on_any_path_until_the_program_ends() {
    const BLOCKS: u32 = 1024;
    let mut pollux = Pollux::start(Setup::with_luns(&["thin:64M", "thin:64M", "ram:64M"]));
    let name = "iqn.2026-11.test:one";
    let mut sessions: Vec<Initiator> = (1..5).map(|isid| session(&pollux, name, isid)).collect();
    let data: Vec<u8> = (0..BLOCKS * 512).map(|at| (at / 512 * 7 + at % 251) as u8).collect();
    let fill = |initiator: &mut Initiator, data: &[u8]| {
        for (nth, piece) in (0..).zip(data.chunks(8192)) {
            assert_eq!(status(initiator, 0, &cdb16(0x8a, nth * 16, 16), piece, 0), 0);
        }
    };
    let look = |initiator: &mut Initiator, lun: u8, lba: u32| {
        let itt = initiator.command(lun, &cdb16(0x88, lba, BLOCKS), &[], BLOCKS * 512).expect("a connection");
        initiator.answer(itt, ANSWER_LIMIT).expect("an answer").data
    };
    fill(&mut sessions[0], &data);
    let list = token_list(vec![0; 16], 0, BLOCKS);
    assert_eq!(status(&mut sessions[0], 0, &token_cdb(0x83, 0x10, list.len()), &list, 0), 0);
    let itt = sessions[0].command(0, &token_cdb(0x84, 0x07, 1024), &[], 1024).expect("a connection");
    let told = sessions[0].answer(itt, ANSWER_LIMIT).expect("an answer").data;
    assert_eq!((told.len(), told[5], &told[16..24]), (550, 1, &u64::from(BLOCKS).to_be_bytes()[..]));
    let token = &told[38..];
    let counted = |pollux: &Pollux| {
        let pools = pollux.commands().run_well("pool list --json");
        let at = pools.find("\"token_bytes\"").expect("it is told");
        pools[at..].chars().skip(14).filter(|c| !c.is_whitespace()).take_while(char::is_ascii_digit).collect()
    };
    let held: String = counted(&pollux);
    assert_eq!(held, (BLOCKS * 512).to_string());
    fill(&mut sessions[3], &vec![0xee; data.len()]);
    for (nth, initiator) in (0u8..).zip(&mut sessions) {
        initiator.test_ready(2, ANSWER_LIMIT).expect("a unit that is ready");
        for lun in [1, 2] {
            let lba = 1000 + u32::from(nth) * 2000;
            assert_eq!(write_using(initiator, lun, token, lba.into(), BLOCKS), (0, [0; 2]));
            assert!(look(initiator, lun, lba) == data, "session {nth}, LUN {lun}");
        }
    }
    pollux.kill();
    pollux.start_again();
    let mut initiator = session(&pollux, name, 9);
    assert_eq!(write_using(&mut initiator, 1, token, 0, BLOCKS), (2, [0x23, 0x04]));
    assert!(look(&mut initiator, 1, 3000) == data);
    let held: String = counted(&pollux);
    assert_eq!(held, "0");
    pollux.stop();
    let found = check(&pollux.pool_file());
    assert!(found.end.is_success(), "{}", found.text);
}
