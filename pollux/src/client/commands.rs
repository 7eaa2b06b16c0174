//! Each command's requests.

use super::Stop;
use super::http::{Api, encoded};
use super::show::{self, print};
use crate::args::{
    Daemon, Lun, LunAction, Pool, PoolAction, Snapshot, SnapshotAction, SnapshotName, Volume, VolumeAction,
};
use crate::control::api;
use crate::mistake::Mistake;
use crate::spec::Device;
use std::io::Write;

/// Where the daemon finds a device, whatever its own working directory.
fn device(device: &Device) -> Result<api::DeviceSpec, Stop> {
    let path = std::path::absolute(&device.path).map_err(|error| {
        let what = format!("the working directory can't be found: {error}");
        Stop::Refused(Mistake::new(what, "write the device's whole path from / on"))
    })?;
    Ok(api::DeviceSpec { path, size_bytes: device.bytes })
}

fn devices(all: &[Device]) -> Result<Vec<api::DeviceSpec>, Stop> {
    all.iter().map(device).collect()
}

pub(super) fn pool(
    Pool { daemon: Daemon { socket, json }, action }: Pool,
    out: &mut dyn Write,
) -> Result<(), Stop> {
    let at = |name: &str| format!("/v1/pools/{}", encoded(name));
    match action {
        PoolAction::Create { name, devices: named } => {
            let body = api::PoolCreate { name, devices: devices(&named)? };
            print(out, json, &Api::connect(&socket)?.post::<api::Pool>("/v1/pools", &body)?)
        }
        PoolAction::List => print(out, json, &Api::connect(&socket)?.get::<api::Pools>("/v1/pools")?),
        PoolAction::Grow { name, devices: named } => {
            let body = api::PoolGrow { devices: devices(&named)? };
            let path = format!("{}/grow", at(&name));
            print(out, json, &Api::connect(&socket)?.post::<api::Pool>(&path, &body)?)
        }
        PoolAction::Delete { name, force } => {
            let path = format!("{}?force={force}", at(&name));
            print(out, json, &Api::connect(&socket)?.delete::<api::Deleted>(&path)?)
        }
    }
}

/// The pool that is meant: the one that is named, or the only one.
fn meant(api: &mut Api, named: Option<String>) -> Result<String, Stop> {
    if let Some(name) = named {
        return Ok(name);
    }
    let api::Pools { pools } = api.get("/v1/pools")?;
    let names: Vec<String> = pools.into_iter().map(|pool| pool.name).collect();
    match &names[..] {
        [only] => Ok(only.clone()),
        [] => {
            let cure = "make one: `pollux pool create NAME DEVICE[:SIZE]`";
            Err(Stop::Refused(Mistake::new("there is no pool", cure)))
        }
        _ => {
            let what = format!("there are {} pools", names.len());
            Err(Stop::Usage(Mistake::new(what, format!("say which with --pool: {}", names.join(", ")))))
        }
    }
}

fn volumes_path(pool: &str) -> String {
    format!("/v1/pools/{}/volumes", encoded(pool))
}

fn volume_path(pool: &str, volume: &str, tail: &str) -> String {
    format!("{}/{}{tail}", volumes_path(pool), encoded(volume))
}

fn provision(thin: bool, thick: bool) -> Option<api::Provision> {
    match (thin, thick) {
        (_, true) => Some(api::Provision::Thick),
        (true, false) => Some(api::Provision::Thin),
        (false, false) => None,
    }
}

pub(super) fn volume(
    Volume { daemon: Daemon { socket, json }, pool, action }: Volume,
    out: &mut dyn Write,
) -> Result<(), Stop> {
    let mut api = Api::connect(&socket)?;
    let pool = meant(&mut api, pool.pool)?;
    let changed: api::Volume = match action {
        VolumeAction::List { usage } => {
            let walk = if usage { "?walk=true" } else { "" };
            let path = format!("{}{walk}", volumes_path(&pool));
            return print(out, json, &api.get::<api::Volumes>(&path)?);
        }
        VolumeAction::Delete { name, force } => {
            let path = volume_path(&pool, &name, &format!("?force={force}"));
            return print(out, json, &api.delete::<api::Deleted>(&path)?);
        }
        VolumeAction::Create { name, size, thin, thick, block, physical, zero, writeback } => {
            let body = api::VolumeCreate {
                name,
                size_bytes: size,
                provisioning: provision(thin, thick).unwrap_or(api::Provision::Thin),
                block_bytes: block,
                physical_block_bytes: physical,
                zero_detect: zero,
                write_cache: writeback,
            };
            api.post(&volumes_path(&pool), &body)?
        }
        VolumeAction::Resize { name, size, shrink, force } => {
            let body = api::VolumeResize { size_bytes: size, shrink, force };
            api.post(&volume_path(&pool, &name, "/resize"), &body)?
        }
        VolumeAction::Clone { snapshot, name, thin, thick } => {
            let SnapshotName { volume, snapshot } = snapshot;
            let body = api::SnapshotClone { name, provisioning: provision(thin, thick) };
            let tail = format!("/snapshots/{}/clone", encoded(&snapshot));
            api.post(&volume_path(&pool, &volume, &tail), &body)?
        }
        VolumeAction::Rollback { snapshot: SnapshotName { volume, snapshot }, force } => {
            let body = api::VolumeRollback { snapshot, force };
            api.post(&volume_path(&pool, &volume, "/rollback"), &body)?
        }
        VolumeAction::Set { name, zero } => {
            api.patch(&volume_path(&pool, &name, ""), &api::VolumeSet { zero_detect: zero })?
        }
    };
    print(out, json, &changed)
}

