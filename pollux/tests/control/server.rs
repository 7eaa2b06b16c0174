//! The API over a real Unix socket: what each path answers, and what clients can't do to it.

use crate::fake::{Fake, TARGET};
use bdev::pool::control::{Against, Refusal};
use pollux::control::api;
use pollux::control::backend::Failure;
use pollux::control::routes::{BODY_BYTES_MAX, LOOKS_MAX, Patience};
use pollux::control::server::{CONNECTIONS_MAX, Server, TURNED_AWAY_MAX};
use pollux::control::socket::Door;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longer than anything takes that works.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(300);

pub(crate) struct Served {
    pub(crate) fake: Arc<Fake>,
    pub(crate) socket: PathBuf,
    server: Option<Server>,
    _root: TempDir,
}

impl Served {
    pub(crate) fn new() -> Served {
        Served::with(Patience::default())
    }

    pub(crate) fn with(patience: Patience) -> Served {
        let root = tempfile::tempdir().unwrap();
        let socket = root.path().join("s");
        let fake = Arc::new(Fake::new());
        let server = Server::start_with(Door::open(&socket).unwrap(), fake.clone(), patience).unwrap();
        Served { fake, socket, server: Some(server), _root: root }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        stream
    }

    /// One request on a connection of its own, its status and document.
    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        parsed(&self.try_ask(method, path, body).unwrap())
    }

    fn try_ask(&self, method: &str, path: &str, body: &str) -> std::io::Result<String> {
        let mut stream = self.connect();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    fn get(&self, path: &str) -> Value {
        let (status, document) = self.ask("GET", path, "");
        assert_eq!(status, 200, "{path}: {document}");
        document
    }

    fn stop(&mut self) {
        self.server.take().unwrap().stop();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop();
        }
    }
}

fn parsed(answer: &str) -> (u16, Value) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    assert!(head.to_lowercase().contains("content-type: application/json"), "{head}");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body:?}")))
}

