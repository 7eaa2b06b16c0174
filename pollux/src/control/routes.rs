//! HTTP to values and back: paths, bodies, statuses. What is asked for is done by [`super::operations`], on a thread
//! that may wait; changes one at a time.

use super::api::{self, ApiError, ErrorBody, Kind};
use super::backend::{Outcome, VolumeName};
use super::operations::{Map, Operations};
use crate::spec::Device;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use bdev::pool::control::VolumeSpec;
use http_body_util::LengthLimitError;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// A request's body: 64 devices with long paths fit.
pub const BODY_BYTES_MAX: usize = 512 << 10;
/// From a request's head to its body's end.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests that look, at once.
pub const LOOKS_MAX: usize = 4;
/// How long a request waits for its turn: one before it may wait that long for a reactor.
pub const TURN_TIMEOUT: Duration = Duration::from_secs(30);

/// What all requests share.
pub(super) struct Shared {
    operations: Operations,
    /// Changes come one at a time.
    pub(super) changes: Arc<Semaphore>,
    looks: Arc<Semaphore>,
    patience: Patience,
}

/// How long clients and reactors may keep each other waiting. The tests are less patient than the defaults.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// See [`BODY_TIMEOUT`].
    pub body: Duration,
    /// See [`TURN_TIMEOUT`].
    pub turn: Duration,
    /// See [`super::server::HEAD_TIMEOUT`].
    pub head: Duration,
    /// See [`super::server::SEND_TIMEOUT`].
    pub send: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            body: BODY_TIMEOUT,
            turn: TURN_TIMEOUT,
            head: super::server::HEAD_TIMEOUT,
            send: super::server::SEND_TIMEOUT,
        }
    }
}

impl Shared {
    pub(super) fn new(operations: Operations, patience: Patience) -> Shared {
        let changes = Arc::new(Semaphore::new(1));
        Shared { operations, changes, looks: Arc::new(Semaphore::new(LOOKS_MAX)), patience }
    }
}

type Control = State<Arc<Shared>>;
type Answered<T> = Result<T, ApiError>;
/// A path's parts.
type In<T> = Result<Path<T>, PathRejection>;
/// What follows the `?`.
type With<T> = Result<Query<T>, QueryRejection>;

pub(super) fn router(shared: Arc<Shared>) -> Router {
    let volume = "/v1/pools/{pool}/volumes/{volume}";
    let at = |tail: &str| format!("{volume}{tail}");
    Router::new()
        .route("/v1", get(about))
        .route("/v1/pools", get(pools).post(pool_create))
        .route("/v1/pools/{pool}", get(pool).delete(pool_delete))
        .route("/v1/pools/{pool}/grow", post(pool_grow))
        .route("/v1/pools/{pool}/volumes", get(volumes).post(volume_create))
        .route(volume, get(self::volume).patch(volume_set).delete(volume_delete))
        .route(&at("/resize"), post(volume_resize))
        .route(&at("/rollback"), post(volume_rollback))
        .route("/v1/pools/{pool}/snapshots", get(snapshots))
        .route(&at("/snapshots"), post(snapshot_create))
        .route(&at("/snapshots/{snapshot}"), delete(snapshot_delete))
        .route(&at("/snapshots/{snapshot}/clone"), post(snapshot_clone))
        .route("/v1/pools/{pool}/diff", get(diff))
        .route("/v1/luns", get(luns).post(lun_map))
        .route("/v1/targets/{target}/luns/{lun}", delete(lun_unmap))
        .method_not_allowed_fallback(no_such_method)
        .fallback(no_such_path)
        .with_state(shared)
}

fn status_of(kind: Kind) -> StatusCode {
    match kind {
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Exists | Kind::InUse | Kind::Damaged => StatusCode::CONFLICT,
        Kind::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
        Kind::Invalid => StatusCode::BAD_REQUEST,
        Kind::Busy => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Unanswered => StatusCode::GATEWAY_TIMEOUT,
        Kind::Device | Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        Kind::Method => StatusCode::METHOD_NOT_ALLOWED,
        Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Kind::Slow => StatusCode::REQUEST_TIMEOUT,
    }
}

