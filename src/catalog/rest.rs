//! Why a sync does not run at all, and the statement that mends it: for who kicks it, for `validate_sync`, and for the
//! master. The view `bucardo.asleep` says the same to `bucardo.status` and to `kick`. Pure; it looks nothing up.

use super::sync::{Role, Sync};
use crate::error::{Error, SqlState};
use crate::ident::quote_literal;

/// It is inactive.
pub fn inactive(name: &str) -> Error {
    Error::new(SqlState::WRONG_STATE, format!("sync \"{name}\" is not active"))
        .hint(format!("SELECT bucardo.activate({});", quote_literal(name)))
}

/// It is paused.
pub fn paused(name: &str) -> Error {
    Error::new(SqlState::WRONG_STATE, format!("sync \"{name}\" is paused"))
        .hint(format!("SELECT bucardo.resume({});", quote_literal(name)))
}

/// These members are inactive, and one of them is needed.
pub fn asleep(name: &str, dbs: &[String]) -> Error {
    let list: Vec<String> = dbs.iter().map(|db| format!("\"{db}\"")).collect();
    let (noun, are) = if dbs.len() == 1 { ("db", "is") } else { ("dbs", "are all") };
    let first = dbs.first().map_or("…", String::as_str);
    Error::new(SqlState::WRONG_STATE, format!("sync \"{name}\" cannot run: {noun} {} {are} inactive", list.join(", ")))
        .hint(format!("SELECT bucardo.update_db({}, status => 'active');", quote_literal(first)))
}

impl Sync {
    /// Whether there is somebody to send, and somebody to send to.
    pub fn is_whole(&self) -> bool {
        self.sources().next().is_some() && self.members.len() > 1
    }

    /// The statement that gives it what it lacks to be whole.
    pub fn completion(&self) -> String {
        let mut list: Vec<String> = self.members.iter().map(|m| format!("{}:{}", m.db.name, m.role.as_str())).collect();
        if self.sources().next().is_none() {
            list.insert(0, "…:source".into());
        }
        if list.len() < 2 {
            list.push("…:target".into());
        }
        let (name, list) = (quote_literal(&self.name), quote_literal(&list.join(",")));
        format!("SELECT bucardo.update_sync({name}, dbs => {list}, status => 'active');")
    }

    /// The members of which one must be active before it can run: all sources, or all that would receive.
    pub fn asleep(&self) -> Vec<String> {
        let several = self.sources().count() > 1;
        let names = |sends: bool| {
            self.members.iter().filter(|m| (m.role == Role::Source) == sends).map(|m| m.db.name.clone()).collect::<Vec<_>>()
        };
        if !self.sources().any(|m| m.db.active) {
            names(true)
        } else if several || self.members.iter().any(|m| m.role != Role::Source && m.db.active) {
            Vec::new()
        } else {
            names(false)
        }
    }
}
