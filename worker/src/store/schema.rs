//! The schemas that projections live in: how they are made, indexed, swapped and
//! dropped. What is in them is read and written in `installations` and, while
//! `worker verify` runs, in `log_index`.

use std::fmt;

use sqlx::{AssertSqlSafe, PgConnection};

/// Everything but the live schema `projection`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Schema {
    /// Being built, to be swapped in.
    Next,
    /// Live before the last swap.
    Previous,
    /// Live before the one before: about to go.
    Dropped,
    /// Of `worker verify`.
    Scratch,
}

impl Schema {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Next => "projection_next",
            Self::Previous => "projection_previous",
            Self::Dropped => "projection_dropped",
            Self::Scratch => "projection_verify",
        }
    }
}

impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

async fn run(connection: &mut PgConnection, sql: String) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(|_| ())
}

/// An empty projection of the same shape as the live one, for the same people.
///
/// Migrations give the shape, a rebuild the content. Indexes are made when the
/// rows are there: see [`add_indexes`].
pub(crate) async fn create(
    connection: &mut PgConnection,
    schema: Schema,
) -> Result<(), sqlx::Error> {
    let sql = format!(
        r#"
        CREATE SCHEMA {schema};
        CREATE TABLE {schema}.installations (LIKE projection.installations INCLUDING ALL EXCLUDING INDEXES);
        DO $$
        DECLARE granted record;
        BEGIN
            FOR granted IN
                SELECT privilege_type, grantee::regrole::text AS role
                FROM pg_namespace, aclexplode(nspacl)
                WHERE nspname = 'projection' AND grantee <> 0 AND grantee <> nspowner
            LOOP
                EXECUTE format('GRANT %s ON SCHEMA {schema} TO %s', granted.privilege_type, granted.role);
            END LOOP;
            FOR granted IN
                SELECT privilege_type, grantee::regrole::text AS role
                FROM pg_class, aclexplode(relacl)
                WHERE oid = 'projection.installations'::regclass AND grantee <> 0 AND grantee <> relowner
            LOOP
                EXECUTE format('GRANT %s ON {schema}.installations TO %s', granted.privilege_type, granted.role);
            END LOOP;
        END
        $$;
        "#
    );
    run(connection, sql).await
}

/// Those of the live projection, under the same names.
pub(crate) async fn add_indexes(
    connection: &mut PgConnection,
    schema: Schema,
) -> Result<(), sqlx::Error> {
    let sql = format!(
        r#"
        DO $$
        DECLARE index record;
        BEGIN
            PERFORM set_config('maintenance_work_mem', '256MB', true);
            FOR index IN
                SELECT relname AS name, indisprimary, pg_get_indexdef(indexrelid) AS definition
                FROM pg_index JOIN pg_class ON oid = indexrelid
                WHERE indrelid = 'projection.installations'::regclass
                  AND to_regclass(format('{schema}.%I', relname)) IS NULL
            LOOP
                EXECUTE replace(
                    index.definition,
                    ' ON projection.installations ', ' ON {schema}.installations ');
                IF index.indisprimary THEN
                    EXECUTE format(
                        'ALTER TABLE {schema}.installations ADD PRIMARY KEY USING INDEX %I', index.name);
                END IF;
            END LOOP;
        END
        $$;
        "#
    );
    run(connection, sql).await
}

pub(crate) async fn drop(connection: &mut PgConnection, schema: Schema) -> Result<(), sqlx::Error> {
    // Postgres tells what it cascades to; nobody asked.
    let sql = format!(
        "SET client_min_messages = warning; DROP SCHEMA IF EXISTS {schema} CASCADE; RESET client_min_messages"
    );
    run(connection, sql).await
}

pub(crate) async fn exists(
    connection: &mut PgConnection,
    schema: Schema,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1) AS "exists!""#,
        schema.name()
    )
    .fetch_one(connection)
    .await
}

/// So that the first queries after the swap are planned well.
pub(crate) async fn analyze(
    connection: &mut PgConnection,
    schema: Schema,
) -> Result<(), sqlx::Error> {
    run(connection, format!("ANALYZE {schema}.installations")).await
}

/// Unqualified names mean this schema until the transaction ends.
pub(crate) async fn write_to(
    transaction: &mut PgConnection,
    schema: Schema,
) -> Result<(), sqlx::Error> {
    run(transaction, format!("SET LOCAL search_path TO {schema}")).await
}

/// Makes `new` the live schema and the live one the previous.
///
/// Postgres plans prepared statements again when a schema changes its name, and
/// a statement that is running ends on the tables that it began with.
pub(crate) async fn swap(transaction: &mut PgConnection, new: Schema) -> Result<(), sqlx::Error> {
    let previous = Schema::Previous;
    if new == previous {
        let sql = "ALTER SCHEMA projection RENAME TO projection_swap;
                   ALTER SCHEMA projection_previous RENAME TO projection;
                   ALTER SCHEMA projection_swap RENAME TO projection_previous";
        return run(transaction, sql.to_owned()).await;
    }
    let mut sql = format!(
        "ALTER SCHEMA projection RENAME TO {previous}; ALTER SCHEMA {new} RENAME TO projection"
    );
    if exists(transaction, previous).await? {
        sql = format!("ALTER SCHEMA {previous} RENAME TO {}; {sql}", Schema::Dropped);
    }
    run(transaction, sql).await
}

/// Views hold on to the table that they were made on, whatever its name becomes.
pub(crate) async fn dependent_views(
    connection: &mut PgConnection,
) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        SELECT DISTINCT ev_class::regclass::text AS "view!"
        FROM pg_depend JOIN pg_rewrite ON pg_rewrite.oid = objid
        WHERE classid = 'pg_rewrite'::regclass
          AND refobjid = 'projection.installations'::regclass
          AND ev_class <> refobjid
        "#
    )
    .fetch_all(connection)
    .await
}