pub(super) fn snapshot(
    Snapshot { daemon: Daemon { socket, json }, pool, action }: Snapshot,
    out: &mut dyn Write,
) -> Result<(), Stop> {
    let mut api = Api::connect(&socket)?;
    let pool = meant(&mut api, pool.pool)?;
    match action {
        SnapshotAction::Create { snapshot: SnapshotName { volume, snapshot } } => {
            let path = volume_path(&pool, &volume, "/snapshots");
            let made = api.post::<api::Snapshot>(&path, &api::SnapshotCreate { name: snapshot })?;
            print(out, json, &made)
        }
        SnapshotAction::List { volume } => {
            let of = volume.map(|volume| format!("?volume={}", encoded(&volume))).unwrap_or_default();
            let path = format!("/v1/pools/{}/snapshots{of}", encoded(&pool));
            print(out, json, &api.get::<api::Snapshots>(&path)?)
        }
        SnapshotAction::Delete { snapshot: SnapshotName { volume, snapshot } } => {
            let tail = format!("/snapshots/{}", encoded(&snapshot));
            print(out, json, &api.delete::<api::Deleted>(&volume_path(&pool, &volume, &tail))?)
        }
        SnapshotAction::Diff { from, to } => {
            let (from, to) = (encoded(&from.to_string()), encoded(&to));
            let path = format!("/v1/pools/{}/diff?from={from}&to={to}", encoded(&pool));
            diff(&mut api, &path, show::DiffPrinter::new(out, json))
        }
    }
}

/// Asks for part after part, and prints each as it comes: a diff may have more extents than memory should hold.
fn diff(api: &mut Api, path: &str, mut printer: show::DiffPrinter<'_>) -> Result<(), Stop> {
    let mut next = Some(0);
    while let Some(from_bytes) = next {
        let part: api::Diff = api.get(&format!("{path}&from_bytes={from_bytes}"))?;
        printer.part(&part.extents)?;
        next = part.next_bytes;
        if next.is_some_and(|next| next <= from_bytes) {
            let what = format!("the daemon's diff goes back from byte {from_bytes}");
            return Err(Stop::Refused(Mistake::new(what, "report it")));
        }
    }
    printer.end()
}

pub(super) fn lun(
    Lun { daemon: Daemon { socket, json }, action }: Lun,
    out: &mut dyn Write,
) -> Result<(), Stop> {
    let mut api = Api::connect(&socket)?;
    match action {
        LunAction::Map { volume, pool, lun, target, ro, removable } => {
            let pool = meant(&mut api, pool)?;
            let body = api::LunMap { pool, volume, target, lun, read_only: ro, removable };
            print(out, json, &api.post::<api::Lun>("/v1/luns", &body)?)
        }
        LunAction::Unmap { lun, target, force } => {
            let target = match target {
                Some(target) => target,
                None => only_target(api.get::<api::About>("/v1")?.targets)?,
            };
            let path = format!("/v1/targets/{}/luns/{lun}?force={force}", encoded(&target));
            print(out, json, &api.delete::<api::Unmapped>(&path)?)
        }
        LunAction::List => print(out, json, &api.get::<api::Luns>("/v1/luns")?),
    }
}

fn only_target(mut targets: Vec<String>) -> Result<String, Stop> {
    match targets.pop() {
        Some(only) if targets.is_empty() => Ok(only),
        last => {
            targets.extend(last);
            let what = format!("there are {} targets", targets.len());
            Err(Stop::Usage(Mistake::new(what, format!("say which with --target: {}", targets.join(", ")))))
        }
    }
}
