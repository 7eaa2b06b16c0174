//! Discovery and claim: the order in which ESXi looks at a target and its units, and what it reads out of them.

use super::command::{BLOCK_BYTES, Command, MIB};
use super::sense::{Code, GOOD};
use super::session::{LOGIN_MAX, Port, Session};
use super::{LUNS, Outcome, RAM, Rig, THIN, THIN_TOO, Unit, hear_once, note, step_name};
use crate::target::IQN;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A NOP-Out's answer, and a login, while nothing is wrong.
const PROMPT: Duration = Duration::from_secs(1);
/// A task management function.
const FUNCTION_MAX: Duration = Duration::from_secs(5);
/// Task management functions (RFC 7143 §11.5.1).
const ABORT_TASK: u8 = 1;
const LOGICAL_UNIT_RESET: u8 = 5;

/// SendTargets names the target with both portals, by addresses that can be reached.
pub fn discovery(rig: &Rig) -> String {
    let targets = Session::discover(rig.portal(0), &Port::of_host(1, 0)).expect("a discovery session");
    let (_, addresses) = targets.iter().find(|(name, _)| name == IQN).expect("the target is listed");
    for address in rig.pollux.addresses() {
        let is_listed = addresses.iter().any(|listed| {
            listed
                .strip_prefix(&address)
                .and_then(|tag| tag.strip_prefix(','))
                .is_some_and(|tag| tag.parse::<u16>().is_ok())
        });
        assert!(is_listed, "step `{}`: {address} with its group tag is not in {addresses:?}", step_name());
    }
    assert!(addresses.iter().all(|address| !address.starts_with("0.0.0.0")), "{addresses:?}");
    format!("{} portals", addresses.len())
}

/// ESXi's proposals are answered as it needs them, and a login takes no time.
pub fn login_keys(rig: &Rig) -> Session {
    let began = Instant::now();
    let session = Session::login(rig.portal(0), &Port::of_host(1, 0)).expect("a login");
    let took = began.elapsed();
    assert!(took < PROMPT.min(LOGIN_MAX), "a login took {took:?}");
    let said = |key: &str| session.said.get(key).map_or("", String::as_str);
    for (key, value) in [
        ("InitialR2T", "No"),
        ("ImmediateData", "Yes"),
        ("ErrorRecoveryLevel", "0"),
        ("HeaderDigest", "None"),
        ("DataDigest", "None"),
        ("MaxConnections", "1"),
        ("DataPDUInOrder", "Yes"),
        ("DataSequenceInOrder", "Yes"),
        ("X-com.vmware.key", "NotUnderstood"),
    ] {
        assert_eq!(said(key), value, "{key} in {:?}", session.said);
    }
    let bytes = |key: &str| said(key).parse::<u32>().unwrap_or(0);
    assert!((65_536..=262_144).contains(&bytes("FirstBurstLength")), "{:?}", session.said);
    assert!(bytes("MaxBurstLength") >= bytes("FirstBurstLength"), "{:?}", session.said);
    assert!(bytes("MaxRecvDataSegmentLength") >= 65_536, "{:?}", session.said);
    let first = &session.said_first;
    assert!(first.contains_key("TargetPortalGroupTag"), "the first response has the group tag: {first:?}");
    assert!(session.window() >= 128, "a window of {} commands", session.window());
    session
}

impl Outcome for Session {
    fn told(&self) -> String {
        let said = |key: &str| self.said.get(key).map_or("?", String::as_str);
        format!(
            "a window of {} commands, first burst {}, burst {}, data segment {}",
            self.window(),
            said("FirstBurstLength"),
            said("MaxBurstLength"),
            said("MaxRecvDataSegmentLength")
        )
    }
}

/// The list of units is whole, whatever the room; LUN 0 answers for all.
pub fn report_luns(session: &mut Session) {
    let answer = session.run(Command::report_luns(0, 4096)).good();
    let want: Vec<u8> = LUNS.iter().flat_map(|&lun| [0, lun, 0, 0, 0, 0, 0, 0]).collect();
    answer.check(answer.number(0, 4) == want.len() as u64, "LUN LIST LENGTH is that of the list");
    answer.check(
        answer.data.get(8..) == Some(&want[..]),
        "all units, by peripheral addressing, behind eight bytes",
    );
    // An old ESX asks with 16 bytes first.
    let short = session.run(Command::report_luns(0, 16)).good();
    short.check(short.data == answer.data[..16], "a short room cuts and changes nothing");
}

