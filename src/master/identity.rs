//! Whether this is the control database that it was, and not a copy of it: a copy has the same catalog, and two masters
//! with one catalog would serve the members twice. Only what differs in a copy can be seen: another system or database, or
//! the same timeline in another file. A copy that was promoted looks like a standby that took over, and may work.

use std::os::unix::fs::MetadataExt;

use crate::error::Result;
use crate::pg::spi;

const HERE: &str = "SELECT (SELECT s.system_identifier FROM pg_catalog.pg_control_system() s) || '/' || d.oid || ':' || \
    pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) \
    FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()";

/// Why no master may work here; None: one may, and it is noted where. To be called in a transaction.
pub fn refusal() -> Result<Option<String>> {
    // Server processes run in the data directory; the file is written in place for ever, and a copy is another file.
    let file = std::fs::metadata("global/pg_control").map_or(0, |m| m.ino());
    let here = format!("{}:{file}", spi::value::<String>(HERE, &[])?.unwrap_or_default());
    let known = spi::value::<String>("SELECT identity FROM bucardo.control", &[])?;
    if let Some(why) = known.as_deref().and_then(|known| difference(known, &here)) {
        return Ok(Some(format!(
            "this is a copy of the control database ({why}); if it is to go on in its place, and that one is gone: SELECT bucardo.start();"
        )));
    }
    if known.as_ref() != Some(&here) {
        // Who holds the row may be waiting for the master, as `stop` does: then it is noted at the next start.
        let sql = "WITH free AS MATERIALIZED (SELECT id FROM bucardo.control FOR NO KEY UPDATE SKIP LOCKED) \
            UPDATE bucardo.control c SET identity = $1 FROM free WHERE c.id = free.id";
        spi::execute(sql, &[here.as_str().into()])?;
    }
    Ok(None)
}

/// What tells that it is a copy; None: the same, or a standby of it that was promoted. Both as database:timeline:file.
fn difference(known: &str, here: &str) -> Option<&'static str> {
    let parts = |text: &str| {
        let mut parts = text.split(':').map(str::to_string);
        Some((parts.next()?, u32::from_str_radix(&parts.next()?, 16).ok()?, parts.next()?))
    };
    let (known, here) = (parts(known)?, parts(here)?);
    if known.0 != here.0 {
        Some("another system identifier or database")
    } else if known.1 < here.1 || known == here {
        None
    } else {
        Some("the same timeline in other files")
    }
}

#[cfg(test)]
mod tests {
    use super::difference;

    #[test]
    fn a_copy_differs_and_a_promoted_standby_does_not() {
        let known = "700/16384:00000001:55";
        assert_eq!(difference(known, known), None);
        assert_eq!(difference(known, "700/16384:00000002:99"), None);
        assert!(difference(known, "700/16384:00000001:99").is_some());
        assert!(difference(known, "701/16384:00000002:55").is_some());
        assert!(difference(known, "700/16999:00000001:55").is_some());
        assert!(difference("700/16384:0000000A:55", "700/16384:00000009:99").is_some());
    }
}