/// Goal: every path does what it is for, with statuses and documents as docs/control.md shows them. Method: a volume's
/// life, request by request.
#[test]
fn every_path_answers() {
    let served = Served::new();
    let vm1 = "/v1/pools/p/volumes/vm1";
    assert_eq!(served.get("/v1")["targets"], json!([TARGET]));
    assert_eq!(served.get("/v1/pools")["pools"][0]["uuid"], "07070707-0707-0707-0707-070707070707");
    let create =
        json!({"name": "q", "devices": [{"path": "/dev/x"}, {"path": "/srv/y", "size_bytes": 1 << 30}]});
    let (status, pool) = served.ask("POST", "/v1/pools", &create.to_string());
    assert_eq!((status, &pool["members"][1]["size_bytes"]), (201, &json!(1 << 30)));
    let (status, pool) = served.ask("POST", "/v1/pools/q/grow", r#"{"devices": [{"path": "/dev/z"}]}"#);
    assert_eq!((status, pool["members"].as_array().unwrap().len()), (200, 3));
    assert_eq!(served.get("/v1/pools/q")["name"], "q");
    let (status, deleted) = served.ask("DELETE", "/v1/pools/q", "");
    assert_eq!((status, deleted), (200, json!({"deleted": "pool q"})));

    let (status, volume) =
        served.ask("POST", "/v1/pools/p/volumes", r#"{"name": "vm1", "size_bytes": 1099511627776}"#);
    assert_eq!(status, 201);
    for (key, value) in [
        ("pool", json!("p")),
        ("size_bytes", json!(1u64 << 40)),
        ("provisioning", json!("thin")),
        ("block_bytes", json!(512)),
        ("physical_block_bytes", json!(4096)),
        ("zero_detect", json!(true)),
        ("write_cache", json!(false)),
        ("usage", Value::Null),
        ("attached", json!(false)),
    ] {
        assert_eq!(volume[key], value, "{key}");
    }
    let (_, volume) = served.ask("PATCH", vm1, r#"{"zero_detect": false}"#);
    assert_eq!(volume["zero_detect"], false);
    let (status, lun) =
        served.ask("POST", "/v1/luns", r#"{"pool": "p", "volume": "vm1", "read_only": true}"#);
    assert_eq!(
        (status, &lun["lun"], &lun["served"], &lun["source"]),
        (201, &json!(1), &json!(true), &json!("catalog"))
    );
    assert_eq!(served.get("/v1/luns")["luns"][0]["source"], "configuration");
    assert_eq!(served.get(vm1)["attached"], true);
    let (_, volume) = served.ask("POST", &format!("{vm1}/resize"), r#"{"size_bytes": 2199023255552}"#);
    assert_eq!(volume["size_bytes"], 2u64 << 40);
    let (status, snapshot) = served.ask("POST", &format!("{vm1}/snapshots"), r#"{"name": "s1"}"#);
    assert_eq!((status, &snapshot["volume"], &snapshot["name"]), (201, &json!("vm1"), &json!("s1")));
    assert_eq!(served.get("/v1/pools/p/snapshots")["snapshots"].as_array().unwrap().len(), 1);
    assert_eq!(served.get("/v1/pools/p/snapshots?volume=other")["snapshots"], json!([]));
    let (status, clone) = served.ask(
        "POST",
        &format!("{vm1}/snapshots/s1/clone"),
        r#"{"name": "vm2", "provisioning": "thick"}"#,
    );
    assert_eq!((status, &clone["origin"], &clone["provisioning"]), (201, &json!("vm1@s1"), &json!("thick")));
    let part = served.get("/v1/pools/p/diff?from=vm1%40s1&to=vm1");
    assert_eq!(part["extents"][1], json!({"offset_bytes": 8192, "length_bytes": 4096}));
    assert_eq!(part["next_bytes"], 1 << 20);
    let (status, _) = served.ask("POST", &format!("{vm1}/rollback"), r#"{"snapshot": "s1"}"#);
    assert_eq!(status, 200);
    let target = TARGET.replace(':', "%3A");
    let (status, gone) = served.ask("DELETE", &format!("/v1/targets/{target}/luns/1?force=true"), "");
    assert_eq!((status, &gone["unmapped"]["volume"]), (200, &json!("vm1")));
    let (_, deleted) = served.ask("DELETE", &format!("{vm1}/snapshots/s1"), "");
    assert_eq!(deleted["deleted"], "snapshot vm1@s1");
    let (_, deleted) = served.ask("DELETE", &format!("{vm1}?force=false"), "");
    assert_eq!(deleted["deleted"], "volume vm1");
    assert_eq!(served.get("/v1/pools/p/volumes")["volumes"].as_array().unwrap().len(), 1);
}

/// Goal: what is wrong is told as JSON with a fitting status, whatever it is. Method: a table of requests.
#[test]
fn mistakes_are_told() {
    let served = Served::new();
    served.ask("POST", "/v1/pools/p/volumes", r#"{"name": "vm1", "size_bytes": 1099511627776}"#);
    let long = format!("{{\"name\": \"{}\"}}", "x".repeat(BODY_BYTES_MAX));
    let volumes = "/v1/pools/p/volumes";
    for (method, path, body, status, against, says) in [
        ("GET", "/", "", 404, "not_found", "no such path"),
        ("GET", "/v2/pools", "", 404, "not_found", "no such path"),
        ("PUT", "/v1/pools", "", 405, "method", "no such method"),
        ("GET", "/v1/pools/none", "", 404, "not_found", "pool none"),
        ("GET", "/v1/pools/p/volumes/none", "", 404, "not_found", "no volume none"),
        ("POST", volumes, "", 400, "invalid", "not what this path takes"),
        ("POST", volumes, "{\"name\": ", 400, "invalid", "not what this path takes"),
        ("POST", volumes, "[]", 400, "invalid", "not what this path takes"),
        ("POST", volumes, "\u{0}\u{1}", 400, "invalid", "not what this path takes"),
        ("POST", volumes, r#"{"name": "x"}"#, 400, "invalid", "size_bytes"),
        ("POST", volumes, r#"{"name": "x", "size_bytes": "1T"}"#, 400, "invalid", "\"1T\""),
        ("POST", volumes, r#"{"name": "x", "size_bytes": -1}"#, 400, "invalid", "-1"),
        ("POST", volumes, r#"{"name": "x", "size_bytes": 1048576, "sized": 1}"#, 400, "invalid", "sized"),
        (
            "POST",
            volumes,
            r#"{"name": "a@b", "size_bytes": 1048576}"#,
            400,
            "invalid",
            "no name for a volume",
        ),
        ("POST", volumes, r#"{"name": "vm1", "size_bytes": 1048576}"#, 409, "exists", "there already"),
        ("POST", volumes, &long, 413, "too_large", "is over"),
        ("DELETE", "/v1/pools/p?force=maybe", "", 400, "invalid", "follows the ?"),
        ("DELETE", "/v1/pools/p?farce=true", "", 400, "invalid", "farce"),
        ("DELETE", "/v1/pools/p", "", 409, "in_use", "1 volumes"),
        ("GET", "/v1/pools/p/diff?from=a@b", "", 400, "invalid", "to"),
        ("DELETE", "/v1/targets/x/luns/99999", "", 400, "invalid", "path can't be read"),
        ("GET", "/v1/pools/%FF", "", 400, "invalid", "path can't be read"),
        ("POST", "/v1/luns", r#"{"pool": "p", "volume": "vm1", "lun": 70000}"#, 400, "invalid", "70000"),
    ] {
        let (code, document) = served.ask(method, path, body);
        let error: api::ErrorBody = serde_json::from_value(document.clone()).unwrap();
        assert_eq!(code, status, "{method} {path}: {document}");
        assert_eq!(document["error"]["against"], against, "{method} {path}: {document}");
        assert!(error.error.what.contains(says), "{method} {path}: {document}");
        assert!(!error.error.cure.is_empty());
    }
}

/// Goal: each thing that can stand against a request has its status. Method: the next step fails with it.
#[test]
fn refusals_have_their_status() {
    let served = Served::new();
    let refusal = |against| Failure::Refused(Refusal::new(against, "no", "otherwise"));
    for (failure, status, against) in [
        (refusal(Against::NoSpace), 507, "no_space"),
        (refusal(Against::Damaged), 409, "damaged"),
        (refusal(Against::Busy), 503, "busy"),
        (refusal(Against::Device), 500, "device"),
        (Failure::Unanswered("core 0".to_owned()), 504, "unanswered"),
    ] {
        served.fake.state().fail_after = Some((0, failure));
        let (code, document) =
            served.ask("POST", "/v1/pools/p/volumes", r#"{"name": "x", "size_bytes": 1048576}"#);
        assert_eq!((code, &document["error"]["against"]), (status, &json!(against)), "{document}");
    }
}

/// Goal: a request that breaks HTTP costs its connection alone. Method: noise, a head that is too long, an end in the
/// middle of a body; then a good request.
#[test]
fn noise_costs_its_connection() {
    let served = Served::new();
    let head = "POST /v1/pools HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{";
    for bytes in [
        "\u{0}\u{0}\u{0}\r\n\r\n".to_owned(),
        format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20)),
        head.to_owned(),
    ] {
        let mut stream = served.connect();
        // A server that has seen enough hangs up in the middle.
        let _ = stream.write_all(bytes.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert_eq!(served.get("/v1")["program"], "pollux");
}

/// Goal: who is slow is hung up on. Method: patience of a third of a second; a client that says nothing, one that
/// stops in the head, one in the body, one that keeps its connection without using it, one that never reads.
#[test]
fn slow_clients_are_hung_up_on() {
    let patience = Patience { body: SHORT, head: SHORT, send: SHORT, ..Patience::default() };
    let served = Served::with(patience);
    let end = |said: &str| {
        let mut stream = served.connect();
        stream.write_all(said.as_bytes()).unwrap();
        let begun = Instant::now();
        let mut answer = String::new();
        // A reset is an end, too.
        let _ = stream.read_to_string(&mut answer);
        assert!(begun.elapsed() < LONG / 2, "{said:?}");
        answer
    };
    end("");
    end("GET /v1 HTTP/1.1\r\nho");
    let (status, document) =
        parsed(&end("POST /v1/pools HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 9\r\n\r\n{"));
    assert_eq!((status, &document["error"]["against"]), (408, &json!("slow")));
    assert!(end("GET /v1 HTTP/1.1\r\nhost: x\r\n\r\n").contains("200 OK"));

    // 64 KiB an answer, so that what the socket holds is full long before the last.
    for number in 0..200 {
        let name = format!("v{number}-{}", "x".repeat(50));
        served.ask("POST", "/v1/pools/p/volumes", &json!({"name": name, "size_bytes": 1 << 20}).to_string());
    }
    let mut stream = served.connect();
    let many = "GET /v1/pools/p/volumes HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100);
    stream.write_all(many.as_bytes()).unwrap();
    std::thread::sleep(SHORT * 5);
    let mut taken = Vec::new();
    let _ = stream.read_to_end(&mut taken);
    assert!(taken.windows(12).filter(|window| window == b"HTTP/1.1 200").count() < 100, "it was waited for");
}

/// Goal: more clients than there is room for are told so, still more hung up on; when one leaves there is room.
#[test]
fn surplus_clients_are_told() {
    let served = Served::new();
    let mut clients: Vec<UnixStream> = Vec::new();
    // Each is known to be served by its answer.
    for _ in 0..CONNECTIONS_MAX {
        let mut stream = served.connect();
        stream.write_all(b"GET /v1 HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        clients.push(stream);
    }
    let (status, document) = served.ask("GET", "/v1/luns", "");
    assert_eq!((status, &document["error"]["against"]), (503, &json!("busy")));
    let mut more: Vec<UnixStream> = (0..=TURNED_AWAY_MAX).map(|_| served.connect()).collect();
    let mut last = more.pop().unwrap();
    assert_eq!(last.read(&mut [0]).unwrap(), 0, "hung up on");
    drop(more);
    drop(clients);
    let begun = Instant::now();
    // Until then it may be told, or hung up on.
    while !served.try_ask("GET", "/v1", "").is_ok_and(|answer| answer.contains("200 OK")) {
        assert!(begun.elapsed() < LONG, "there is no room again");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Goal: a stuck reactor holds up changes, each for a bounded time, and those that look not at all. Method: hold the
/// steps; a change waits for the one before it.
#[test]
fn changes_wait_their_turn() {
    let served = Served::with(Patience { turn: SHORT, ..Patience::default() });
    let create = |name: &str| {
        let body = json!({"name": name, "size_bytes": 1 << 20}).to_string();
        served.ask("POST", "/v1/pools/p/volumes", &body)
    };
    let held = served.fake.hold();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| create("a"));
        held.wait();
        let (status, document) = create("c");
        assert_eq!((status, &document["error"]["against"]), (503, &json!("busy")));
        for _ in 0..LOOKS_MAX * 2 {
            served.get("/v1/luns");
        }
        drop(held);
        assert_eq!(first.join().unwrap().0, 201);
    });
    assert_eq!(create("d").0, 201);
}

/// Goal: a change is carried out to its end though its client has gone, and the end of the program waits for it; the
/// socket goes at once.
#[test]
fn the_end_waits_for_what_is_under_way() {
    let mut served = Served::new();
    let body = r#"{"name": "a", "size_bytes": 1048576}"#;
    let request = format!(
        "POST /v1/pools/p/volumes HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let fake = served.fake.clone();
    let held = fake.hold();
    let mut stream = served.connect();
    stream.write_all(request.as_bytes()).unwrap();
    held.wait();
    drop(stream);
    let socket = served.socket.clone();
    let fake = served.fake.clone();
    std::thread::scope(|scope| {
        let stopping = scope.spawn(|| served.stop());
        let begun = Instant::now();
        while socket.exists() {
            assert!(begun.elapsed() < LONG, "the socket stays");
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(held);
        stopping.join().unwrap();
    });
    assert_eq!(fake.state().steps, ["VolumeCreate"]);
}
