//! Compares a projection that was built with the live one, row by row and
//! column by column, in Postgres.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::store::fold_unit::{FoldUnit, arrays};
use crate::store::schema::Schema;

/// More would not be read; the counts are of all.
const LISTED_MAX: i64 = 100;

/// What is compared.
pub(crate) enum Scope<'a> {
    All,
    Places(&'a [FoldUnit]),
}

#[derive(Debug, Default, Clone, Serialize)]
pub(crate) struct Comparison {
    pub(crate) live_rows: u64,
    pub(crate) built_rows: u64,
    /// Installations that differ.
    pub(crate) different: u64,
    /// How many differ in which columns; `added` and `removed` for whole rows.
    pub(crate) by_columns: BTreeMap<String, u64>,
    /// The first of them.
    pub(crate) differences: Vec<Difference>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Difference {
    pub(crate) source: String,
    pub(crate) place: String,
    pub(crate) installation_id: String,
    pub(crate) columns: Vec<String>,
}

impl Comparison {
    /// How many differ in a way that nobody announced.
    pub(crate) fn unexpected(&self, expected: &BTreeSet<String>) -> u64 {
        let is_expected =
            |columns: &str| columns.split(',').all(|column| expected.contains(column));
        let unexpected = self.by_columns.iter().filter(|(columns, _)| !is_expected(columns));
        unexpected.map(|(_, count)| count).sum()
    }

    pub(crate) fn all_columns(&self) -> BTreeSet<String> {
        let columns = self.by_columns.keys().flat_map(|columns| columns.split(','));
        // Rows that come while it is swapped differ in the same way.
        columns.chain(["added", "removed"]).map(str::to_owned).collect()
    }

    /// Adds what was found in the places that changed since.
    pub(crate) fn add(&mut self, since: Self) {
        self.different += since.different;
        for (columns, count) in since.by_columns {
            *self.by_columns.entry(columns).or_default() += count;
        }
        self.differences.extend(since.differences);
    }
}

/// The places where the two differ in what a reader sees.
pub(crate) async fn different_places(
    transaction: &mut PgConnection,
    schema: Schema,
) -> Result<Vec<FoldUnit>, sqlx::Error> {
    let sql = format!(
        r#"
        SELECT DISTINCT source, place
        FROM projection.installations AS live
        FULL JOIN {schema}.installations AS built USING (source, place, installation_id)
        WHERE to_jsonb(live) - 'last_event_sequence' - 'last_event_type'
              IS DISTINCT FROM to_jsonb(built) - 'last_event_sequence' - 'last_event_type'
        "#
    );
    let rows: Vec<(String, String)> =
        sqlx::query_as(AssertSqlSafe(sql)).fetch_all(transaction).await?;
    rows.into_iter().map(|(source, place)| FoldUnit::from_stored(source, place)).collect()
}

pub(crate) async fn compare(
    transaction: &mut PgConnection,
    schema: Schema,
    scope: Scope<'_>,
) -> Result<Comparison, sqlx::Error> {
    let (restriction, units) = match scope {
        Scope::All => ("", None),
        Scope::Places([]) => return Ok(Comparison::default()),
        Scope::Places(units) => {
            ("WHERE (source, place) IN (SELECT * FROM unnest($1::text[], $2::text[]))", Some(units))
        }
    };
    if units.is_some() {
        // The workers wait: never look at what has not changed.
        sqlx::query("SET LOCAL enable_seqscan TO off").execute(&mut *transaction).await?;
    }
    // A whole row is compared at once; only of those that differ the columns are looked at.
    let sql = format!(
        r#"
        CREATE TEMPORARY TABLE differences ON COMMIT DROP AS
        SELECT source, place, installation_id,
               CASE
                   WHEN live IS NULL THEN 'added'
                   WHEN built IS NULL THEN 'removed'
                   ELSE (
                       SELECT string_agg(key, ',' ORDER BY key)
                       FROM jsonb_each(to_jsonb(live)) AS was (key, value)
                       WHERE value IS DISTINCT FROM to_jsonb(built) -> key
                   )
               END AS columns
        FROM (SELECT * FROM projection.installations {restriction}) AS live
        FULL JOIN (SELECT * FROM {schema}.installations {restriction}) AS built
            USING (source, place, installation_id)
        WHERE live IS DISTINCT FROM built
        "#
    );
    sqlx::query("DROP TABLE IF EXISTS pg_temp.differences").execute(&mut *transaction).await?;
    // Or both tables would go through temporary files.
    sqlx::query("SET LOCAL work_mem TO '256MB'").execute(&mut *transaction).await?;
    let mut compare = sqlx::query(AssertSqlSafe(sql));
    if let Some(units) = units {
        let (sources, places) = arrays(units);
        compare = compare.bind(sources).bind(places);
    }
    compare.execute(&mut *transaction).await?;
    let (live_rows, built_rows) = match units {
        Some(_) => (0, 0),
        None => rows(transaction, schema).await?,
    };
    let by_columns = by_columns(transaction).await?;
    Ok(Comparison {
        live_rows,
        built_rows,
        different: by_columns.values().sum(),
        by_columns,
        differences: listed(transaction).await?,
    })
}

async fn rows(transaction: &mut PgConnection, schema: Schema) -> Result<(u64, u64), sqlx::Error> {
    let sql = format!(
        "SELECT (SELECT count(*) FROM projection.installations), (SELECT count(*) FROM {schema}.installations)"
    );
    let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(transaction).await?;
    let count = |index: usize| u64::try_from(row.get::<i64, _>(index)).unwrap_or_default();
    Ok((count(0), count(1)))
}

async fn by_columns(transaction: &mut PgConnection) -> Result<BTreeMap<String, u64>, sqlx::Error> {
    let rows = sqlx::query("SELECT columns, count(*) FROM pg_temp.differences GROUP BY columns")
        .fetch_all(transaction)
        .await?;
    let count =
        |row: &sqlx::postgres::PgRow| u64::try_from(row.get::<i64, _>(1)).unwrap_or_default();
    Ok(rows.iter().map(|row| (row.get(0), count(row))).collect())
}

async fn listed(transaction: &mut PgConnection) -> Result<Vec<Difference>, sqlx::Error> {
    let sql = "SELECT source, place, installation_id, columns FROM pg_temp.differences
               ORDER BY 1, 2, 3 LIMIT $1";
    let rows = sqlx::query(sql).bind(LISTED_MAX).fetch_all(transaction).await?;
    let difference = |row: sqlx::postgres::PgRow| Difference {
        source: row.get(0),
        place: row.get(1),
        installation_id: row.get(2),
        columns: row.get::<String, _>(3).split(',').map(str::to_owned).collect(),
    };
    Ok(rows.into_iter().map(difference).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_expected_only_if_all_its_columns_are() {
        let by_columns = [("details", 3), ("details,status", 2), ("added", 1)];
        let by_columns = by_columns.map(|(columns, count)| (columns.to_owned(), count));
        let comparison = Comparison { by_columns: by_columns.into(), ..Comparison::default() };
        let unexpected = |expected: &[&str]| {
            comparison.unexpected(&expected.iter().map(ToString::to_string).collect())
        };
        assert_eq!(unexpected(&[]), 6);
        assert_eq!(unexpected(&["details"]), 3);
        assert_eq!(unexpected(&["details", "status"]), 1);
        assert_eq!(unexpected(&["details", "status", "added"]), 0);
    }
}