/// A response with a JSON document.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    // Only maps whose keys are no texts can't be written, and there are none.
    let mut text = serde_json::to_vec(value).unwrap_or_default();
    text.push(b'\n');
    let mut response = (status, text).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        json(status_of(self.against), &ErrorBody { error: self })
    }
}

/// The document, and whether something was made.
struct Ok200<T>(T);
struct Made<T>(T);

impl<T: Serialize> IntoResponse for Ok200<T> {
    fn into_response(self) -> Response {
        json(StatusCode::OK, &self.0)
    }
}

impl<T: Serialize> IntoResponse for Made<T> {
    fn into_response(self) -> Response {
        json(StatusCode::CREATED, &self.0)
    }
}

impl Shared {
    async fn work<T: Send + 'static>(
        &self,
        turns: &Arc<Semaphore>,
        work: impl FnOnce(&Operations) -> Outcome<T> + Send + 'static,
    ) -> Answered<T> {
        let turn = tokio::time::timeout(self.patience.turn, Arc::clone(turns).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            let what = "pollux is busy with other requests, or stopping";
            return Err(ApiError::new(Kind::Busy, what, "try again in a moment"));
        };
        let operations = self.operations.clone();
        let done = tokio::task::spawn_blocking(move || {
            // Held to the work's end, also when the client has gone.
            let _turn = turn;
            work(&operations)
        });
        match done.await {
            Ok(outcome) => outcome.map_err(ApiError::from),
            Err(error) => {
                tracing::error!("a control request ended badly: {error}");
                Err(ApiError::new(
                    Kind::Internal,
                    "the request ended badly",
                    "look at the log, and report it",
                ))
            }
        }
    }

    async fn look<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Operations) -> Outcome<T> + Send + 'static,
    ) -> Answered<T> {
        self.work(&self.looks, work).await
    }

    async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Operations) -> Outcome<T> + Send + 'static,
    ) -> Answered<T> {
        self.work(&self.changes, work).await
    }

    async fn body<T: DeserializeOwned>(&self, body: Body) -> Answered<T> {
        let Ok(bytes) = tokio::time::timeout(self.patience.body, to_bytes(body, BODY_BYTES_MAX)).await else {
            let what = format!("the body did not arrive within {} s", self.patience.body.as_secs());
            return Err(ApiError::new(Kind::Slow, what, "send it at once"));
        };
        let bytes = bytes.map_err(|error| {
            let is_long = std::error::Error::source(&error)
                .is_some_and(<dyn std::error::Error>::is::<LengthLimitError>);
            if is_long {
                let what = format!("the body is over {BODY_BYTES_MAX} bytes");
                ApiError::new(Kind::TooLarge, what, "send a smaller request")
            } else {
                ApiError::new(Kind::Invalid, format!("the body broke off: {error}"), "send it whole")
            }
        })?;
        serde_json::from_slice(&bytes).map_err(|error| {
            let what = format!("the body is not what this path takes: {error}");
            ApiError::new(Kind::Invalid, what, "docs/control.md shows each path's JSON")
        })
    }
}

fn part<T>(path: In<T>) -> Answered<T> {
    path.map(|Path(part)| part).map_err(|rejection| {
        let what = format!("the path can't be read: {}", rejection.body_text());
        ApiError::new(Kind::Invalid, what, "docs/control.md lists the paths")
    })
}

fn query<T>(query: With<T>) -> Answered<T> {
    query.map(|Query(query)| query).map_err(|rejection| {
        let what = format!("what follows the ? can't be read: {}", rejection.body_text());
        ApiError::new(Kind::Invalid, what, "docs/control.md shows what each path takes")
    })
}