impl Outcome for Vec<Unit> {
    fn told(&self) -> String {
        let of = |unit: &Unit| {
            format!("LUN {} {} MiB{}", unit.lun, unit.blocks / MIB, if unit.is_thin { " thin" } else { "" })
        };
        self.iter().map(of).collect::<Vec<_>>().join(", ")
    }
}

/// Each unit is looked at in ESXi's order; what it says makes it a device with a name that nobody else has.
pub fn claim_units(session: &mut Session) -> Vec<Unit> {
    let units: Vec<Unit> = LUNS.iter().map(|&lun| claim_unit(session, lun)).collect();
    let names: BTreeSet<[u8; 16]> = units.iter().map(|unit| unit.naa).collect();
    let serials: BTreeSet<&[u8]> = units.iter().map(|unit| &unit.serial[..]).collect();
    // Of two units with one name ESXi makes one device with mixed paths.
    assert_eq!((names.len(), serials.len()), (units.len(), units.len()), "names of units: {units:02x?}");
    units
}

fn claim_unit(session: &mut Session, lun: u8) -> Unit {
    // A login, and then this; INQUIRY and REPORT LUNS have not taken what the unit has to say.
    hear_once(session, lun, &[Code::POWER_ON]);

    let inquiry = session.run(Command::inquiry(lun)).good();
    inquiry.check(inquiry.data.len() >= 36, "standard INQUIRY data have 36 bytes at least");
    inquiry.check(inquiry.data[..2] == [0, 0], "a disk that is connected and not removable");
    inquiry.check(inquiry.data[2] >= 5, "VERSION is SPC-3 or later");
    inquiry.check(inquiry.data[3] == 0x12, "HISUP, and response data format 2 without NORMACA");
    inquiry.check(usize::from(inquiry.data[4]) + 5 == inquiry.data.len(), "ADDITIONAL LENGTH");
    inquiry.check(inquiry.data[5] & 0x08 != 0, "3PC: without it no Clone");
    inquiry.check(inquiry.data[5] & 0x30 == 0x10, "TPGS: implicit, for VMW_SATP_ALUA");
    inquiry.check(inquiry.data[6] & 0x10 != 0 && inquiry.data[7] & 0x02 != 0, "MULTIP and CMDQUE");
    // Claim rules go by these, and copies between units are only tried if the product is the same.
    inquiry.check(&inquiry.data[8..32] == b"POLLUX  VIRTUAL-DISK    ", "vendor and product");

    let pages = session.run(Command::vital_product_data(lun, 0x00)).good();
    let listed = pages.data.get(4..).unwrap_or_default();
    pages.check(listed.is_sorted(), "pages in ascending order");
    for page in [0x80, 0x83, 0x86, 0x8F, 0xB0, 0xB1, 0xB2] {
        pages.check(listed.contains(&page), "the pages that ESXi reads");
    }
    for &page in listed {
        let answer = session.run(Command::vital_product_data(lun, page)).good();
        answer.check(answer.data[1] == page, "the page that was asked for");
        // The whole page's, also where 255 bytes hold no more than its beginning (SPC-4, 4.2.5.6).
        let page_bytes = answer.number(2, 2) as usize + 4;
        answer.check(page_bytes.min(0xFF) == answer.data.len(), "PAGE LENGTH");
    }
    let serial = session.run(Command::vital_product_data(lun, 0x80)).good().data.split_off(4);
    let identification = session.run(Command::vital_product_data(lun, 0x83)).good();
    identification.check(identification.data.len() >= 24, "a designator");
    // Binary, of the unit, NAA, 16 bytes, and NAA 6: what naa.… names and what EXTENDED COPY finds units by.
    let is_naa_6 = identification.data[4..8] == [0x01, 0x03, 0, 16] && identification.data[8] >> 4 == 6;
    identification.check(is_naa_6, "the first designator is NAA 6");
    let naa = identification.data[8..24].try_into().expect("sixteen bytes");
    let extended = session.run(Command::vital_product_data(lun, 0x86)).good();
    extended.check(extended.data[5] == 0x07, "HEADSUP, ORDSUP, SIMPSUP");

    let short = session.run(Command::read_capacity_10(lun)).good();
    let long = session.run(Command::read_capacity_16(lun)).good();
    let blocks = long.number(0, 8) + 1;
    short.check(short.number(0, 4) == long.number(0, 8), "both commands know one capacity");
    long.check(
        long.number(8, 4) == u64::from(BLOCK_BYTES),
        "of an array ESXi takes blocks of 512 bytes alone",
    );
    if lun != RAM {
        long.check(long.data[13] & 0x0F == 3, "LBPPBE: eight logical blocks in a physical one");
    }
    long.check(matches!((long.data[14] & 0x3F, long.data[15]), (0, 0)), "LALBA: aligned");
    let is_thin = long.data[14] & 0x80 != 0;
    long.check(!is_thin || long.data[14] & 0x40 != 0, "LBPRZ");

    let groups = session.run(Command::report_target_port_groups(lun)).good();
    groups.check(groups.number(0, 4) as usize + 4 == groups.data.len(), "RETURN DATA LENGTH");
    groups.check(groups.data.len() >= 16, "a group with a port");
    groups.check(matches!(groups.data[4] & 0x0F, 0), "active/optimized");

    for page in [0x08, 0x0A, 0x1C, 0x3F] {
        let mode = session.run(Command::mode_sense(lun, page)).good();
        mode.check(usize::from(mode.data[0]) + 1 == mode.data.len(), "MODE DATA LENGTH");
        mode.check(mode.data[2] & 0x80 == 0, "not write-protected");
        let first = 4 + usize::from(mode.data[3]);
        let code = mode.data.get(first).map(|byte| byte & 0x3F);
        mode.check(page == 0x3F || code == Some(page), "the page that was asked for");
    }
    Unit { lun, naa, serial, blocks, is_thin }
}

