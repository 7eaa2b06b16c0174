//! A target with its pool, the sessions to it, an image in its LUN, its counters, and the durable commit beside it.

use super::client::{Lane, Session, run};
use super::encode::{self, Command, Pieces};
use crate::args::{Fill, OffloadArgs};
use crate::failure::{Context, Failure};
use crate::idle::door;
use crate::load::login::{self, Door};
use crate::process::{self, PolluxOptions, Served};
use hdrhistogram::Histogram;
use rustix::fs::OFlags;
use serde_json::Value;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

const CONTROL_TIMEOUT: Duration = Duration::from_secs(60);
const ANSWER_BYTES_MAX: u64 = 16 << 20;
const COMMITS: usize = 1000;
const POOL_BYTES_MAX: u64 = 256 << 30;
pub(super) const CHUNK_BYTES: u64 = 64 << 10;

pub(super) struct Rig {
    /// Before the target, which waits for them to log out.
    pub(super) sessions: Vec<Session>,
    served: Served,
    door: Door,
    pub(super) dir: PathBuf,
    pub(super) image: u64,
    pub(super) fill: Fill,
    pub(super) naa: [u8; 16],
    pub(super) timeout: Duration,
}

impl Rig {
    pub(super) fn start(
        args: &OffloadArgs,
        dir: &Path,
        images: u64,
        timeout: Duration,
    ) -> Result<Rig, Failure> {
        // A pool takes a thousandth of its size for maps at once, which a clone of pointers doesn't need.
        let bytes = args.image * images;
        let pool_bytes = bytes.min(POOL_BYTES_MAX.max(2 * args.image));
        let mut served = process::start_pollux(&PolluxOptions {
            data: None,
            path: args.pollux.clone(),
            cpu: args.target_cpu,
            // As it comes: what the kernel writes for it needs the same CPU.
            poll: args.poll.clone(),
            lun: format!("thin:{}M", pool_bytes >> 20),
            dir: Some(dir.to_owned()),
        })?;
        if bytes > pool_bytes
            && let Some(socket) = &served.socket
        {
            process::resize_volume(args.pollux.as_deref(), socket, "lun0", bytes)?;
        }
        let door = door(served.portal);
        process::wait_for_login(&mut served, &door)?;
        let naa = naa(&door, timeout)?;
        let first = Session::open(&door, 0, 1, timeout)?;
        let (image, fill, dir) = (args.image, args.fill, dir.to_owned());
        Ok(Rig { served, door, dir, image, fill, naa, timeout, sessions: vec![first] })
    }

    pub(super) fn add_session(&mut self) -> Result<(), Failure> {
        let number = self.sessions.len() as u32 + 1;
        self.sessions.push(Session::open(&self.door, 0, number, self.timeout)?);
        Ok(())
    }

    /// Runs `source` on the first session; time, and latencies in ns.
    pub(super) fn stream(
        &mut self,
        depth: usize,
        source: impl FnMut() -> Option<Command>,
    ) -> Result<(Duration, Histogram<u64>), Failure> {
        let mut lanes = [Lane::new(depth, source)?];
        let time = run(&mut self.sessions[..1], &mut lanes, self.timeout, super::is_in_memory(&self.dir))?;
        let [lane] = lanes;
        Ok((time, lane.latency))
    }

    /// What a host would read of 1 MiB of the image.
    pub(super) fn mebibyte(&self) -> Arc<[u8]> {
        let mapped = |at: usize| self.fill == Fill::Full || at as u64 % CHUNK_BYTES < 4096;
        (0..1_usize << 20).map(|at| if mapped(at) { (at % 251 + 1) as u8 } else { 0 }).collect()
    }

    /// Writes the image at the LUN's beginning.
    pub(super) fn write_image(&mut self) -> Result<(), Failure> {
        let whole = self.mebibyte();
        let (step, data) = match self.fill {
            Fill::Full => (1 << 20, whole),
            Fill::Sparse => (CHUNK_BYTES, Arc::from(&whole[..4096])),
        };
        let mut pieces = Pieces::once(0, self.image, step);
        self.stream(32, || pieces.next().map(|at| encode::write(at, Arc::clone(&data))))?;
        Ok(())
    }

    /// Clones the image's range from `from` to `to`; `segments` of `segment_bytes` a command.
    pub(super) fn copy(
        &mut self,
        from: u64,
        to: u64,
        segment_bytes: u64,
        segments: u64,
    ) -> Result<Duration, Failure> {
        let naa = self.naa;
        let mut pieces = Pieces::once(0, self.image, segment_bytes * segments);
        let source = || {
            pieces.next().map(|at| encode::extended_copy(&naa, from + at, to + at, segment_bytes, segments))
        };
        Ok(self.stream(8, source)?.0)
    }

