//! Non-blocking TCP: listeners and streams, as thin as they can be. Nothing here waits, retries or remembers; who
//! would block is told so, and asks the ring to watch.

use crate::pin;
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketFlags, SocketType,
};
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Connections that the kernel keeps until we accept them. It caps this at net.core.somaxconn.
const BACKLOG: i32 = 1024;

/// How sockets are set up. The kernel sizes their buffers itself unless told here: a fixed size switches its
/// tuning off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketConfig {
    /// TCP keep-alive, for peers that vanish while no PDU is due.
    pub keepalive: Option<Keepalive>,
    /// SO_SNDBUF, in bytes.
    pub send_buffer_bytes: Option<usize>,
    /// SO_RCVBUF, in bytes.
    pub receive_buffer_bytes: Option<usize>,
    /// SO_BUSY_POLL, in microseconds: a receive that finds nothing polls the network card's queue.
    pub busy_poll_us: Option<u32>,
}

impl Default for SocketConfig {
    fn default() -> SocketConfig {
        SocketConfig {
            keepalive: Some(Keepalive::default()),
            send_buffer_bytes: None,
            receive_buffer_bytes: None,
            busy_poll_us: None,
        }
    }
}

/// When a silent connection is probed, and given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe; whole seconds.
    pub idle: Duration,
    /// Between probes; whole seconds.
    pub interval: Duration,
    /// Unanswered probes before the connection is dead.
    pub probes: u32,
}

impl Default for Keepalive {
    fn default() -> Keepalive {
        Keepalive { idle: Duration::from_secs(30), interval: Duration::from_secs(10), probes: 3 }
    }
}

/// What a receive or send moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// So many bytes, at least one.
    Bytes(usize),
    /// None: it would block.
    Blocked,
    /// None, and none will come: the peer has finished sending. Receives only.
    End,
}

/// Why a socket can't listen.
#[derive(Debug)]
pub struct ListenError {
    /// Where it should have.
    pub address: SocketAddr,
    /// The call that failed.
    pub call: &'static str,
    /// How.
    pub error: io::Error,
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ListenError { address, call, error } = self;
        write!(f, "can't listen on {address}: {call}: {error}")?;
        match Errno::from_io_error(error) {
            Some(Errno::ADDRINUSE) => {
                write!(f, "; another program listens there, or on all addresses of that port")
            }
            Some(Errno::ADDRNOTAVAIL) => write!(f, "; no interface of this machine has that address"),
            Some(Errno::ACCESS) => write!(f, "; ports below 1024 need CAP_NET_BIND_SERVICE"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for ListenError {}

/// Why no connection could be accepted. None of these ends the listener.
#[derive(Debug)]
pub enum AcceptError {
    /// File descriptors are used up (EMFILE, ENFILE). The connection stays in the kernel's queue and the
    /// listener stays ready, so wait (say 100 ms) before asking again.
    Descriptors {
        /// This process's limit, RLIMIT_NOFILE; otherwise the machine's, fs.file-max.
        of_process: bool,
    },
    /// No memory for a socket (ENOBUFS, ENOMEM). Wait, too.
    Memory,
    /// Anything else.
    Other(io::Error),
}

impl fmt::Display for AcceptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AcceptError::Descriptors { of_process: true } => {
                write!(
                    f,
                    "no file descriptor is left for a connection: raise RLIMIT_NOFILE (LimitNOFILE=, ulimit -n)"
                )
            }
            AcceptError::Descriptors { of_process: false } => {
                write!(
                    f,
                    "the machine has no file descriptor left for a connection: raise the sysctl fs.file-max"
                )
            }
            AcceptError::Memory => write!(f, "the kernel has no memory for a connection"),
            AcceptError::Other(error) => write!(f, "accept failed: {error}"),
        }
    }
}

impl std::error::Error for AcceptError {}

/// What [`Listener::accept`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Connections handed over.
    pub count: usize,
    /// Whether the budget ended it, so that more may be waiting.
    pub more: bool,
}

/// A TCP port that we listen on.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    config: SocketConfig,
}

/// The port is free at once, although a ring that watched the socket refers to it until the kernel has taken that ring
/// apart, which may be long after the program's end. (Of a program that is killed nobody says it.)
impl Drop for Listener {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }
}

