//! What there is in a database: to prove that a call which failed, or was undone, left nothing behind.
//!
//! It lists the server's own catalogs by name. It must never look at how the extension names its things: whatever is new
//! is left behind.

use crate::net::Net;
use crate::wait::reached;
use crate::wire::Conn;
use std::collections::BTreeSet;

const LISTING: &str = "
SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp'
UNION ALL SELECT 'relation ' || n.nspname || '.' || relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
          WHERE n.nspname NOT LIKE 'pg\\_toast%' AND n.nspname !~ '^pg_temp'
UNION ALL SELECT 'function ' || p.oid::regprocedure::text FROM pg_proc p WHERE oid >= 16384
UNION ALL SELECT 'trigger ' || tgname || ' on ' || tgrelid::regclass FROM pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT 'event trigger ' || evtname FROM pg_event_trigger
UNION ALL SELECT 'type ' || n.nspname || '.' || typname FROM pg_type t JOIN pg_namespace n ON n.oid = typnamespace
          WHERE t.oid >= 16384 AND n.nspname NOT LIKE 'pg\\_toast%' AND n.nspname !~ '^pg_temp'
UNION ALL SELECT 'role ' || rolname FROM pg_roles";

/// The rows of the catalog that a user configures, as far as there is one here.
const CATALOG: [&str; 7] = ["db", "dbgroup", "dbmap", "relation", "relgroup", "relmap", "sync"];

#[derive(PartialEq, Eq)]
pub struct Footprint(Vec<(String, BTreeSet<String>)>);

impl Footprint {
    /// Of all members and of the control database.
    pub fn of(net: &Net) -> Footprint {
        let mut all = vec![("control".to_owned(), listing(&mut net.control(), true))];
        for member in &net.members {
            all.push((member.name.to_owned(), listing(&mut net.on(member.name), false)));
        }
        Footprint(all)
    }

    pub fn changes_since(&self, before: &Footprint) -> String {
        let mut text = String::new();
        for ((name, now), (_, then)) in self.0.iter().zip(&before.0) {
            now.difference(then).for_each(|line| text += &format!("\n    left on {name}: {line}"));
            then.difference(now).for_each(|line| text += &format!("\n    gone from {name}: {line}"));
        }
        text
    }
}

fn listing(conn: &mut Conn, with_catalog: bool) -> BTreeSet<String> {
    let mut lines: BTreeSet<String> = conn.query(LISTING).into_iter().filter_map(|row| row[0].clone()).collect();
    for table in CATALOG.iter().filter(|_| with_catalog) {
        let rows = conn.query(&format!("SELECT (to_jsonb(t) - 'created')::text FROM bucardo.{table} t"));
        lines.extend(rows.into_iter().filter_map(|row| row[0].clone()).map(|row| format!("row of {table}: {row}")));
    }
    lines
}

/// Now: a call that failed leaves nothing, not even for a while.
#[track_caller]
pub fn assert_unchanged(net: &Net, before: &Footprint, what: &str) {
    let now = Footprint::of(net);
    assert!(now == *before, "{what} left something behind:{}", now.changes_since(before));
}

/// In a while: where the contract gives the master some seconds to clean up.
#[track_caller]
pub fn wait_unchanged(net: &Net, before: &Footprint, what: &str) {
    let unchanged = reached(|| Footprint::of(net) == *before);
    assert!(unchanged, "{what} left something behind:{}", Footprint::of(net).changes_since(before));
}
