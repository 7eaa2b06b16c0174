//! The API's thread: takes connections off the socket and serves each within bounds. An ordinary thread with a small
//! runtime of its own; what may wait for a reactor is done on further threads, a few.
//!
//! A client that is slow, greedy or silent loses its own connection and nothing else: heads, bodies and answers have
//! deadlines, connections a number.

use super::api::{ApiError, Kind};
use super::backend::Backend;
use super::operations::Operations;
use super::routes::{LOOKS_MAX, Patience, Shared, router};
use super::socket::{Door, Place};
use crate::mistake::Mistake;
use axum::Router;
use axum::response::IntoResponse;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::future::{Future, poll_fn};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Sleep, sleep};

/// Clients that are served at once.
pub const CONNECTIONS_MAX: usize = 32;
/// Further ones that are told so; still more are hung up on.
pub const TURNED_AWAY_MAX: usize = 32;
/// From accept, or the last answer, to a request's whole head.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// A client that takes none of our bytes for so long is gone.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// A request's head, and what is read ahead of its body.
pub const HEAD_BYTES_MAX: usize = 16 << 10;
/// How long the end of the program waits for requests that are under way.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// After an accept that failed for want of something, until the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The running server.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    stop: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Server {
    /// Serves `backend` behind `door`.
    ///
    /// # Errors
    /// The thread or its runtime can't be made.
    pub fn start(door: Door, backend: Arc<dyn Backend>) -> Result<Server, Mistake> {
        Server::start_with(door, backend, Patience::default())
    }

    /// The same, with other deadlines.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_with(door: Door, backend: Arc<dyn Backend>, patience: Patience) -> Result<Server, Mistake> {
        let failed = |error: io::Error| {
            let cure = "allow the process a few more threads and files (ulimit -u, ulimit -n)";
            Mistake::new(format!("can't start the control API: {error}"), cure)
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // Those that look, the one that changes, and one whose client has gone.
            .max_blocking_threads(LOOKS_MAX + 2)
            .thread_name("pollux-control")
            .build()
            .map_err(failed)?;
        let Door { listener, place } = door;
        let listener = {
            let _inside = runtime.enter();
            UnixListener::from_std(listener).map_err(failed)?
        };
        let path = place.path().to_owned();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("pollux-control".to_owned())
            .spawn(move || run(runtime, listener, place, backend, patience, stopped))
            .map_err(failed)?;
        Ok(Server { path, stop, thread })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes no more requests, lets those under way end for at most [`STOP_TIMEOUT`], removes the socket.
    pub fn stop(self) {
        // An error means that the thread has ended already.
        let _ = self.stop.send(());
        if self.thread.join().is_err() {
            tracing::error!("the control API's thread ended badly");
        }
    }
}

fn run(
    runtime: Runtime,
    listener: UnixListener,
    place: Place,
    backend: Arc<dyn Backend>,
    patience: Patience,
    stopped: oneshot::Receiver<()>,
) {
    let shared = Arc::new(Shared::new(Operations::new(backend), patience));
    let changes = Arc::clone(&shared.changes);
    runtime.block_on(async {
        let graceful = GracefulShutdown::new();
        let clients = Clients {
            graceful,
            router: router(shared),
            busy: Router::new().fallback(turned_away),
            served: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            told: Arc::new(Semaphore::new(TURNED_AWAY_MAX)),
            patience,
        };
        clients.accept_until(&listener, stopped).await;
        drop(listener);
        drop(place);
        let ended = async {
            clients.graceful.shutdown().await;
            // A change whose client has gone is still under way.
            let _ = changes.acquire().await;
        };
        if tokio::time::timeout(STOP_TIMEOUT, ended).await.is_err() {
            tracing::warn!("control requests were still under way at the end");
        }
    });
    runtime.shutdown_background();
}

async fn turned_away() -> impl IntoResponse {
    let what = format!("{CONNECTIONS_MAX} clients are connected already");
    ApiError::new(Kind::Busy, what, "try again in a moment, and use one connection for several requests")
}

struct Clients {
    graceful: GracefulShutdown,
    router: Router,
    busy: Router,
    served: Arc<Semaphore>,
    told: Arc<Semaphore>,
    patience: Patience,
}

impl Clients {
    async fn accept_until(&self, listener: &UnixListener, stopped: oneshot::Receiver<()>) {
        let mut accept = pin!(self.accept(listener));
        let mut stopped = pin!(stopped);
        // The sender gone means that nobody will stop us any other way.
        poll_fn(|cx| match (accept.as_mut().poll(cx), stopped.as_mut().poll(cx)) {
            (Poll::Pending, Poll::Pending) => Poll::Pending,
            _ => Poll::Ready(()),
        })
        .await;
    }

    async fn accept(&self, listener: &UnixListener) {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!("a control connection can't be taken: {error}");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if let Ok(place) = Arc::clone(&self.served).try_acquire_owned() {
                self.serve(stream, &self.router, place);
            } else if let Ok(place) = Arc::clone(&self.told).try_acquire_owned() {
                self.serve(stream, &self.busy, place);
            }
        }
    }

    fn serve(&self, stream: UnixStream, router: &Router, place: OwnedSemaphorePermit) {
        let stream = Patient { stream, patience: self.patience.send, blocked: None };
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.patience.head)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
        let connection = self.graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("a control connection ended: {error}");
            }
            drop(place);
        });
    }
}

/// A stream whose peer has to take some of our bytes within `patience`.
struct Patient {
    stream: UnixStream,
    patience: Duration,
    /// Since the peer takes none.
    blocked: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn bounded<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.blocked = None;
            return poll;
        }
        let blocked = self.blocked.get_or_insert_with(|| Box::pin(sleep(self.patience)));
        match blocked.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.bounded(cx, poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
