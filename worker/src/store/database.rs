//! Connections to Postgres, what is set on them, and what the server says of
//! itself.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use service::clock;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgPoolOptions};
use sqlx::{Connection as _, PgPool, Postgres};
use tokio::time::timeout;

use crate::settings;
use crate::store::convert::from_sql;

/// A caller of the read API is told quickly that the database is away.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// To find out why there was no connection.
const DIAGNOSE_TIMEOUT: Duration = Duration::from_secs(1);
const DIAGNOSE_EVERY_MS: i64 = 1_000;

/// The class of our advisory locks, so that they are not those of the places.
pub(crate) const LOCKS: i32 = 0x6d6f;
/// Shared by whoever writes the live projection, exclusive for who swaps it.
pub(crate) const PROJECTION_LOCK: i32 = 1;
const REBUILD_LOCK: i32 = 2;
/// Held by who numbers late places.
pub(crate) const LATE_LOCK: i32 = 3;
/// Of who pushes changes: one at a time.
pub(crate) const PUSH_LOCK: i32 = 42;
/// Of who copies changes to NATS.
pub(crate) const RELAY_LOCK: i32 = 43;
/// Of who archives: one at a time.
const ARCHIVE_LOCK: i32 = 40;
/// Exclusive for who trims the log, shared by who reads old events of it.
const TRIM_LOCK: i32 = 41;

/// What is set on every connection. A process that is frozen, or cut off, in the middle of a
/// transaction holds locks that every worker needs: Postgres ends its session.
const SESSION: [(&str, &str); 6] = [
    // What a rebuild writes to another schema has no schema in its statement.
    ("search_path", "projection, public"),
    ("idle_in_transaction_session_timeout", "30s"),
    ("client_connection_check_interval", "10s"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "4"),
];
/// What a service has besides. A command may stop reading for longer: its output is paged.
const OF_SERVICE: (&str, &str) = ("tcp_user_timeout", "30s");

/// A command's pool.
pub(crate) fn pool(settings: &settings::Postgres) -> PgPool {
    pool_with(settings, None)
}

/// A pool that connects when it is first used, so that a worker starts, and
/// says that it is not ready, while Postgres is away.
pub(crate) fn service_pool(settings: &settings::Postgres) -> PgPool {
    pool_with(settings, Some(OF_SERVICE))
}

fn pool_with(settings: &settings::Postgres, more: Option<(&'static str, &'static str)>) -> PgPool {
    PgPoolOptions::new()
        .max_connections(settings.connections_max)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .after_connect(move |connection, _| Box::pin(async move { set_up(connection, more).await }))
        .connect_lazy_with(settings.options.clone())
}

async fn set_up(
    connection: &mut PgConnection,
    more: Option<(&'static str, &'static str)>,
) -> Result<(), sqlx::Error> {
    let (names, values): (Vec<&str>, Vec<&str>) = SESSION.into_iter().chain(more).unzip();
    let set = "SELECT set_config(name, value, false) \
               FROM unnest($1::text[], $2::text[]) AS session (name, value)";
    sqlx::query(set).bind(names).bind(values).execute(connection).await?;
    Ok(())
}

/// A connection, or why there is none: the pool itself only says that it waited. Of
/// many who find that there is none, one in a second finds out why.
pub(crate) async fn acquire(pool: &PgPool) -> Result<PoolConnection<Postgres>, sqlx::Error> {
    static LAST_DIAGNOSIS_MS: AtomicI64 = AtomicI64::new(i64::MIN);
    match pool.acquire().await {
        Err(waited @ sqlx::Error::PoolTimedOut) => {
            let now = clock::now().as_millisecond();
            let is_due = |last: i64| now.saturating_sub(last) >= DIAGNOSE_EVERY_MS;
            let claim = |last| is_due(last).then_some(now);
            let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
            match LAST_DIAGNOSIS_MS.fetch_update(set, fetch, claim) {
                Ok(_) => Err(diagnose(pool).await.unwrap_or(waited)),
                Err(_) => Err(waited),
            }
        }
        acquired => acquired,
    }
}

/// The same for who asks now and then only, and is always told why.
pub(crate) async fn acquire_or_find_out(
    pool: &PgPool,
) -> Result<PoolConnection<Postgres>, sqlx::Error> {
    match pool.acquire().await {
        Err(waited @ sqlx::Error::PoolTimedOut) => Err(diagnose(pool).await.unwrap_or(waited)),
        acquired => acquired,
    }
}

async fn diagnose(pool: &PgPool) -> Option<sqlx::Error> {
    let options = pool.connect_options();
    match timeout(DIAGNOSE_TIMEOUT, PgConnection::connect_with(&options)).await {
        Ok(Ok(connection)) => {
            connection.close().await.ok();
            None // it can be reached: all connections of the pool are busy
        }
        Ok(Err(cause)) => Some(cause),
        Err(_elapsed) => None,
    }
}

/// A connection that is closed if it is dropped before its work is done. The pool would ask it
/// whether it is well, and wait as long for the answer.
pub(crate) struct ClosedIfCancelled {
    connection: PoolConnection<Postgres>,
    is_done: bool,
}

impl ClosedIfCancelled {
    pub(crate) async fn acquire(pool: &PgPool) -> Result<Self, sqlx::Error> {
        Ok(Self { connection: acquire(pool).await?, is_done: false })
    }

    pub(crate) fn done(mut self) {
        self.is_done = true;
    }
}

