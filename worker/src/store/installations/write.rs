//! Writes rows: a batch by one upsert, a rebuild by COPY.

use std::sync::LazyLock;

use domain::fold::Status;
use sqlx::encode::{Encode, IsNull};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgArguments, PgConnection};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Postgres, types};

use super::{COLUMNS, Column, KEY, Row, Value, names};
use crate::store::convert::{integer_to_sql, sequence_to_sql, to_sql};
use crate::store::schema::Schema;

/// A batch is one array for each column. Postgres has no array of arrays of
/// different lengths, so those travel as JSON.
static UPSERT: LazyLock<String> = LazyLock::new(|| {
    let columns = names(|_| true);
    let parameters: Vec<String> =
        COLUMNS.iter().zip(1..).map(|(column, n)| format!("${n}::{}", column.array())).collect();
    let values: Vec<String> = COLUMNS.iter().map(Column::out_of_array).collect();
    let changes: Vec<String> = COLUMNS
        .iter()
        .filter(|column| !KEY.contains(&column.name))
        .map(|column| format!("{0} = excluded.{0}", column.name))
        .collect();
    format!(
        "INSERT INTO installations ({columns})
         SELECT {values}
         FROM unnest({parameters}) WITH ORDINALITY AS folded ({columns}, position)
         ORDER BY position
         ON CONFLICT ({key}) DO UPDATE SET {changes}",
        values = values.join(", "),
        parameters = parameters.join(", "),
        key = KEY.join(", "),
        changes = changes.join(", "),
    )
});

/// Saves what was folded, in the schema that comes first in the search path.
pub(crate) async fn save(
    connection: &mut PgConnection,
    mut rows: Vec<Row>,
) -> Result<(), sqlx::Error> {
    // Whoever becomes active comes last, or the index on active installations
    // would see two of them in one place for a moment.
    rows.sort_by_key(|row| row.installation.status == Status::Active);
    let mut upsert = sqlx::query(AssertSqlSafe(UPSERT.as_str()));
    for column in COLUMNS {
        upsert = column.bind(upsert, &rows).map_err(|error| sqlx::Error::Encode(error.into()))?;
    }
    upsert.execute(connection).await?;
    Ok(())
}

type Upsert<'q> = Query<'q, Postgres, PgArguments>;

impl Column {
    /// The type of the array that holds this column of a batch.
    fn array(&self) -> &'static str {
        match self.value {
            Value::Text(_) => "text[]",
            Value::Integer(_) => "integer[]",
            Value::BigInt(_) => "bigint[]",
            Value::Time(_) => "timestamptz[]",
            Value::Texts(_) | Value::Json(_) => "jsonb[]",
        }
    }

    fn out_of_array(&self) -> String {
        match self.value {
            Value::Texts(_) => format!("ARRAY(SELECT jsonb_array_elements_text({}))", self.name),
            Value::Text(_)
            | Value::Integer(_)
            | Value::BigInt(_)
            | Value::Time(_)
            | Value::Json(_) => self.name.to_owned(),
        }
    }

    fn bind<'q>(&self, upsert: Upsert<'q>, rows: &'q [Row]) -> serde_json::Result<Upsert<'q>> {
        Ok(match self.value {
            Value::Text(of) => upsert.bind(rows.iter().map(of).collect::<Vec<_>>()),
            Value::Texts(of) => {
                upsert.bind(rows.iter().map(|row| types::Json(of(row))).collect::<Vec<_>>())
            }
            Value::Integer(of) => {
                upsert.bind(rows.iter().map(|row| integer_to_sql(of(row))).collect::<Vec<_>>())
            }
            Value::BigInt(of) => {
                upsert.bind(rows.iter().map(|row| sequence_to_sql(of(row))).collect::<Vec<_>>())
            }
            Value::Time(of) => {
                upsert.bind(rows.iter().map(|row| of(row).map(to_sql)).collect::<Vec<_>>())
            }
            Value::Json(of) => {
                let values = rows.iter().map(|row| of(row).map(types::Json));
                upsert.bind(values.collect::<serde_json::Result<Vec<_>>>()?)
            }
        })
    }

    fn push(&self, buffer: &mut PgArgumentBuffer, row: &Row) -> Result<(), BoxDynError> {
        match self.value {
            Value::Text(of) => field(buffer, &of(row)),
            Value::Texts(of) => field(buffer, &of(row)),
            Value::Integer(of) => field(buffer, &integer_to_sql(of(row))),
            Value::BigInt(of) => field(buffer, &sequence_to_sql(of(row))),
            Value::Time(of) => field(buffer, &of(row).map(to_sql)),
            Value::Json(of) => field(buffer, &types::Json(of(row)?)),
        }
    }
}

/// The binary format of COPY
/// (<https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.4>).
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
const NO_FLAGS: [u8; 4] = [0; 4];
const NO_EXTENSION: [u8; 4] = [0; 4];
const NULL_LENGTH: i32 = -1;
const END: i16 = -1;
const CHUNK_BYTES: usize = 256 * 1024;

/// Puts rows into an empty projection. The values are encoded as sqlx encodes them
/// for a statement.
pub(crate) async fn copy_in(
    connection: &mut PgConnection,
    schema: Schema,
    rows: &[Row],
) -> Result<(), sqlx::Error> {
    let columns = names(|_| true);
    let sql = format!("COPY {schema}.installations ({columns}) FROM STDIN (FORMAT binary)");
    let mut copy = connection.copy_in_raw(&sql).await?;
    let mut buffer = PgArgumentBuffer::default();
    for part in [SIGNATURE, &NO_FLAGS, &NO_EXTENSION] {
        buffer.extend_from_slice(part);
    }
    for row in rows {
        push(&mut buffer, row).map_err(sqlx::Error::Encode)?;
        if buffer.len() >= CHUNK_BYTES {
            copy.send(buffer.as_slice()).await?;
            buffer = PgArgumentBuffer::default();
        }
    }
    buffer.extend_from_slice(&END.to_be_bytes());
    copy.send(buffer.as_slice()).await?;
    copy.finish().await?;
    Ok(())
}

fn push(buffer: &mut PgArgumentBuffer, row: &Row) -> Result<(), BoxDynError> {
    buffer.extend_from_slice(&i16::try_from(COLUMNS.len())?.to_be_bytes());
    COLUMNS.iter().try_for_each(|column| column.push(buffer, row))
}

/// The length of the value, and the value.
fn field<'q, T: Encode<'q, Postgres>>(
    buffer: &mut PgArgumentBuffer,
    value: &T,
) -> Result<(), BoxDynError> {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; 4]);
    let length = match value.encode_by_ref(buffer)? {
        IsNull::Yes => NULL_LENGTH,
        IsNull::No => i32::try_from(buffer.len() - start - 4)?,
    };
    if let Some(place) = buffer.get_mut(start..start + 4) {
        place.copy_from_slice(&length.to_be_bytes());
    }
    Ok(())
}
