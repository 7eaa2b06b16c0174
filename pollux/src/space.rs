//! What pools have left, told to the units that may run out of it: hosts read it in log page 0Ch, and hear of a soft
//! threshold. Looked at once a second by a thread of its own, never on the IO path.
//!
//! Invariant: units are told only what differs from what they were told last, in whole MiB, one pool after the other.

use crate::control::backend::{Backend, Outcome, VolumeName};
use crate::control::live::Live;
use bdev::pool::control::{Answer, PoolInfo, Provisioning, Request};
use std::collections::BTreeMap;
use std::sync::Weak;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;
use vaai::change::PoolSpace;
use vaai::limits::THRESHOLD_SET_BYTES;

/// How often pools are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A pool's soft threshold, where the configuration says nothing: in percent of its space that is used.
pub const THRESHOLD_PERCENT: u8 = 80;

/// Tells units of their pools' space until it is dropped.
#[derive(Debug)]
pub struct Watch {
    /// Nothing is ever sent: the thread sees that this end is gone. It isn't waited for, since it may wait for a reactor.
    _end: Sender<()>,
}

/// What is known of one pool.
#[derive(Debug, Default)]
struct Known {
    /// The units that show its volumes and can be written.
    units: Vec<(VolumeName, u16)>,
    /// Those of them that are thin.
    luns: Vec<u16>,
    told: Option<PoolSpace>,
    /// The log has said that its maps have little memory left.
    maps_short: bool,
}

impl Watch {
    /// Begins.
    pub fn start(live: Weak<Live>) -> Watch {
        let (end, ended) = channel::<()>();
        let watch = move || {
            let mut known = BTreeMap::new();
            while let Some(live) = live.upgrade() {
                for pool in live.pools() {
                    // Who doesn't answer now, or refuses since it stops, is asked again.
                    let looked = look(&live, &pool, known.entry(pool.clone()).or_default());
                    if let Err(failure) = looked {
                        tracing::debug!(pool, ?failure, "its space is not told");
                    }
                }
                drop(live);
                if ended.recv_timeout(LOOK_EVERY) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("pollux-space".to_owned()).spawn(watch) {
            tracing::warn!(%error, "nobody watches the space of the pools");
        }
        Watch { _end: end }
    }
}

fn look(live: &Live, pool: &str, known: &mut Known) -> Outcome<()> {
    let mut units = live.units()?;
    units.retain(|unit| !unit.read_only && unit.volume.as_ref().is_some_and(|volume| volume.pool == pool));
    let units: Vec<(VolumeName, u16)> =
        units.into_iter().filter_map(|unit| Some((unit.volume?, unit.lun))).collect();
    if units.is_empty() {
        *known = Known::default();
        return Ok(());
    }
    if units != known.units {
        let Answer::Volumes(volumes) = live.ask(pool, Request::Volumes)? else { return Ok(()) };
        let is_thin = |name: &str| {
            volumes.iter().any(|volume| volume.name == name && volume.provisioning == Provisioning::Thin)
        };
        let thin = units.iter().filter(|(name, _)| is_thin(&name.volume));
        let (luns, maps_short) = (thin.map(|&(_, lun)| lun).collect(), known.maps_short);
        *known = Known { luns, units, told: None, maps_short };
    }
    let Answer::Pool(info) = live.ask(pool, Request::Pool)? else { return Ok(()) };
    // Hosts can't tell it from a pool without data space, and growing that would not help: people have to hear of it.
    let maps_short = are_maps_short(&info);
    if maps_short && !known.maps_short {
        let PoolInfo { map_memory_bytes, map_memory_max_bytes, free_bytes, .. } = *info;
        tracing::warn!(
            pool,
            map_memory_bytes,
            map_memory_max_bytes,
            free_bytes,
            "the pool's maps have used nearly all of their memory: writes that need more end with OUT OF SPACE, however \
             much is free; delete snapshots or clones, or UNMAP what is scattered"
        );
    }
    known.maps_short = maps_short;
    if known.luns.is_empty() {
        return Ok(());
    }
    let space = space_of(&info, available(live, &info), live.threshold_percent(pool));
    if known.told != Some(space) {
        let was_low = known.told.is_some_and(is_low);
        if is_low(space) && !was_low {
            let PoolSpace { used_bytes, available_bytes, threshold_percent } = space;
            tracing::warn!(
                pool,
                used_bytes,
                available_bytes,
                threshold_percent,
                "the pool has reached its soft threshold: grow it, or delete what is not needed"
            );
        }
        live.tell_space(known.luns.clone(), space)?;
        known.told = Some(space);
    }
    Ok(())
}

/// What thin volumes can still get: not what is set aside for others, nor what the file system below can't give.
fn available(live: &Live, info: &PoolInfo) -> u64 {
    let usable = live.below(&info.members).map_or(info.free_bytes, |below| below.usable(info.free_bytes));
    usable.saturating_sub(info.reserved_bytes).saturating_sub(info.heartbeat_reserve_bytes)
}

/// In whole threshold sets, so that small changes are none.
fn space_of(info: &PoolInfo, available: u64, threshold_percent: u8) -> PoolSpace {
    let available_bytes = available - available % THRESHOLD_SET_BYTES;
    PoolSpace {
        used_bytes: info.data_bytes.saturating_sub(available_bytes),
        available_bytes,
        threshold_percent,
    }
}

/// Nine tenths of the memory for maps are used.
fn are_maps_short(info: &PoolInfo) -> bool {
    u128::from(info.map_memory_bytes) * 10 >= u128::from(info.map_memory_max_bytes) * 9
}

fn is_low(space: PoolSpace) -> bool {
    let all = u128::from(space.used_bytes) + u128::from(space.available_bytes);
    u128::from(space.used_bytes) * 100 >= all * u128::from(space.threshold_percent)
}