impl Deref for ClosedIfCancelled {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for ClosedIfCancelled {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

impl Drop for ClosedIfCancelled {
    fn drop(&mut self) {
        if !self.is_done {
            self.connection.close_on_drop();
        }
    }
}

/// For the session; false if another one has it.
pub(crate) async fn try_lock_rebuild(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    try_lock(connection, REBUILD_LOCK).await
}

/// For the session; false if another one has it.
pub(crate) async fn try_lock(
    connection: &mut PgConnection,
    lock: i32,
) -> Result<bool, sqlx::Error> {
    let sql = "SELECT pg_try_advisory_lock($1, $2)";
    sqlx::query_scalar(sql).bind(LOCKS).bind(lock).fetch_one(connection).await
}

/// Whether the session is there and answers.
pub(crate) async fn is_alive(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT 1").execute(connection).await?;
    Ok(())
}

/// A connection that is closed when it is dropped, and with it ends what it locked.
/// One of the pool would go back to it with the locks.
pub(crate) async fn connect_alone(pool: &PgPool) -> Result<PgConnection, sqlx::Error> {
    let mut connection = PgConnection::connect_with(&pool.connect_options()).await?;
    set_up(&mut connection, None).await?;
    Ok(connection)
}

/// For the session; false if another one archives.
pub(crate) async fn try_lock_archive(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    try_lock(connection, ARCHIVE_LOCK).await
}

/// For the session; false if somebody reads old events of the log.
pub(crate) async fn try_lock_trim(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    try_lock(connection, TRIM_LOCK).await
}

pub(crate) async fn unlock_trim(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query_scalar!("SELECT pg_advisory_unlock($1, $2)", LOCKS, TRIM_LOCK)
        .fetch_one(connection)
        .await?;
    Ok(())
}

/// For the session: the log is not trimmed. It waits for who trims it now.
pub(crate) async fn keep_log_untrimmed(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query!("SELECT pg_advisory_lock_shared($1, $2)", LOCKS, TRIM_LOCK)
        .execute(connection)
        .await?;
    Ok(())
}

/// Until the transaction ends no worker commits.
pub(crate) async fn lock_out_workers(transaction: &mut PgConnection) -> Result<(), sqlx::Error> {
    // While it waits, workers wait behind it.
    sqlx::query("SET LOCAL lock_timeout TO '5s'").execute(&mut *transaction).await?;
    sqlx::query!("SELECT pg_advisory_xact_lock($1, $2)", LOCKS, PROJECTION_LOCK)
        .execute(transaction)
        .await?;
    Ok(())
}

/// Every statement of the transaction sees the same moment. It must be the first.
pub(crate) async fn see_one_moment(transaction: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(transaction).await?;
    Ok(())
}

/// The transaction does not wait for the disk, and a crash may lose it as a whole.
pub(crate) async fn commit_without_waiting(
    transaction: &mut PgConnection,
) -> Result<(), sqlx::Error> {
    sqlx::query("SET LOCAL synchronous_commit TO off").execute(transaction).await?;
    Ok(())
}

/// What the server says of itself.
pub(crate) struct Server {
    /// As a number that can be compared.
    pub(crate) version: i32,
    pub(crate) version_name: String,
    pub(crate) now: Timestamp,
}

pub(crate) async fn server(connection: &mut PgConnection) -> Result<Server, sqlx::Error> {
    let server = sqlx::query!(
        r#"SELECT current_setting('server_version_num')::integer AS "version!",
                  current_setting('server_version') AS "version_name!", clock_timestamp() AS "now!""#
    )
    .fetch_one(connection)
    .await?;
    let now = from_sql(server.now);
    Ok(Server { version: server.version, version_name: server.version_name, now })
}

/// What the role of the workers may do.
pub(crate) struct WorkerRole {
    pub(crate) is_superuser: bool,
    /// Everything that a worker does.
    pub(crate) may_work: bool,
    /// Delete events, or change the audit.
    pub(crate) may_rewrite_history: bool,
}

/// `None` if there is no such role.
pub(crate) async fn worker_role(
    connection: &mut PgConnection,
) -> Result<Option<WorkerRole>, sqlx::Error> {
    sqlx::query_as!(
        WorkerRole,
        r#"
        SELECT rolsuper AS "is_superuser!",
               has_table_privilege(oid, 'mooring.journal', 'SELECT, INSERT')
                   AND has_column_privilege(oid, 'mooring.journal', 'kept', 'UPDATE')
                   AND has_table_privilege(oid, 'projection.installations', 'SELECT, INSERT, UPDATE')
                   AND has_table_privilege(oid, 'mooring.dead_letters', 'SELECT, INSERT')
                   AND has_function_privilege(oid, 'mooring.record_access(jsonb)', 'EXECUTE')
                   AS "may_work!",
               has_table_privilege(oid, 'mooring.journal', 'DELETE')
                   OR has_column_privilege(oid, 'mooring.journal', 'message_id', 'UPDATE')
                   OR has_table_privilege(oid, 'mooring.access_log', 'INSERT, UPDATE, DELETE')
                   OR has_table_privilege(oid, 'mooring.access_log_ends', 'INSERT, UPDATE, DELETE')
                   AS "may_rewrite_history!"
        FROM pg_roles WHERE rolname = 'mooring_worker'
        "#
    )
    .fetch_optional(connection)
    .await
}
