//! What is said at the start: what is served, on what, and how to log in. And the one line for programs.

use crate::config::{Config, Lun, LunId, Poll};
use crate::spec::{LunSpec, Size};
use std::fmt;
use std::io::Write;
use std::net::SocketAddr;

/// A unit as hosts see it.
#[derive(Clone, Debug)]
pub struct ServedLun {
    /// LUN number.
    pub number: u16,
    /// Its LUN SPEC.
    pub spec: String,
    /// Capacity.
    pub bytes: u64,
    /// Logical block.
    pub block_bytes: u32,
    /// Physical block.
    pub physical_block_bytes: u32,
    /// Write-protected.
    pub read_only: bool,
    /// Its identity.
    pub id: LunId,
    /// The name that hosts show for it, such as `naa.6...`, once the device server has made it from `id`.
    pub name: Option<String>,
}

impl ServedLun {
    /// The unit as configured, before anything is opened: a file without a SPEC'd size has the size it has now.
    pub fn planned(lun: &Lun, id: LunId) -> ServedLun {
        let LunSpec { backing, block_bytes, physical_block_bytes, read_only, .. } = &lun.spec;
        let now =
            || backing.path().and_then(|path| std::fs::metadata(path).ok()).map_or(0, |file| file.len());
        ServedLun {
            number: lun.number,
            spec: lun.spec.to_string(),
            bytes: backing.bytes().unwrap_or_else(now),
            block_bytes: *block_bytes,
            physical_block_bytes: *physical_block_bytes,
            read_only: *read_only,
            id,
            name: None,
        }
    }
}

/// All that is worth saying. Its `Display` is the start-up text, several lines without a last newline.
#[derive(Clone, Debug)]
pub struct Banner<'a> {
    /// What was asked for.
    pub config: &'a Config,
    /// Where the target listens: the actual ports.
    pub portals: &'a [SocketAddr],
    /// The units, ascending.
    pub luns: &'a [ServedLun],
    /// Each reactor's CPU, core 0 first.
    pub cpus: &'a [u16],
    /// Memory taken at the start over all reactors, `ram` units not counted.
    pub memory_bytes: u64,
}

/// The line that says, in a form that stays, that initiators can log in.
pub fn ready_line(portals: &[SocketAddr]) -> String {
    let portals: Vec<String> = portals.iter().map(ToString::to_string).collect();
    format!("ready: listening on {}", portals.join(", "))
}

/// Writes a line to stdout and flushes it. Whoever closed stdout does not want to know.
pub fn say(text: &dyn fmt::Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

impl fmt::Display for Banner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let iqn = &self.config.target.iqn;
        writeln!(f, "pollux {}", env!("CARGO_PKG_VERSION"))?;
        let alias = self.config.target.alias.as_ref().map(|alias| format!(" ({alias})")).unwrap_or_default();
        writeln!(f, "  target    {iqn}{alias}")?;
        for portal in self.portals {
            writeln!(f, "  portal    {portal}")?;
        }
        for lun in self.luns {
            fmt_lun(f, lun)?;
        }
        self.fmt_reactors(f)?;
        writeln!(f, "  access    {}", self.access())?;
        match self.config.data_memory {
            Some(bytes) => writeln!(f, "  data      {} of memory: gone when pollux ends", Size(bytes))?,
            None => writeln!(f, "  data      {}", self.config.data.display())?,
        }
        writeln!(f, "  control   {}", self.config.socket.display())?;
        self.fmt_login(f)
    }
}