fn devices(specs: &[api::DeviceSpec]) -> Vec<Device> {
    specs.iter().map(Device::from).collect()
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Force {
    #[serde(default)]
    force: bool,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Walk {
    #[serde(default)]
    walk: bool,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct OfVolume {
    volume: Option<String>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Between {
    from: String,
    to: String,
    #[serde(default)]
    from_bytes: u64,
}

async fn about(State(control): Control) -> Ok200<api::About> {
    Ok200(api::About {
        program: "pollux".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        targets: control.operations.targets(),
    })
}

async fn pools(State(control): Control) -> Answered<Ok200<api::Pools>> {
    let pools = control.look(|operations| {
        let pools = operations.pools()?;
        Ok(pools.into_iter().map(|info| operations.told(info)).collect())
    });
    Ok(Ok200(api::Pools { pools: pools.await? }))
}

async fn pool(State(control): Control, path: In<String>) -> Answered<Ok200<api::Pool>> {
    let pool = part(path)?;
    let pool = control.look(move |operations| Ok(operations.told(operations.pool(&pool)?)));
    pool.await.map(Ok200)
}

async fn pool_create(State(control): Control, body: Body) -> Answered<Made<api::Pool>> {
    let create: api::PoolCreate = control.body(body).await?;
    let made = control.change(move |operations| {
        Ok(operations.told(operations.pool_create(&create.name, &devices(&create.devices))?))
    });
    made.await.map(Made)
}

async fn pool_grow(State(control): Control, path: In<String>, body: Body) -> Answered<Ok200<api::Pool>> {
    let pool = part(path)?;
    let grow: api::PoolGrow = control.body(body).await?;
    let grown = control
        .change(move |operations| Ok(operations.told(operations.pool_grow(&pool, &devices(&grow.devices))?)));
    grown.await.map(Ok200)
}

async fn pool_delete(
    State(control): Control,
    path: In<String>,
    with: With<Force>,
) -> Answered<Ok200<api::Deleted>> {
    let (pool, Force { force }) = (part(path)?, query(with)?);
    let deleted = format!("pool {pool}");
    control.change(move |operations| operations.pool_delete(&pool, force)).await?;
    Ok(Ok200(api::Deleted { deleted }))
}

async fn volumes(
    State(control): Control,
    path: In<String>,
    with: With<Walk>,
) -> Answered<Ok200<api::Volumes>> {
    let (pool, Walk { walk }) = (part(path)?, query(with)?);
    let volumes = control.look(move |operations| {
        let volumes = if walk { operations.volumes_walked(&pool)? } else { operations.volumes(&pool)? };
        Ok(volumes.into_iter().map(|info| api::Volume::of(&pool, info)).collect())
    });
    Ok(Ok200(api::Volumes { volumes: volumes.await? }))
}

/// A path's `{pool}` and `{volume}`.
fn named(path: In<(String, String)>) -> Answered<VolumeName> {
    let (pool, volume) = part(path)?;
    Ok(VolumeName { pool, volume })
}

async fn volume(State(control): Control, path: In<(String, String)>) -> Answered<Ok200<api::Volume>> {
    let name = named(path)?;
    let volume = control.look(move |operations| Ok(api::Volume::of(&name.pool, operations.volume(&name)?)));
    volume.await.map(Ok200)
}

async fn volume_create(State(control): Control, path: In<String>, body: Body) -> Answered<Made<api::Volume>> {
    let pool = part(path)?;
    let create: api::VolumeCreate = control.body(body).await?;
    let spec = VolumeSpec {
        name: create.name,
        bytes: create.size_bytes,
        block_bytes: create.block_bytes,
        physical_block_bytes: create.physical_block_bytes,
        provisioning: create.provisioning.into(),
        zero_detect: create.zero_detect,
        write_cache: create.write_cache,
    };
    let made =
        control.change(move |operations| Ok(api::Volume::of(&pool, operations.volume_create(&pool, spec)?)));
    made.await.map(Made)
}

async fn volume_set(
    State(control): Control,
    path: In<(String, String)>,
    body: Body,
) -> Answered<Ok200<api::Volume>> {
    let name = named(path)?;
    let api::VolumeSet { zero_detect } = control.body(body).await?;
    let set = control.change(move |operations| {
        Ok(api::Volume::of(&name.pool, operations.volume_set(&name, zero_detect)?))
    });
    set.await.map(Ok200)
}

async fn volume_resize(
    State(control): Control,
    path: In<(String, String)>,
    body: Body,
) -> Answered<Ok200<api::Volume>> {
    let name = named(path)?;
    let api::VolumeResize { size_bytes, shrink, force } = control.body(body).await?;
    let resized = control.change(move |operations| {
        Ok(api::Volume::of(&name.pool, operations.volume_resize(&name, size_bytes, shrink, force)?))
    });
    resized.await.map(Ok200)
}

async fn volume_rollback(
    State(control): Control,
    path: In<(String, String)>,
    body: Body,
) -> Answered<Ok200<api::Volume>> {
    let name = named(path)?;
    let api::VolumeRollback { snapshot, force } = control.body(body).await?;
    let back = control.change(move |operations| {
        Ok(api::Volume::of(&name.pool, operations.volume_rollback(&name, snapshot, force)?))
    });
    back.await.map(Ok200)
}

async fn volume_delete(
    State(control): Control,
    path: In<(String, String)>,
    with: With<Force>,
) -> Answered<Ok200<api::Deleted>> {
    let (name, Force { force }) = (named(path)?, query(with)?);
    let deleted = format!("volume {}", name.volume);
    control.change(move |operations| operations.volume_delete(&name, force)).await?;
    Ok(Ok200(api::Deleted { deleted }))
}

async fn snapshots(
    State(control): Control,
    path: In<String>,
    with: With<OfVolume>,
) -> Answered<Ok200<api::Snapshots>> {
    let (pool, OfVolume { volume }) = (part(path)?, query(with)?);
    let snapshots = control.look(move |operations| {
        let snapshots = operations.snapshots(&pool, volume)?;
        Ok(snapshots.into_iter().map(|info| api::Snapshot::of(&pool, info)).collect())
    });
    Ok(Ok200(api::Snapshots { snapshots: snapshots.await? }))
}

async fn snapshot_create(
    State(control): Control,
    path: In<(String, String)>,
    body: Body,
) -> Answered<Made<api::Snapshot>> {
    let volume = named(path)?;
    let api::SnapshotCreate { name } = control.body(body).await?;
    let made = control.change(move |operations| {
        Ok(api::Snapshot::of(&volume.pool, operations.snapshot_create(&volume, &name)?))
    });
    made.await.map(Made)
}

async fn snapshot_delete(
    State(control): Control,
    path: In<(String, String, String)>,
) -> Answered<Ok200<api::Deleted>> {
    let (pool, volume, snapshot) = part(path)?;
    let name = format!("{volume}@{snapshot}");
    let deleted = format!("snapshot {name}");
    control.change(move |operations| operations.snapshot_delete(&pool, name)).await?;
    Ok(Ok200(api::Deleted { deleted }))
}

async fn snapshot_clone(
    State(control): Control,
    path: In<(String, String, String)>,
    body: Body,
) -> Answered<Made<api::Volume>> {
    let (pool, volume, snapshot) = part(path)?;
    let api::SnapshotClone { name, provisioning } = control.body(body).await?;
    let provisioning = provisioning.map(Into::into);
    let made = control.change(move |operations| {
        let made = operations.volume_clone(&pool, format!("{volume}@{snapshot}"), name, provisioning)?;
        Ok(api::Volume::of(&pool, made))
    });
    made.await.map(Made)
}

async fn diff(State(control): Control, path: In<String>, with: With<Between>) -> Answered<Ok200<api::Diff>> {
    let (pool, Between { from, to, from_bytes }) = (part(path)?, query(with)?);
    let diff = control.look(move |operations| operations.diff(&pool, from, to, from_bytes));
    Ok(Ok200(diff.await?.into()))
}

async fn luns(State(control): Control) -> Answered<Ok200<api::Luns>> {
    Ok(Ok200(api::Luns { luns: control.look(Operations::luns).await? }))
}

async fn lun_map(State(control): Control, body: Body) -> Answered<Made<api::Lun>> {
    let api::LunMap { pool, volume, target, lun, read_only, removable } = control.body(body).await?;
    let map = Map { volume: VolumeName { pool, volume }, target, lun, read_only, removable };
    control.change(move |operations| operations.lun_map(&map)).await.map(Made)
}

async fn lun_unmap(
    State(control): Control,
    path: In<(String, u16)>,
    with: With<Force>,
) -> Answered<Ok200<api::Unmapped>> {
    let ((target, lun), Force { force }) = (part(path)?, query(with)?);
    let unmapped = control.change(move |operations| operations.lun_unmap(Some(&target), lun, force)).await?;
    Ok(Ok200(api::Unmapped { unmapped }))
}

async fn no_such_path() -> ApiError {
    ApiError::new(Kind::NotFound, "there is no such path", "docs/control.md lists the paths")
}

async fn no_such_method() -> ApiError {
    ApiError::new(Kind::Method, "the path has no such method", "docs/control.md lists the methods")
}
