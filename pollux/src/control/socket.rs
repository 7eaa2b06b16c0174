//! The Unix socket's path: taken by one process, mode 0600, a dead process's file replaced, a living one's refused.
//!
//! Who holds the lock on `PATH.lock` owns the path; so of two that start at once, and both find a dead socket, only
//! one replaces it. The lock goes with the process, its file stays.

use crate::mistake::Mistake;
use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with, sockopt,
};
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Clients that wait to be accepted: as many as are served, and those that are turned away.
const BACKLOG: i32 = 128;

/// The path, taken: clients may knock.
#[derive(Debug)]
pub struct Door {
    pub(super) listener: UnixListener,
    pub(super) place: Place,
}

/// The socket's file; dropping it removes it.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    /// Holds the lock.
    _lock: File,
}

impl Place {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Whoever comes next replaces it if it stays.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Door {
    /// Takes `path`.
    ///
    /// # Errors
    /// Somebody listens there, something else is there, or the kernel's.
    pub fn open(path: &Path) -> Result<Door, Mistake> {
        let place = path.display().to_string();
        let failed = |what: &str, error: Errno| {
            let cure = "name a path that pollux may make a socket at with --socket, or `socket` in the file";
            Mistake::new(format!("can't {what} the control socket: {error}"), cure).at(place.clone())
        };
        let lock = lock(path)?;
        let address = SocketAddrUnix::new(path).map_err(|errno| failed("name", errno))?;
        clear(path, &address)?;
        let fd = new_socket().map_err(|errno| failed("make", errno))?;
        // The kernel makes the file with the socket's own mode, so it is never open to others, not for a moment.
        fchmod(&fd, Mode::RUSR | Mode::WUSR).map_err(|errno| failed("protect", errno))?;
        bind(&fd, &address).map_err(|errno| failed("make", errno))?;
        let place = Place { path: path.to_owned(), _lock: lock };
        listen(&fd, BACKLOG).map_err(|errno| failed("listen on", errno))?;
        Ok(Door { listener: UnixListener::from(fd), place })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.place.path()
    }
}

/// Non-blocking, as everything that waits here has a bound.
fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn taken(path: &Path, by: &str) -> Mistake {
    let cure = "stop it, or give this one another path with --socket";
    Mistake::new(format!("{by} uses the control socket"), cure).at(path.display().to_string())
}

fn lock(path: &Path) -> Result<File, Mistake> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        let cure = "name a path in a directory that is there and that pollux may write to with --socket";
        Mistake::new(format!("can't {what} the control socket's lock: {error}"), cure)
            .at(Path::new(&name).display().to_string())
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(&name).map_err(|error| failed("make", &error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(taken(path, &listener_of(path))),
        Err(errno) => Err(failed("take", &errno)),
    }
}

/// Makes room at the path: removes the socket of a process that has ended.
fn clear(path: &Path, address: &SocketAddrUnix) -> Result<(), Mistake> {
    let place = path.display().to_string();
    let is_socket = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type().is_socket(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            let what = format!("can't look at the control socket: {error}");
            return Err(Mistake::new(what, "name another path with --socket").at(place));
        }
    };
    if !is_socket {
        let what = "where the control socket should be is something else";
        return Err(Mistake::new(what, "remove it, or name another path with --socket").at(place));
    }
    let knocked = new_socket().and_then(|fd| connect(&fd, address));
    match knocked {
        Err(Errno::CONNREFUSED) => std::fs::remove_file(path).map_err(|error| {
            let what = format!("can't remove the socket of a process that has ended: {error}");
            Mistake::new(what, "remove it, or name another path with --socket").at(place)
        }),
        // A full queue of clients, or no right to join it, are signs of life too.
        Ok(()) | Err(_) => Err(taken(path, &listener_of(path))),
    }
}

/// Who listens there, as far as it can be told.
fn listener_of(path: &Path) -> String {
    let pid = || -> Result<_, Errno> {
        let fd = new_socket()?;
        connect(&fd, &SocketAddrUnix::new(path)?)?;
        Ok(sockopt::socket_peercred(&fd)?.pid.as_raw_nonzero())
    };
    pid().map_or_else(|_| "another process".to_owned(), |pid| format!("process {pid}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;

    /// Goal: the socket is its owner's alone, and goes when it is closed. Method: the mode, with an umask that would
    /// allow more; the file afterwards.
    #[test]
    fn is_private_and_goes() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("s");
        let door = Door::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(UnixStream::connect(&path).is_ok());
        drop(door);
        assert!(!path.exists());
    }

    /// Goal: a dead process's socket is replaced, a living one's isn't, nor is what is no socket. Method: a listener
    /// dropped without removing its file; one that holds the lock, one that doesn't; a regular file.
    #[test]
    fn replaces_the_dead_alone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let door = Door::open(&path).unwrap();
        let own = format!("process {} uses", std::process::id());
        let mistake = Door::open(&path).unwrap_err();
        assert!(mistake.what.contains(&own) && mistake.cure.contains("--socket"), "{mistake}");
        drop(door);
        let foreign = UnixListener::bind(&path).unwrap();
        let mistake = Door::open(&path).unwrap_err();
        assert!(mistake.what.contains(&own), "{mistake}");
        drop(foreign);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert!(Door::open(&path).unwrap_err().what.contains("something else"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        let mistake = Door::open(&root.path().join("none/s")).unwrap_err();
        assert!(mistake.what.contains("can't make") && mistake.cure.contains("directory"), "{mistake}");
    }
}