    /// The pool, as the control socket tells it.
    pub(super) fn pool(&self) -> Result<Value, Failure> {
        let socket = self.served.socket.as_ref().ok_or_else(|| Failure::new("no control socket"))?;
        let place = "asking the control socket";
        let mut stream = UnixStream::connect(socket).doing(place)?;
        stream.set_read_timeout(Some(CONTROL_TIMEOUT)).doing(place)?;
        let request = b"GET /v1/pools HTTP/1.1\r\nHost: pollux\r\nConnection: close\r\n\r\n";
        stream.write_all(request).doing(place)?;
        let mut answer = String::new();
        stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).doing(place)?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let mut value: Value = serde_json::from_str(body).doing(place)?;
        Ok(value["pools"][0].take())
    }

    /// p50 of a durable commit in seconds: by a file beside the pool's; and by the target, an overwrite at depth 1
    /// less TEST UNIT READY.
    pub(super) fn commit_seconds(&mut self) -> Result<(f64, f64), Failure> {
        let mut writer = Durable::open(&self.dir)?;
        for _ in 0..COMMITS {
            writer.write()?;
        }
        let data: Arc<[u8]> = Arc::from(&self.mebibyte()[..4096]);
        let mut chunks = Pieces::endless(0, self.image, CHUNK_BYTES, 0).take(COMMITS);
        let (_, over) = self.stream(1, || chunks.next().map(|at| encode::write(at, Arc::clone(&data))))?;
        let mut left = COMMITS;
        let nothing = || {
            left = left.checked_sub(1)?;
            Some(encode::test_unit_ready())
        };
        let (_, idle) = self.stream(1, nothing)?;
        let path = over.value_at_quantile(0.5).saturating_sub(idle.value_at_quantile(0.5));
        Ok((writer.latency.value_at_quantile(0.5) as f64 / 1e9, path as f64 / 1e9))
    }
}

/// A counter, or 0.
pub(super) fn count(pool: &Value, name: &str) -> f64 {
    pool["counts"][name].as_f64().or_else(|| pool[name].as_f64()).unwrap_or(f64::NAN)
}

/// The unit's NAA designator, from page 83h.
fn naa(door: &Door, timeout: Duration) -> Result<[u8; 16], Failure> {
    let (mut link, _) = login::login(door, 0, timeout)?;
    let answer = link.command(0, &[0x12, 1, 0x83, 2, 0, 0], 512)?;
    link.logout()?;
    let mut rest = answer.data.get(4..).unwrap_or_default();
    while let Some(header) = rest.first_chunk::<4>() {
        let bytes = usize::from(header[3]);
        let Some(designator) = rest.get(4..4 + bytes) else { break };
        if header[1] & 0x3F == 3
            && let Ok(naa) = designator.try_into()
        {
            return Ok(naa);
        }
        rest = &rest[4 + bytes..];
    }
    Err(Failure::new("page 83h names the unit by no NAA of 16 bytes"))
}

/// Durable writes of 4 KiB over a file that has its blocks.
pub(super) struct Durable {
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
    next: u64,
    pub(super) latency: Histogram<u64>,
}

impl Durable {
    const BYTES: u64 = 4 << 20;

    pub(super) fn open(dir: &Path) -> Result<Durable, Failure> {
        let path = dir.join(format!("pollux-bench-commit-{}", std::process::id()));
        let place = format!("making {}", path.display());
        let plain = File::create(&path).doing(&place)?;
        plain.write_all_at(&vec![1; Durable::BYTES as usize], 0).doing(&place)?;
        plain.sync_all().doing(&place)?;
        let flags = (OFlags::DIRECT | OFlags::DSYNC).bits() as i32;
        let file = File::options().write(true).custom_flags(flags).open(&path).doing(&place)?;
        let latency = Histogram::new(3).doing("making a histogram")?;
        Ok(Durable { path, file, buffer: vec![1; 8192], next: 0, latency })
    }

    pub(super) fn write(&mut self) -> Result<(), Failure> {
        let at = self.buffer.as_ptr().align_offset(4096);
        let start = Instant::now();
        self.file.write_all_at(&self.buffer[at..at + 4096], self.next).doing("a durable write")?;
        self.latency.record((start.elapsed().as_nanos() as u64).max(1)).doing("recording a latency")?;
        self.next = (self.next + 4096) % Durable::BYTES;
        Ok(())
    }
}

impl Drop for Durable {
    fn drop(&mut self) {
        // Nobody else needs it; it is small.
        let _ = fs::remove_file(&self.path);
    }
}