impl Listener {
    /// Listens on `address`. An IPv6 listener takes no IPv4 connections: each address is one listener.
    ///
    /// # Errors
    /// With the address, what failed and what helps.
    pub fn bind(address: SocketAddr, config: SocketConfig) -> Result<Listener, ListenError> {
        let failed = |call| move |error: Errno| ListenError { address, call, error: error.into() };
        let socket = socket_for(&address).map_err(failed("socket"))?;
        sockopt::set_socket_reuseaddr(&socket, true).map_err(failed("SO_REUSEADDR"))?;
        if address.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, true).map_err(failed("IPV6_V6ONLY"))?;
        }
        // Before listening: the receive buffer decides on the window scale that the handshake offers.
        set_buffers(&socket, &config).map_err(failed("SO_SNDBUF, SO_RCVBUF"))?;
        rustix::net::bind(&socket, &address).map_err(failed("bind"))?;
        rustix::net::listen(&socket, BACKLOG).map_err(failed("listen"))?;
        Ok(Listener { socket, config })
    }

    /// Hands over connections that are waiting, `budget` at most. One that its peer gave up in the meantime
    /// counts too.
    ///
    /// # Errors
    /// What stands in the way of the next one; those before have been handed over.
    pub fn accept(&self, budget: usize, mut take: impl FnMut(Stream)) -> Result<Accepted, AcceptError> {
        let mut count = 0;
        for _ in 0..budget {
            match rustix::net::accept_with(&self.socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(socket) => {
                    let stream = Stream { socket };
                    // A connection that is already dead can't be set up, and can't be served either.
                    if stream.set_up(&self.config).is_ok() {
                        take(stream);
                        count += 1;
                    }
                }
                Err(Errno::AGAIN) => return Ok(Accepted { count, more: false }),
                Err(Errno::MFILE) => return Err(AcceptError::Descriptors { of_process: true }),
                Err(Errno::NFILE) => return Err(AcceptError::Descriptors { of_process: false }),
                Err(Errno::NOBUFS | Errno::NOMEM) => return Err(AcceptError::Memory),
                // Errors of that one connection, which accept passes on (accept(2), "Error handling").
                Err(
                    Errno::CONNABORTED
                    | Errno::INTR
                    | Errno::NETDOWN
                    | Errno::PROTO
                    | Errno::NOPROTOOPT
                    | Errno::HOSTDOWN
                    | Errno::NONET
                    | Errno::HOSTUNREACH
                    | Errno::OPNOTSUPP
                    | Errno::NETUNREACH
                    | Errno::PERM,
                ) => {}
                Err(error) => return Err(AcceptError::Other(error.into())),
            }
        }
        Ok(Accepted { count, more: true })
    }

    /// Where it listens; with the port that the kernel chose if it was asked for port 0.
    ///
    /// # Errors
    /// The kernel's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::try_from(rustix::net::getsockname(&self.socket)?)?)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// One TCP connection. Closed when dropped: give its watches up before.
#[derive(Debug)]
pub struct Stream {
    socket: OwnedFd,
}

