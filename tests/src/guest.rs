//! The Linux guest: an emulated machine with Debian's kernel and its own iSCSI initiator, told what to do script by
//! script, so that a test can stop and start its target in between.
//!
//! Made by `tests/guest/build`; `tests/guest/init` is the other end of the line. In the guest, 10.0.2.2 is this
//! machine's 127.0.0.1. Emulation (TCG) is always used: it starts in seconds everywhere, while a KVM that is there
//! may be of no use.

use crate::process::{Process, cache_root, scratch_root};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// From start to the first script, on a slow and busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// How much later than a script's own limit its answer may come.
const ANSWER_GRACE: Duration = Duration::from_secs(30);
/// No script of ours says more.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// What every script can use.
const FUNCTIONS: &str = include_str!("../guest/functions");

/// A running guest.
#[derive(Debug)]
pub struct Guest {
    line: BufReader<UnixStream>,
    process: Process,
    console: PathBuf,
    _dir: TempDir,
}

/// What came of a script.
#[derive(Debug)]
pub struct Answer {
    /// Its exit status; 124 if it took too long.
    pub status: i32,
    /// What it wrote.
    pub text: String,
}

impl Guest {
    /// Boots the guest and waits until it takes scripts.
    ///
    /// # Panics
    /// If there is none, or it does not come up, with the end of its console.
    pub fn boot() -> Guest {
        Guest::boot_with(&[])
    }

    /// The same with more of qemu's options, each without its dash.
    ///
    /// # Panics
    /// As there.
    pub fn boot_with(more: &[(&str, String)]) -> Guest {
        let image = cache_root().join("guest");
        assert!(image.join("stamp").exists(), "no guest in {}: tests/guest/build makes it", image.display());
        // The socket's path must be short, so it is not below the target directory.
        let dir = TempDir::new().expect("a directory for the socket");
        let socket = dir.path().join("agent");
        let console = dir.path().join("console");
        let file = |name: &str| image.join(name).display().to_string();
        let mut arguments: Vec<String> = Vec::new();
        let mut option = |name: &str, value: String| arguments.extend([format!("-{name}"), value]);
        option("machine", "q35,usb=off,vmport=off".to_owned());
        option("accel", "tcg,thread=multi".to_owned());
        // Five levels of page tables are only slower to emulate.
        option("cpu", "max,la57=off".to_owned());
        option("smp", "2".to_owned());
        option("m", "768".to_owned());
        option("display", "none".to_owned());
        option("kernel", file("kernel"));
        option("initrd", file("initrd"));
        option(
            "append",
            "console=ttyS0 quiet panic=-1 mitigations=off nopti net.ifnames=0 nowatchdog".to_owned(),
        );
        option("serial", format!("file:{}", console.display()));
        option("drive", format!("if=virtio,format=raw,snapshot=on,cache=unsafe,file={}", file("root.img")));
        option("netdev", "user,id=net,ipv6=off".to_owned());
        option("device", "virtio-net-pci,netdev=net,romfile=".to_owned());
        option("device", "virtio-rng-pci".to_owned());
        option("device", "virtio-serial-pci".to_owned());
        option("chardev", format!("socket,id=agent,server=on,wait=off,path={}", socket.display()));
        option("device", "virtserialport,chardev=agent,name=agent".to_owned());
        for (name, value) in more {
            option(name, value.clone());
        }
        arguments.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned));
        let scratch = scratch_root().display().to_string();
        let output = dir.path().join("qemu.log");
        let mut process = Process::start("qemu-system-x86_64", &arguments, &[("TMPDIR", &scratch)], &output);
        let deadline = Instant::now() + BOOT_LIMIT;
        let stream = loop {
            if let Ok(stream) = UnixStream::connect(&socket) {
                break stream;
            }
            if let Some(status) = process.try_end() {
                panic!("qemu ended with {status}:\n{}", process.text());
            }
            assert!(Instant::now() < deadline, "qemu does not start:\n{}", process.text());
            sleep(Duration::from_millis(10));
        };
        let mut guest = Guest { line: BufReader::new(stream), process, console, _dir: dir };
        let first = guest.read_line(BOOT_LIMIT);
        assert_eq!(first, "ready", "the guest's first word");
        guest
    }

    /// Runs a bash script as root; `tests/guest/functions` come before it. Ends it after `limit`.
    ///
    /// # Panics
    /// If the guest does not answer.
    pub fn run(&mut self, limit: Duration, script: &str) -> Answer {
        let script = format!("{FUNCTIONS}\n{script}\n");
        let head = format!("{} {}\n", limit.as_secs(), script.len());
        let line = self.line.get_mut();
        line.write_all(head.as_bytes())
            .and_then(|()| line.write_all(script.as_bytes()))
            .expect("the guest listens");
        let answer = self.read_line(limit + ANSWER_GRACE);
        let (status, bytes) = answer.split_once(' ').expect("an answer is STATUS BYTES");
        let status = status.parse().expect("a status is a number");
        let bytes: usize = bytes.parse().expect("a length is a number");
        assert!(bytes <= ANSWER_BYTES_MAX, "a script said {bytes} bytes");
        let mut text = vec![0; bytes];
        self.line.read_exact(&mut text).expect("the guest says what it announced");
        Answer { status, text: String::from_utf8_lossy(&text).into_owned() }
    }

    fn read_line(&mut self, limit: Duration) -> String {
        self.line.get_ref().set_read_timeout(Some(limit)).expect("a socket takes a time-out");
        let mut line = String::new();
        match self.line.read_line(&mut line) {
            Ok(bytes) if bytes > 0 => line.trim_end().to_owned(),
            other => panic!(
                "no word from the guest ({other:?}); qemu: {:?} {}\nits console ended with:\n{}",
                self.process.try_end(),
                self.process.text(),
                self.console_end()
            ),
        }
    }

    fn console_end(&self) -> String {
        let console = std::fs::read(&self.console).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let lines: Vec<&str> = console.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }
}
