//! The target as ESXi meets it, step by step.
//!
//! Goal: what ESXi does with a LUN, from discovery to a path that comes back, is answered as VAAI and VMFS need it; every
//! step and sense code has its name (see [`tests::esxi`]). Method: the real program with two thin volumes of a pool and a
//! unit in memory behind two portals, and an initiator of our own that logs in, frames its commands and keeps its queues as
//! ESXi's does. No ESXi is needed, and none is proved: what its own next version does differently is not in here.

use std::time::Duration;
use tests::esxi::{Outcome, Rig, ats, claim, clone, format, paths, space, step};

/// No step takes a fifth of it on an idle machine.
const LIMIT: Duration = Duration::from_secs(60);

fn play<T: Outcome>(name: &'static str, what: impl FnOnce() -> T) -> T {
    step(name, LIMIT, what)
}

#[test]
#[ignore = "needs an optimised pollux: run by tests/run"]
fn as_esxi_does() {
    let mut rig = Rig::start();
    // Behind the test's name, which has no line of its own.
    println!();
    play("discovery", || claim::discovery(&rig));
    let mut session = play("login keys", || claim::login_keys(&rig));
    play("REPORT LUNS", || claim::report_luns(&mut session));
    rig.units = play("claim", || claim::claim_units(&mut session));
    play("VAAI status", || claim::vaai_status(&mut session, &rig.units));
    play("benign probes", || claim::benign_probes(&mut session));
    let mut other = rig.host(2, 1);
    play("task management", || claim::task_management(&mut session, &mut other));

    play("datastore format", || format::datastore(&mut session, &rig));
    play("reservations", || format::reservations(&mut session, &mut other, &rig));

    let mut hosts: Vec<_> = (0..ats::HOSTS).map(|host| rig.host(10 + host, usize::from(host % 2))).collect();
    play("ATS heartbeats", || ats::heartbeats(&mut hosts));
    play("ATS, one lock for all", || ats::one_lock(&mut hosts));
    play("ATS beside bulk work", || ats::beside_bulk(&mut hosts, &mut other, &rig));

    let mut image = play("an image", || clone::make_image(&mut session));
    play("clone, 4 MiB and 1 MiB", || clone::same_unit(&mut session, &rig, &image));
    play("clone of a live source", || clone::live_source(&mut session, &mut other, &rig, &mut image));
    play("clone between units", || clone::between_units(&mut session, &rig, &image));
    play("clone by many segments", || clone::many_segments(&mut session, &rig, &image));
    play("what can't be cloned", || clone::refused(&mut session, &rig, &image));

    play("eager zero", || space::eager_zero(&mut session));
    play("UNMAP", || space::unmap(&mut session, &rig));

    play("path loss", || paths::path_loss(&rig));
    play("session reinstatement", || paths::reinstatement(&rig));
    drop((session, other, hosts));
    play("restart of the target", || paths::restart(&mut rig));
    play("the same devices", || paths::same_devices(&rig));
    rig.pollux.assert_running();
    rig.pollux.stop();
}
