//! What this simulator and that of pools share: the seed's choices, disks, and the lines between cores.
#![allow(unreachable_pub, dead_code, reason = "the other simulator's crate shows them, and uses the rest")]

#[path = "../../../tests/src/sim/chance.rs"]
pub(crate) mod chance;
#[path = "../../../tests/src/sim/disk.rs"]
pub(crate) mod disk;
#[path = "../../../tests/src/sim/lines.rs"]
pub(crate) mod lines;