/// What `esxcli storage core device vaai status get` would show of each unit, by what ESXi reads for it.
pub fn vaai_status(session: &mut Session, units: &[Unit]) -> String {
    let mut told = Vec::new();
    for unit in units {
        let lun = unit.lun;
        let mut is_offered = |opcode, service_action| {
            let answer = session.run(Command::supported(lun, opcode, service_action)).good();
            answer.data[1] & 0x07 == 0x03
        };
        let ats = is_offered(0x89, 0);
        let clone = is_offered(0x83, 0x00) && is_offered(0x84, 0x03);
        let zero = is_offered(0x93, 0);
        let delete = is_offered(0x42, 0);

        let limits = session.run(Command::vital_product_data(lun, 0xB0)).good();
        limits.check(limits.data.len() == 64, "the page of SBC-3");
        limits.check(ats && limits.data[5] >= 1, "MAXIMUM COMPARE AND WRITE LENGTH, for ATS");
        let same = limits.number(36, 8);
        limits
            .check(zero && (same == 0 || same >= MIB), "MAXIMUM WRITE SAME LENGTH: 1 MiB at least, for Zero");
        let characteristics = session.run(Command::vital_product_data(lun, 0xB1)).good();
        characteristics.check(characteristics.number(4, 2) == 1, "MEDIUM ROTATION RATE: flagged as SSD");
        let provisioning = session.run(Command::vital_product_data(lun, 0xB2)).good();
        let is_shown = provisioning.data[5] & 0x80 != 0;
        provisioning.check(is_shown == unit.is_thin && delete == unit.is_thin, "LBPU, LBPME and 42h agree");
        provisioning.check(unit.is_thin || lun == RAM, "volumes are thin");
        if unit.is_thin {
            provisioning.check(provisioning.data[5] & 0x1C == 0x04, "LBPRZ, as READ CAPACITY(16) has it");
            provisioning.check(provisioning.data[6] & 0x07 == 2, "thin provisioned");
            limits.check(limits.number(20, 4) >= MIB, "MAXIMUM UNMAP LBA COUNT: 1 MiB at least");
            limits.check(limits.number(24, 4) >= 2, "MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT");
            // VMFS6 frees space by itself only if the granule divides 1 MiB.
            let granule = limits.number(28, 4);
            limits
                .check(granule > 0 && MIB.is_multiple_of(granule), "OPTIMAL UNMAP GRANULARITY divides 1 MiB");
            limits.check(limits.number(32, 4) == 0x8000_0000, "granules begin at block 0");
        }
        let copies = session.run(Command::copy_operating_parameters(lun)).good();
        copies.check(clone && copies.data[4] & 1 == 1, "SNLID: lists without identifier, as ESXi sends them");
        copies.check(copies.number(8, 2) >= 2 && copies.number(10, 2) >= 1, "two CSCDs and a segment");
        copies.check(copies.number(16, 4) == 0 || copies.number(16, 4) >= 4 << 20, "segments of 4 MiB");
        copies.check(
            copies.data[44..] == *b"\x02\xE4" || copies.data[44..].contains(&0xE4),
            "types 02h and E4h",
        );
        let word = |is: bool| if is { "supported" } else { "unsupported" };
        told.push(format!(
            "LUN {lun}: ATS {}, Clone {}, Zero {}, Delete {}",
            word(ats),
            word(clone),
            word(zero),
            word(delete)
        ));
    }
    told.join("; ")
}

