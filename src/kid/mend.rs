//! Whether the source still captures every table of the sync, looked at whenever the kid looks at the tables; and the
//! mending where it does not: a table that was dropped and made anew, a key that got another name or type, a trigger
//! that somebody dropped. What was written meanwhile is not known, so such a table travels whole once. It must never
//! let a run go on that believes a table unchanged because nothing captures it.

use super::gather::Asker;
use super::shape::Shapes;
use super::who;
use crate::capture::install::{self, Captured, Owner};
use crate::error::{Error, Result, SqlState};
use crate::guc;
use crate::libpq::Conn;

/// Captures anew what is not captured as it should be. To be called outside of a transaction.
pub fn mend(conn: &mut Conn, asker: &Asker<'_>, shapes: &Shapes) -> Result<()> {
    let sync = asker.sync;
    let name = sync.capture_name();
    let states = install::state(conn, asker.control, &name)?;
    let mut broken = Vec::new();
    for relation in sync.relations.iter().filter(|r| !r.is_sequence) {
        let Some(table) = shapes.get(&relation.id) else { continue };
        let Some(key) = &table.key else {
            return Err(Error::new(SqlState::WRONG_STATE, format!("table {} has no key any more", table.name))
                .hint(format!("ALTER TABLE {} ADD PRIMARY KEY (…);", table.name)));
        };
        let fault = match states.get(&table.oid) {
            None => Some("nothing captures it".to_string()),
            Some(state) => state.broken(key),
        };
        if let Some(fault) = fault {
            if guc::logs(guc::LogLevel::Normal) {
                pgrx::log!("bucardo: sync \"{}\": table {} is captured anew: {fault}", sync.name, table.name);
            }
            broken.push(Captured { oid: table.oid, key: key.clone() });
        }
    }
    let source = &sync.members[asker.source].db.name;
    let receivers: Vec<String> = sync.members.iter().map(|m| m.db.name.clone()).filter(|n| n != source).collect();
    let known = install::known(conn, asker.control, &name)?;
    if let Some(other) = install::is_copy(&known, source) {
        return Err(who::copy_of(source, other));
    }
    let known: Vec<&String> = known.iter().filter(|(s, _)| s == source).map(|(_, member)| member).collect();
    // A source that was away while a member was added does not know it yet.
    if broken.is_empty() && receivers.iter().all(|r| known.contains(&r)) {
        return Ok(());
    }
    let owner = Owner { control: asker.control, sync: &name, source, receivers: &receivers };
    install::install_at_once(conn, &owner, &broken, !broken.is_empty())
}
