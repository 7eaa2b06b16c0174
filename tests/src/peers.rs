//! Initiators that run on this machine: qemu's block driver and fio's engine, both on libiscsi.

use crate::process::{cache_root, run, run_well};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// No single run of ours takes longer, on a slow and busy machine.
const LIMIT: Duration = Duration::from_secs(300);

/// A logical unit, as `qemu-img` and `qemu-io` are told of it.
#[derive(Clone, Debug)]
pub struct QemuUnit {
    options: String,
}

impl QemuUnit {
    /// The unit behind a URL; `options` such as `header-digest=CRC32C,user=...` go with it.
    ///
    /// # Panics
    /// If it is not `iscsi://PORTAL/IQN/LUN`.
    pub fn new(url: &str, options: &[&str]) -> QemuUnit {
        let parts: Vec<&str> = url.trim_start_matches("iscsi://").split('/').collect();
        let &[portal, target, lun] = parts.as_slice() else {
            panic!("{url} is no iscsi://PORTAL/IQN/LUN");
        };
        let mut all = format!("driver=iscsi,transport=tcp,portal={portal},target={target},lun={lun}");
        for option in options {
            all = format!("{all},{option}");
        }
        QemuUnit { options: all }
    }

    /// Runs `qemu-io` commands on the unit, in order.
    ///
    /// # Panics
    /// If one fails, or reads other bytes than its pattern says.
    pub fn io(&self, commands: &[&str]) -> String {
        let output = run_well("qemu-io", &self.io_arguments(commands), LIMIT);
        // A verification that fails leaves the exit status alone.
        assert!(!output.contains("verification failed"), "qemu-io {commands:?}:\n{output}");
        output
    }

    /// Runs `qemu-io` commands that must not succeed, and returns what it says.
    ///
    /// # Panics
    /// If they do.
    pub fn io_fails(&self, commands: &[&str]) -> String {
        let finished = run("qemu-io", &self.io_arguments(commands), LIMIT);
        assert!(!finished.end.is_success(), "qemu-io {commands:?} went well:\n{}", finished.text);
        finished.text
    }

    fn io_arguments(&self, commands: &[&str]) -> Vec<String> {
        let mut arguments = vec!["--image-opts".to_owned(), self.options.clone()];
        for command in commands {
            arguments.extend(["-c".to_owned(), (*command).to_owned()]);
        }
        arguments
    }

    /// `--image-opts` for `qemu-img`.
    pub fn image_options(&self) -> &str {
        &self.options
    }
}

/// Runs `qemu-img`.
///
/// # Panics
/// If it fails.
pub fn qemu_img(arguments: &[&str]) -> String {
    let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    run_well("qemu-img", &arguments, LIMIT)
}

/// fio with its libiscsi engine.
///
/// # Panics
/// If nobody has built it.
pub fn fio_program() -> PathBuf {
    let program = cache_root().join("fio/fio");
    assert!(program.exists(), "no {}: tests/fio/build makes it", program.display());
    program
}

/// Runs one fio job on a unit; `options` without their dashes, such as `rw=randwrite`.
///
/// # Panics
/// If fio fails, or reads other bytes than it wrote.
pub fn fio(url: &str, options: &[&str]) -> String {
    let mut arguments = vec![
        "--name=job".to_owned(),
        "--ioengine=libiscsi".to_owned(),
        // fio takes a colon as the end of a file's name.
        format!("--filename={}", url.replace(':', "\\:")),
        "--thread=1".to_owned(),
        "--randrepeat=0".to_owned(),
        "--verify_fatal=1".to_owned(),
        "--output-format=normal".to_owned(),
    ];
    arguments.extend(options.iter().map(|option| format!("--{option}")));
    let output = run_well(&fio_program().display().to_string(), &arguments, LIMIT);
    assert!(output.contains("err= 0"), "fio {arguments:?}:\n{output}");
    output
}

/// Writes `bytes` bytes that no compression and no block-sized comparison takes for others: a counter in every
/// eight, mixed by `seed`.
///
/// # Panics
/// If the file can't be written.
pub fn write_noise(path: &Path, bytes: usize, seed: u64) {
    let mut state = seed;
    let mut next = || {
        // SplitMix64: every state gives another word.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).to_le_bytes()
    };
    let mut data = Vec::with_capacity(bytes + 8);
    while data.len() < bytes {
        data.extend(next());
    }
    data.truncate(bytes);
    std::fs::write(path, data).expect("the scratch directory takes a file");
}