/// What every host asks and no disk here has is refused cleanly.
pub fn benign_probes(session: &mut Session) {
    session.run(Command::ata_pass_through(THIN)).bad(Code::INVALID_OPCODE);
    session.run(Command::log_sense(THIN, 0x3E)).bad(Code::INVALID_FIELD_IN_CDB);
    let absent = session.run(Command::inquiry(9)).good();
    absent.check(absent.data[0] == 0x7F, "no unit here: qualifier and type 7Fh, with GOOD");
    session.run(Command::test_unit_ready(9)).bad(Code::LOGICAL_UNIT_NOT_SUPPORTED);
    session.run(Command::report_luns(9, 4096)).good();
    // VMware marks it as a read sometimes.
    let ready = session.run_with_read_flag(Command::test_unit_ready(THIN));
    ready.check(ready.status == GOOD && ready.residual == 0, "TEST UNIT READY with the Read flag");
    let ready = session.run_with_read_flag(Command { room: 36, ..Command::test_unit_ready(THIN) });
    ready.check(ready.status == GOOD && ready.residual == 36, "and with room for data that do not come");
}

/// Pings, an abort of what has ended, and a reset that everybody hears of once.
pub fn task_management(session: &mut Session, other: &mut Session) -> String {
    let ping = session.ping().expect("a NOP-In");
    assert!(ping < PROMPT, "a ping took {ping:?}");
    let ended = session.run(Command::test_unit_ready(THIN)).good();
    let began = Instant::now();
    // "Task does not exist" would have VMware reset the unit, again and again.
    let response = session.task_management(ABORT_TASK, THIN, ended.tag).expect("a response");
    assert_eq!(response, 0, "ABORT TASK of what has ended: function complete");
    let response = session.task_management(LOGICAL_UNIT_RESET, THIN, u32::MAX).expect("a response");
    assert_eq!(response, 0, "LOGICAL UNIT RESET: function complete");
    let took = began.elapsed();
    // Of what is under way: nothing of it is done, and nothing answered, once the function is.
    let ones = vec![0x11; BLOCK_BYTES as usize];
    let mut aborted = 0;
    for _ in 0..8 {
        let same = Command::write_same_of(THIN_TOO, 900 * MIB, 32 * MIB as u32, ones.clone());
        let tag = session.send(same).expect("a command");
        let response = session.task_management(ABORT_TASK, THIN_TOO, tag).expect("a response");
        assert_eq!(response, 0, "ABORT TASK of what is under way: function complete");
        aborted += u32::from(!session.forget(tag));
        session.run(Command::write_same(THIN_TOO, 900 * MIB, 32 * MIB as u32)).good();
    }
    for mib in 0..32 {
        let read = session.run(Command::read(THIN_TOO, (900 + mib) * MIB, MIB as u32)).good();
        read.check(read.data.iter().all(|&byte| byte == 0), "an aborted command has written afterwards");
    }
    assert!(took < FUNCTION_MAX, "two functions took {took:?}");
    for session in [session, other] {
        hear_once(session, THIN, &[Code::BUS_DEVICE_RESET]);
        session.run(Command::test_unit_ready(RAM)).good();
    }
    if ping > Duration::from_millis(100) {
        note(&format!("a ping took {ping:?}"));
    }
    format!("ping {ping:?}, functions {took:?}, {aborted} of 8 aborted under way")
}