impl Stream {
    /// Begins a connection to `address`. It is made when the stream is writable and
    /// [`Stream::connected`] says so.
    ///
    /// # Errors
    /// What failed at once.
    pub fn connect(address: SocketAddr, config: &SocketConfig) -> io::Result<Stream> {
        let stream = Stream { socket: socket_for(&address)? };
        set_buffers(&stream.socket, config)?;
        stream.set_up(config)?;
        match rustix::net::connect(&stream.socket, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(stream),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes over a connection made elsewhere, and makes it non-blocking.
    ///
    /// # Errors
    /// The kernel's.
    pub fn adopt(stream: TcpStream, config: &SocketConfig) -> io::Result<Stream> {
        stream.set_nonblocking(true)?;
        let stream = Stream { socket: OwnedFd::from(stream) };
        stream.set_up(config)?;
        Ok(stream)
    }

    fn set_up(&self, config: &SocketConfig) -> io::Result<()> {
        // A response is complete when it is sent: there is nothing to wait for.
        sockopt::set_tcp_nodelay(&self.socket, true)?;
        if let Some(Keepalive { idle, interval, probes }) = config.keepalive {
            sockopt::set_socket_keepalive(&self.socket, true)?;
            sockopt::set_tcp_keepidle(&self.socket, idle)?;
            sockopt::set_tcp_keepintvl(&self.socket, interval)?;
            sockopt::set_tcp_keepcnt(&self.socket, probes)?;
        }
        if let Some(microseconds) = config.busy_poll_us {
            // More than net.core.busy_read needs CAP_NET_ADMIN. Without it the connection works just as well.
            let _ = pin::set_busy_poll(self.socket.as_fd(), microseconds);
        }
        Ok(())
    }

    /// Whether a connection begun with [`Stream::connect`] is made.
    ///
    /// # Errors
    /// Why it will not be.
    pub fn connected(&self) -> io::Result<bool> {
        if let Err(error) = sockopt::socket_error(&self.socket)? {
            return Err(error.into());
        }
        match rustix::net::getpeername(&self.socket) {
            Ok(_) => Ok(true),
            Err(Errno::NOTCONN) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Receives into `bufs`, in order, as much as is there. With no room in `bufs` it moves no bytes and says
    /// [`Moved::Blocked`].
    ///
    /// # Errors
    /// The connection's end by force (ECONNRESET, ETIMEDOUT and the like).
    pub fn recv(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<Moved> {
        let received = match bufs {
            [buf] if !buf.is_empty() => {
                rustix::net::recv(&self.socket, &mut **buf, RecvFlags::DONTWAIT).map(|(_, received)| received)
            }
            bufs if bufs.iter().any(|buf| !buf.is_empty()) => rustix::io::readv(&self.socket, bufs),
            _ => return Ok(Moved::Blocked),
        };
        match received {
            Ok(0) => Ok(Moved::End),
            Ok(bytes) => Ok(Moved::Bytes(bytes)),
            // A signal came first: as good as nothing there, since whoever asks again or watches finds out.
            Err(Errno::AGAIN | Errno::INTR) => Ok(Moved::Blocked),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends from `bufs`, in order, as much as there is room for. Never raises SIGPIPE.
    ///
    /// # Errors
    /// The connection's end (EPIPE, ECONNRESET, ETIMEDOUT and the like).
    pub fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<Moved> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let sent = match bufs {
            [buf] => rustix::net::send(&self.socket, buf, flags),
            bufs => rustix::net::sendmsg(&self.socket, bufs, &mut SendAncillaryBuffer::default(), flags),
        };
        match sent {
            Ok(0) | Err(Errno::AGAIN | Errno::INTR) => Ok(Moved::Blocked),
            Ok(bytes) => Ok(Moved::Bytes(bytes)),
            Err(error) => Err(error.into()),
        }
    }

    /// Tells the peer that nothing more will be sent. What it sends can still be received.
    ///
    /// # Errors
    /// The kernel's.
    pub fn finish_sending(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(&self.socket, Shutdown::Write)?)
    }

    /// Our address of this connection: the one that the peer used, also when the listener has all addresses.
    ///
    /// # Errors
    /// The kernel's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::try_from(rustix::net::getsockname(&self.socket)?)?)
    }

    /// The peer's address.
    ///
    /// # Errors
    /// The kernel's; ENOTCONN when it is gone already.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        match rustix::net::getpeername(&self.socket)? {
            Some(address) => Ok(SocketAddr::try_from(address)?),
            None => Err(Errno::NOTCONN.into()),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn socket_for(address: &SocketAddr) -> rustix::io::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)
}

fn set_buffers(socket: &OwnedFd, config: &SocketConfig) -> rustix::io::Result<()> {
    if let Some(bytes) = config.send_buffer_bytes {
        sockopt::set_socket_send_buffer_size(socket, bytes)?;
    }
    if let Some(bytes) = config.receive_buffer_bytes {
        sockopt::set_socket_recv_buffer_size(socket, bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn listener(address: &str) -> Listener {
        Listener::bind(address.parse().unwrap(), SocketConfig::default()).unwrap()
    }

    fn accept_one(listener: &Listener) -> Stream {
        let mut accepted = None;
        for _ in 0..1000 {
            listener.accept(1, |stream| accepted = Some(stream)).unwrap();
            if accepted.is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        accepted.expect("a connection within a second")
    }

    fn recv(stream: &Stream, bufs: &mut [IoSliceMut<'_>]) -> Moved {
        for _ in 0..1000 {
            match stream.recv(bufs).unwrap() {
                Moved::Blocked => std::thread::sleep(Duration::from_millis(1)),
                moved => return moved,
            }
        }
        panic!("nothing came within a second");
    }

    /// Goal: a stream's life over both families: nothing there, bytes over several buffers, the end.
    #[test]
    fn receives_and_sends_over_both_families() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = listener(address);
            assert_eq!(listener.accept(4, |_| ()).unwrap(), Accepted { count: 0, more: false });
            let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let stream = accept_one(&listener);
            assert_eq!(stream.peer_addr().unwrap(), peer.local_addr().unwrap());
            assert_eq!(stream.local_addr().unwrap(), peer.peer_addr().unwrap());

            let (mut head, mut tail) = ([0u8; 2], [0u8; 8]);
            assert_eq!(stream.recv(&mut [IoSliceMut::new(&mut head)]).unwrap(), Moved::Blocked);
            assert_eq!(stream.recv(&mut []).unwrap(), Moved::Blocked);
            peer.write_all(b"hello").unwrap();
            let moved = recv(&stream, &mut [IoSliceMut::new(&mut head), IoSliceMut::new(&mut tail)]);
            assert_eq!((moved, &head, &tail[..3]), (Moved::Bytes(5), b"he", &b"llo"[..]));

            assert_eq!(stream.send(&[IoSlice::new(b"wo"), IoSlice::new(b"rld")]).unwrap(), Moved::Bytes(5));
            stream.finish_sending().unwrap();
            let mut all = String::new();
            peer.read_to_string(&mut all).unwrap();
            assert_eq!(all, "world");
            drop(peer);
            assert_eq!(recv(&stream, &mut [IoSliceMut::new(&mut tail)]), Moved::End);
        }
    }

    /// Goal: a peer that doesn't read blocks us and nobody else, and one that is gone is an error, not a signal.
    #[test]
    fn a_full_or_dead_peer_is_a_value() {
        let listener = listener("127.0.0.1:0");
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = accept_one(&listener);
        let block = vec![0u8; 1 << 16];
        let mut sent = 0;
        while let Moved::Bytes(bytes) = stream.send(&[IoSlice::new(&block)]).unwrap() {
            sent += bytes;
            assert!(sent < 1 << 30, "the kernel takes everything");
        }
        drop(peer);
        let failed = (0..1000).find_map(|_| {
            std::thread::sleep(Duration::from_millis(1));
            stream.send(&[IoSlice::new(&block)]).err()
        });
        let kind = failed.expect("an error within a second").kind();
        assert!(matches!(kind, io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset), "{kind}");
    }

    /// Goal: what stands in the way of listening is told with the address and the cure.
    #[test]
    fn a_taken_address_is_named() {
        let first = listener("127.0.0.1:0");
        let address = first.local_addr().unwrap();
        let error = Listener::bind(address, SocketConfig::default()).unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("another program"), "{error}");
        let error = Listener::bind("192.0.2.1:3260".parse().unwrap(), SocketConfig::default()).unwrap_err();
        assert!(error.to_string().contains("no interface"), "{error}");
    }

    /// Goal: a port is free as soon as its listener goes. Method: somebody else refers to the socket, as a ring does.
    #[test]
    fn the_port_is_free_whoever_refers_to_the_socket() {
        let first = listener("127.0.0.1:0");
        let address = first.local_addr().unwrap();
        let held = first.socket.try_clone().unwrap();
        drop(first);
        listener(&address.to_string());
        drop(held);
    }

    /// Goal: an IPv6 listener leaves the same port of IPv4 alone, so that both can be portals.
    #[test]
    fn both_families_can_have_one_port() {
        let six = listener("[::]:0");
        let port = six.local_addr().unwrap().port();
        let four = Listener::bind(SocketAddr::from(([0, 0, 0, 0], port)), SocketConfig::default());
        assert!(four.is_ok(), "{four:?}");
    }

    /// Goal: our side can connect, too, and learns of a refusal.
    #[test]
    fn connects_or_says_why_not() {
        let listener = listener("127.0.0.1:0");
        let address = listener.local_addr().unwrap();
        let stream = Stream::connect(address, &SocketConfig::default()).unwrap();
        let accepted = accept_one(&listener);
        assert!(stream.connected().unwrap());
        assert_eq!(accepted.peer_addr().unwrap(), stream.local_addr().unwrap());
        drop(listener);
        let refused = Stream::connect(address, &SocketConfig::default()).and_then(|stream| {
            std::thread::sleep(Duration::from_millis(50));
            stream.connected()
        });
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
