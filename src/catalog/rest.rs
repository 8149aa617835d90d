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

#[cfg(test)]
mod tests {
    use super::super::sync::tests::sync;
    use super::*;
    use Role::{Source, Target};

    #[test]
    fn a_sync_is_whole_with_a_source_and_one_to_send_to() {
        assert!(sync(&[("A", Source), ("B", Target)], &[]).is_whole());
        assert!(sync(&[("A", Source), ("B", Source)], &[]).is_whole());
        for members in [&[][..], &[("A", Source)], &[("A", Target), ("B", Target)]] {
            assert!(!sync(members, &[]).is_whole(), "{members:?}");
        }
    }

    #[test]
    fn the_statement_that_completes_it_names_what_is_missing() {
        let list = |members: &[(&str, Role)]| {
            let statement = sync(members, &[]).completion();
            let list = statement.strip_prefix("SELECT bucardo.update_sync('s', dbs => '").unwrap();
            list.strip_suffix("', status => 'active');").unwrap().to_string()
        };
        assert_eq!(list(&[("A", Source)]), "A:source,…:target");
        assert_eq!(list(&[("B", Target)]), "…:source,B:target");
        assert_eq!(list(&[("B", Target), ("C", Target)]), "…:source,B:target,C:target");
        assert_eq!(list(&[]), "…:source,…:target");
    }

    #[test]
    fn it_sleeps_while_nobody_can_send_or_nobody_can_receive() {
        let asleep = |members: &[(&str, Role)], inactive: &[&str]| {
            let mut s = sync(members, &[]);
            s.members.iter_mut().for_each(|m| m.db.active = !inactive.contains(&m.db.name.as_str()));
            s.asleep()
        };
        let one = [("A", Source), ("B", Target), ("C", Target)];
        assert!(asleep(&one, &[]).is_empty());
        assert!(asleep(&one, &["B"]).is_empty());
        assert_eq!(asleep(&one, &["B", "C"]), ["B", "C"]);
        assert_eq!(asleep(&one, &["A"]), ["A"]);
        let two = [("A", Source), ("B", Source), ("C", Target)];
        assert!(asleep(&two, &["A", "C"]).is_empty(), "the source that is left keeps what it has for the others");
        assert_eq!(asleep(&two, &["A", "B"]), ["A", "B"]);
    }
}
