//! Rows into Postgres by COPY, in its binary format
//! (<https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.4>).
//! The values are encoded as sqlx encodes them for a statement.

use sqlx::encode::{Encode, IsNull};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgConnection};
use sqlx::{Postgres, types::Json};

use crate::operate::rebuild::schema::Schema;
use crate::store::installations::{Flat, Row};

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
const NO_FLAGS: [u8; 4] = [0; 4];
const NO_EXTENSION: [u8; 4] = [0; 4];
const NULL_LENGTH: i32 = -1;
const END: i16 = -1;
const COLUMNS: i16 = 20;
const CHUNK_BYTES: usize = 256 * 1024;

pub(crate) async fn copy_in(
    connection: &mut PgConnection,
    schema: Schema,
    rows: &[Row],
) -> Result<(), sqlx::Error> {
    let sql = format!(
        "COPY {schema}.installations
             (source, platform, place, installation_id, app_id, scope, generation, status,
              granted_permissions, credential_prefix, credential_sealed, credential_event,
              credential_field, installed_at, uninstalled_at, superseded_by, last_event_sequence,
              last_event_type, details, credential_expires_at)
         FROM STDIN (FORMAT binary)"
    );
    let mut copy = connection.copy_in_raw(&sql).await?;
    let mut buffer = PgArgumentBuffer::default();
    for part in [SIGNATURE, &NO_FLAGS, &NO_EXTENSION] {
        buffer.extend_from_slice(part);
    }
    for row in rows {
        push(&mut buffer, &row.flat()).map_err(sqlx::Error::Encode)?;
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

fn push(buffer: &mut PgArgumentBuffer, row: &Flat<'_>) -> Result<(), BoxDynError> {
    buffer.extend_from_slice(&COLUMNS.to_be_bytes());
    field(buffer, &row.source)?;
    field(buffer, &row.platform)?;
    field(buffer, &row.place)?;
    field(buffer, &row.installation_id)?;
    field(buffer, &row.app_id)?;
    field(buffer, &Json(row.scope))?;
    field(buffer, &row.generation)?;
    field(buffer, &row.status)?;
    field(buffer, &row.granted_permissions)?;
    field(buffer, &row.credential_prefix)?;
    field(buffer, &row.credential_sealed)?;
    field(buffer, &row.credential_event)?;
    field(buffer, &row.credential_field)?;
    field(buffer, &row.installed_at)?;
    field(buffer, &row.uninstalled_at)?;
    field(buffer, &row.superseded_by)?;
    field(buffer, &row.last_event_sequence)?;
    field(buffer, &row.last_event_type)?;
    field(buffer, &Json(row.details))?;
    field(buffer, &row.credential_expires_at)
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
