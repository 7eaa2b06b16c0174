//! `bench ats`: four sessions of COMPARE AND WRITE, alone and beside one that keeps 32 offloads under way.
//!
//! The target tells no device time of a command. On a file the device's own durable writes are therefore measured at
//! the same time, by a thread of its own, and quantile is subtracted from quantile: an estimate, shown with both.

use super::client::{Lane, run as run_lanes};
use super::encode::{self, Pieces};
use super::rig::{Durable, Rig};
use super::{Rows, is_in_memory};
use crate::args::{AtsArgs, positive_seconds};
use crate::failure::{Context, Failure};
use hdrhistogram::Histogram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const SESSIONS: usize = 4;
const DEPTH: usize = 32;
const MIB: u64 = 1 << 20;
/// Between the device's own writes, so that they don't become its load.
const PAUSE: Duration = Duration::from_millis(1);
const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];
const BAR_US: f64 = 5000.0;

pub(super) fn run(rig: &mut Rig, args: &AtsArgs, rows: &mut Rows) -> Result<(), Failure> {
    let time = positive_seconds("--time", args.time)?;
    rig.write_image()?;
    // The sessions of COMPARE AND WRITE are the first four.
    for _ in 0..SESSIONS {
        rig.add_session()?;
    }
    let mut blocks = [[0; 512]; SESSIONS];
    let (idle, idle_device, _) = phase(rig, time, false, &mut blocks)?;
    let (loaded, device, commands) = phase(rig, time, true, &mut blocks)?;
    let us = |histogram: &Histogram<u64>, quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
    for (name, histogram) in [
        ("COMPARE AND WRITE, idle", &idle),
        ("COMPARE AND WRITE, loaded", &loaded),
        ("the device's durable write, idle", &idle_device),
        ("the device's durable write, loaded", &device),
    ] {
        rows.note(format!("{name}, how many"), histogram.len() as f64, "");
        for (quantile, at) in QUANTILES {
            rows.note(format!("{name}, {quantile}"), us(histogram, at), "µs");
        }
    }
    rows.note("offloads that ended beside them", commands as f64, "");
    if rows.pool == "ram" {
        rows.at_most("p99.9, loaded ÷ idle", us(&loaded, 0.999) / us(&idle, 0.999), "", 3.0);
        rows.at_most("max, loaded", us(&loaded, 1.0), "µs", BAR_US);
    } else {
        for (quantile, at) in QUANTILES {
            let own = (us(&loaded, at) - us(&device, at)).max(0.0);
            rows.at_most(format!("the target's own part, {quantile} less {quantile}"), own, "µs", BAR_US);
        }
    }
    Ok(())
}

/// Latencies of COMPARE AND WRITE and of the device, and how many offloads ended.
fn phase(
    rig: &mut Rig,
    time: Duration,
    loaded: bool,
    blocks: &mut [[u8; 512]; SESSIONS],
) -> Result<(Histogram<u64>, Histogram<u64>, u64), Failure> {
    let end = Instant::now() + time;
    let (image, naa, timeout, in_memory) = (rig.image, rig.naa, rig.timeout, is_in_memory(&rig.dir));
    let mut lanes = Vec::new();
    for (session, block) in blocks.iter_mut().enumerate() {
        let at = 4 * image + session as u64 * MIB;
        lanes.push(Lane::new(1, move || {
            if Instant::now() >= end {
                return None;
            }
            let expected = *block;
            let count = u64::from_be_bytes(*block.first_chunk()?) + 1;
            block[..8].copy_from_slice(&count.to_be_bytes());
            Some(encode::compare_and_write(at, &expected, block))
        })?);
    }
    let zero: Arc<[u8]> = Arc::from([0; 512]);
    // Images 1 to 3 are copied to, zeroed and unmapped, each one image apart.
    let mut copies = Pieces::endless(image, 3 * image, 4 * MIB, 0);
    let mut zeroes = Pieces::endless(image, 3 * image, MIB, image);
    let mut unmaps = Pieces::endless(image, 3 * image, 16 * MIB, 2 * image);
    let mut turn = 0;
    lanes.push(Lane::new(DEPTH, move || {
        if !loaded || Instant::now() >= end {
            return None;
        }
        turn += 1;
        match turn % 3 {
            0 => copies.next().map(|at| encode::extended_copy(&naa, (at - image) % image, at, 4 * MIB, 1)),
            1 => zeroes.next().map(|at| encode::write_same(at, MIB, Arc::clone(&zero))),
            _ => unmaps.next().map(|at| encode::unmap(at, 16 * MIB)),
        }
    })?);
    let mut durable = Durable::open(&rig.dir)?;
    let stop = AtomicBool::new(false);
    let device = thread::scope(|scope| {
        let device = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                durable.write()?;
                thread::sleep(PAUSE);
            }
            Ok::<_, Failure>(durable.latency.clone())
        });
        let ran = run_lanes(&mut rig.sessions, &mut lanes, timeout, in_memory);
        stop.store(true, Ordering::Relaxed);
        let device = device.join().unwrap_or_else(|_| Err(Failure::new("the device's writer panicked")));
        ran.and(device)
    })?;
    let mut latency = Histogram::new(3).doing("making a histogram")?;
    for lane in &lanes[..SESSIONS] {
        latency.add(&lane.latency).doing("adding histograms")?;
    }
    Ok((latency, device, lanes[SESSIONS].ended))
}