impl Banner<'_> {
    fn fmt_reactors(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpus: Vec<String> = self.cpus.iter().map(ToString::to_string).collect();
        let poll = match self.config.reactors.poll {
            Poll::Busy => "busy: each CPU is fully used, idle or not".to_owned(),
            Poll::Adaptive => {
                format!("adaptive: sleeps after {} us without work", self.config.reactors.spin.as_micros())
            }
        };
        writeln!(f, "  reactors  {} on CPU {}", self.cpus.len(), cpus.join(", "))?;
        writeln!(f, "  polling   {poll}")?;
        writeln!(
            f,
            "  memory    {} in all, {} of IO buffers for each reactor",
            // What rings and mailboxes add is no round number.
            Size(self.memory_bytes.next_multiple_of(1 << 20)),
            Size(self.config.reactors.memory_bytes as u64)
        )
    }

    fn access(&self) -> String {
        let hosts = &self.config.hosts;
        let with_chap = hosts.iter().filter(|host| host.chap.is_some()).count();
        match hosts.len() {
            0 => "any initiator, without CHAP".to_owned(),
            count => format!("{count} initiators, {with_chap} of them with CHAP"),
        }
    }

    /// The commands, with the first portal's address where a host can use it.
    fn fmt_login(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let iqn = &self.config.target.iqn;
        let Some(&portal) = self.portals.first() else {
            return Ok(());
        };
        let address = if portal.ip().is_unspecified() {
            format!("ADDRESS:{}", portal.port())
        } else {
            portal.to_string()
        };
        let lun = self.luns.first().map_or(0, |lun| lun.number);
        // fio takes a bare colon for the end of a file name.
        let url = format!("iscsi://{address}/{iqn}/{lun}").replace(':', "\\:");
        writeln!(f, "\nfrom Linux (open-iscsi):")?;
        writeln!(f, "  iscsiadm -m discovery -t sendtargets -p {address}")?;
        writeln!(f, "  iscsiadm -m node -T {iqn} -p {address} --login")?;
        writeln!(f, "from ESXi (vmhba64 stands for the adapter that the second command lists):")?;
        writeln!(f, "  esxcli iscsi software set --enabled=true")?;
        writeln!(f, "  esxcli iscsi adapter list")?;
        writeln!(f, "  esxcli iscsi adapter discovery sendtarget add --adapter=vmhba64 --address={address}")?;
        writeln!(f, "  esxcli storage core adapter rescan --adapter=vmhba64")?;
        writeln!(f, "with fio:")?;
        write!(
            f,
            "  fio --name=pollux --ioengine=libiscsi --rw=randread --bs=4k --iodepth=32 --runtime=10 --time_based \
             --filename='{url}'"
        )?;
        if portal.ip().is_unspecified() {
            write!(f, "\nADDRESS is one of this machine's own.")?;
        }
        if self.portals.iter().all(|portal| portal.ip().is_loopback()) {
            write!(f, "\nOther machines can't log in: give --listen 0.0.0.0:{} to let them.", portal.port())?;
        }
        if self.config.hosts.iter().any(|host| host.chap.is_some()) {
            write!(f, "\nCHAP: give the initiator its user and secret before it logs in.")?;
        }
        Ok(())
    }
}

fn fmt_lun(f: &mut fmt::Formatter<'_>, lun: &ServedLun) -> fmt::Result {
    let name = lun.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
    let read_only = if lun.read_only { ", read-only" } else { "" };
    writeln!(
        f,
        "  LUN {:<5} {}, blocks of {} on {}{read_only}, id {}{name}\n            {}",
        lun.number,
        Size(lun.bytes),
        lun.block_bytes,
        lun.physical_block_bytes,
        lun.id,
        lun.spec,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn text(portals: &[&str]) -> String {
        let config = Config::embedded(Path::new("/srv/me"));
        let portals: Vec<SocketAddr> = portals.iter().map(|portal| portal.parse().unwrap()).collect();
        let luns = [ServedLun {
            number: 0,
            spec: config.luns[0].spec.to_string(),
            bytes: 1 << 40,
            block_bytes: 512,
            physical_block_bytes: 4096,
            read_only: false,
            id: LunId([1; 16]),
            name: Some("naa.6010".to_owned()),
        }];
        Banner {
            config: &config,
            portals: &portals,
            luns: &luns,
            cpus: &[2, 3],
            memory_bytes: (512 << 20) - 5000,
        }
        .to_string()
    }

    /// Goal: the text has every fact, and commands that can be pasted.
    #[test]
    fn tells_all_and_how() {
        let text = text(&["127.0.0.1:3260"]);
        for part in [
            "target    iqn.2026-11.io.pollux:demo",
            "1T, blocks of 512 on 4096, id 01010101-0101-0101-0101-010101010101 naa.6010",
            "\n            thin:1T\n",
            "2 on CPU 2, 3",
            "control   /srv/me/pollux-data/pollux.sock\n",
            "512M in all, 256M of IO buffers",
            "iscsiadm -m node -T iqn.2026-11.io.pollux:demo -p 127.0.0.1:3260 --login",
            "sendtarget add --adapter=vmhba64 --address=127.0.0.1:3260",
            r"--filename='iscsi\://127.0.0.1\:3260/iqn.2026-11.io.pollux\:demo/0'",
            "--listen 0.0.0.0:3260",
        ] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
    }

    /// Goal: a wildcard is not offered as an address to log in to, and IPv6 keeps its brackets.
    #[test]
    fn shows_addresses_that_work() {
        let wildcard = text(&["0.0.0.0:3260", "[::1]:3261"]);
        assert!(wildcard.contains("-p ADDRESS:3260") && wildcard.contains("one of this machine's own"));
        assert!(!wildcard.contains("Other machines"));
        assert!(text(&["[::1]:3260"]).contains("-t sendtargets -p [::1]:3260"));
    }

    /// Goal: the line that tests and scripts wait for keeps its form.
    #[test]
    fn ready_line_keeps_its_form() {
        let portals = ["127.0.0.1:3260".parse().unwrap(), "[::1]:4000".parse().unwrap()];
        assert_eq!(ready_line(&portals[..1]), "ready: listening on 127.0.0.1:3260");
        assert_eq!(ready_line(&portals), "ready: listening on 127.0.0.1:3260, [::1]:4000");
    }
}
