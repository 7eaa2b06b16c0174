//! Requests to the daemon: HTTP/1.1 over its Unix socket, one connection a command, every wait with a deadline.

use super::Stop;
use crate::control::api::{ApiError, ErrorBody};
use crate::mistake::Mistake;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Write;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// From knocking to being let in.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer may take: making a pool writes its journals.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);
/// An answer's bytes: 65,536 snapshots fit.
pub(super) const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A connection to the daemon.
pub(super) struct Api {
    runtime: Runtime,
    sender: SendRequest<Full<Bytes>>,
    socket: PathBuf,
}

impl Api {
    /// Connects.
    pub(super) fn connect(socket: &Path) -> Result<Api, Stop> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
                let cure = "allow the process a few more files (ulimit -n)";
                Stop::Refused(Mistake::new(format!("can't talk to a socket: {error}"), cure))
            })?;
        let connecting = async {
            let stream = UnixStream::connect(socket).await.map_err(|error| not_reached(socket, &error))?;
            let shaken = handshake(TokioIo::new(stream)).await;
            let (sender, connection) = shaken.map_err(|error| not_answered(socket, &error.to_string()))?;
            // Its end is seen by whoever waits for an answer.
            tokio::spawn(async move { drop(connection.await) });
            Ok(sender)
        };
        // A deadline is made inside the runtime.
        let connected = runtime.block_on(async { timeout(CONNECT_TIMEOUT, connecting).await });
        let sender = connected.unwrap_or_else(|_| Err(not_answered(socket, "it takes no connection")))?;
        Ok(Api { runtime, sender, socket: socket.to_owned() })
    }

    pub(super) fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Stop> {
        self.ask(Method::GET, path, Bytes::new())
    }

    pub(super) fn delete<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Stop> {
        self.ask(Method::DELETE, path, Bytes::new())
    }

    pub(super) fn post<T: DeserializeOwned>(&mut self, path: &str, body: &impl Serialize) -> Result<T, Stop> {
        let body = written(body)?;
        self.ask(Method::POST, path, body)
    }

    pub(super) fn patch<T: DeserializeOwned>(
        &mut self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Stop> {
        let body = written(body)?;
        self.ask(Method::PATCH, path, body)
    }

    fn ask<T: DeserializeOwned>(&mut self, method: Method, path: &str, body: Bytes) -> Result<T, Stop> {
        let socket = &self.socket;
        let failed = |error: &dyn std::fmt::Display| not_answered(socket, &error.to_string());
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "pollux")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| failed(&error))?;
        let asking = async {
            let answer = self.sender.send_request(request).await.map_err(|error| failed(&error))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            Ok((status, body.map_err(|error| failed(&error))?.to_bytes()))
        };
        let asked = self.runtime.block_on(async { timeout(ANSWER_TIMEOUT, asking).await });
        let late = || {
            let what = format!(
                "no answer within {} s: what was asked for may still be done",
                ANSWER_TIMEOUT.as_secs()
            );
            failed(&what)
        };
        let (status, bytes) = asked.unwrap_or_else(|_| Err(late()))?;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|error| no_pollux(socket, &error));
        }
        Err(refused(socket, status, &bytes))
    }
}

/// A request's body. Only a path that isn't UTF-8 can't be written.
fn written(body: &impl Serialize) -> Result<Bytes, Stop> {
    serde_json::to_vec(body).map(Bytes::from).map_err(|error| {
        let cure = "name devices by paths in UTF-8";
        Stop::Usage(Mistake::new(format!("the request can't be written: {error}"), cure))
    })
}

/// A part of a path, or a value after the `?`.
pub(super) fn encoded(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            safe.push(char::from(byte));
        } else {
            // A String takes everything.
            let _ = write!(safe, "%{byte:02X}");
        }
    }
    safe
}

fn refused(socket: &Path, status: StatusCode, bytes: &[u8]) -> Stop {
    match serde_json::from_slice(bytes) {
        Ok(ErrorBody { error: ApiError { what, cure, .. } }) => Stop::Refused(Mistake::new(what, cure)),
        Err(_) => no_pollux(socket, &format!("it answers {status}")),
    }
}

fn not_reached(socket: &Path, error: &std::io::Error) -> Stop {
    let (what, cure) = match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => (
            "no pollux listens there".to_owned(),
            "start it (`pollux serve`), or name its socket with --socket: it prints it as `control` when it starts",
        ),
        ErrorKind::PermissionDenied => {
            ("you may not talk to the pollux there".to_owned(), "become the user that runs it, or root")
        }
        ErrorKind::WouldBlock => ("too many clients wait there".to_owned(), "try again in a moment"),
        _ => (format!("the socket can't be reached: {error}"), "name a pollux's socket with --socket"),
    };
    Stop::Unreachable(Mistake::new(what, cure).at(socket.display().to_string()))
}

fn not_answered(socket: &Path, why: &str) -> Stop {
    let what = format!("the pollux there does not answer: {why}");
    let cure = "see whether it still runs and what its log says, then try again";
    Stop::Unreachable(Mistake::new(what, cure).at(socket.display().to_string()))
}

fn no_pollux(socket: &Path, why: &dyn std::fmt::Display) -> Stop {
    let what = format!("what answers there is no pollux that this one understands: {why}");
    Stop::Unreachable(
        Mistake::new(what, "use the same version, or name another socket with --socket")
            .at(socket.display().to_string()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what people name passes a path whole. Method: everything that could be taken for a separator.
    #[test]
    fn names_pass_paths() {
        assert_eq!(encoded("iqn.2026-11.io.pollux:demo"), "iqn.2026-11.io.pollux%3Ademo");
        assert_eq!(encoded("a/b?c&d%e@f ü"), "a%2Fb%3Fc%26d%25e%40f%20%C3%BC");
    }
}
