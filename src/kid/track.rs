//! How far each receiver has been served, kept at the source for receivers that are no source themselves. Written
//! after the receiver has committed: losing it only sends again what is there already.

use super::gather::Asker;
use super::who::{self, Places};
use crate::error::Result;
use crate::ident::text_array;
use crate::libpq::Conn;

const SERVED: &str = "UPDATE bucardo.capture_track t SET served = $4, at = pg_catalog.clock_timestamp(), \
    place = coalesce((SELECT nullif(u.place, '') FROM unnest($5::pg_catalog.text[], $8::pg_catalog.text[]) u(member, place) \
        WHERE u.member = t.member), t.place), \
    copy = CASE WHEN copy = 'all' AND member = ANY ($6::pg_catalog.text[]) OR copy = 'empty' AND member = ANY ($7::pg_catalog.text[]) \
    THEN NULL ELSE copy END \
    WHERE control = $1 AND sync = $2 AND source = $3 AND member = ANY ($5::pg_catalog.text[])";

/// What was settled is forgotten when everybody has passed it.
const FORGET: &str = "DELETE FROM bucardo.capture_settled s WHERE s.control = $1 AND s.sync = $2 AND NOT EXISTS ( \
    SELECT FROM bucardo.capture_track t WHERE t.control = s.control AND t.sync = s.sync \
    AND t.served <> s.snapshot \
    AND pg_catalog.pg_snapshot_xmin(t.served::pg_catalog.pg_snapshot) < pg_catalog.pg_snapshot_xmax(s.snapshot::pg_catalog.pg_snapshot))";

/// Whole tables that members have got in the run because it had found `all` and `empty` noted for them: what was noted since
/// then stays.
pub type Copied = (u64, u64);

/// Notes at the source that the members were served up to the snapshot. It does not wait for the disk.
pub fn mark(conn: &mut Conn, asker: &Asker<'_>, snapshot: &str, members: u64, (copied, places): (Copied, &Places)) -> Result<()> {
    conn.pipeline_begin()?;
    queue(conn, asker, snapshot, members, (copied, places))?;
    conn.pipeline_send()?;
    conn.pipeline_collect().map(drop)
}

/// Ends the source's transaction and notes the same, in one round trip. Where the source's log is then.
pub fn end(conn: &mut Conn, asker: &Asker<'_>, snapshot: &str, members: u64, places: &Places) -> Result<String> {
    conn.pipeline_begin()?;
    who::queue_commit(conn)?;
    queue(conn, asker, snapshot, members, ((0, 0), places))?;
    conn.pipeline_send()?;
    who::committed(conn)
}

fn queue(conn: &mut Conn, asker: &Asker<'_>, snapshot: &str, members: u64, (copied, places): (Copied, &Places)) -> Result<()> {
    let those = |bits: u64| asker.sync.members.iter().enumerate().filter(move |(i, _)| bits & (1 << i) != 0);
    let named = |bits: u64| text_array(those(bits).map(|(_, m)| m.db.name.as_str()));
    let place = |i| places.get(&i).map_or_else(String::new, |(identity, place)| format!("{identity} {place}"));
    let source = &asker.sync.members[asker.source].db.name;
    let (array, all, empty) = (named(members), named(members & copied.0), named(members & copied.1));
    let places = text_array(those(members).map(|(i, _)| place(i)));
    conn.pipeline_add("BEGIN", &[], &[])?;
    conn.pipeline_add("SET LOCAL synchronous_commit = off", &[], &[])?;
    let sync = asker.sync.capture_name();
    let params = [asker.control, &sync, source, snapshot, &array, &all, &empty, &places].map(|p| Some(p.as_bytes()));
    conn.pipeline_add(SERVED, &[], &params)?;
    if asker.sync.sources().count() > 1 {
        conn.pipeline_add(FORGET, &[], &params[..2])?;
    }
    conn.pipeline_add("COMMIT", &[], &[])
}
