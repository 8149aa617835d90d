//! Rows that a run writes as it says itself, on every member, beside what sources send. What of this no source has changed
//! is captured, since members that are away must get it too; it must never be captured where a source has it to send anyway.

use super::Mesh;
use crate::ident::quote_literal;
use crate::kid::gather::text_array;
use crate::kid::statements::list;

/// A key that is written as it is said here, on every member.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub key: Vec<String>,
    /// As JSON; None: the row is deleted.
    pub row: Option<String>,
    /// The columns that are written where the row is there, null by then; none: all.
    pub cleared: Vec<String>,
    /// The members that need it, as bits.
    pub towards: u64,
    /// Whether the run does it unasked: no source has changed the key, so that none has anything to send to who is away.
    pub unasked: bool,
}

impl Written {
    /// What all need.
    pub fn everywhere(key: Vec<String>, row: Option<String>) -> Self {
        Self { key, row, cleared: Vec::new(), towards: u64::MAX, unasked: false }
    }
}

/// How many rows, and bytes of them, are written by one round trip.
const AT_ONCE: usize = 500;
const BYTES: usize = 1024 * 1024;

/// The rows in parts for one round trip each.
pub(super) fn portions(written: &[Written]) -> Vec<&[Written]> {
    let (mut all, mut rest) = (Vec::new(), written);
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |one: &&Written| {
            bytes += one.row.as_ref().map_or(0, String::len);
            bytes <= BYTES
        };
        let (some, more) = rest.split_at(rest.iter().take(AT_ONCE).take_while(fits).count().max(1));
        all.push(some);
        rest = more;
    }
    all
}

impl Mesh<'_> {
    /// Has a source capture, as changes of its own, what the run does to rows that nobody has changed: a member that is away,
    /// or that fails in this run, gets it from there. If all take part and are sources, they commit it together.
    pub(super) fn note_unasked(&mut self, at: usize, relation: i32, written: &[Written]) {
        let all_sources = self.members.len() == self.plan.sync.members.len() && self.offers.iter().all(Option::is_some);
        let unasked: Vec<&Written> = written.iter().filter(|one| one.unasked).collect();
        let Some(table) = self.members[at].shapes.get(&relation).filter(|_| !all_sources && !unasked.is_empty()) else { return };
        let key = self.key_of(relation);
        let value = |one: &Written, i: usize| {
            let kind = table.column(&key[i]).map_or("pg_catalog.text", |c| c.type_name.as_str());
            format!("{}::{kind} AS k{}", quote_literal(&one.key[i]), i + 1)
        };
        let row = |one: &&Written| {
            let keys = list(key.len().min(one.key.len()), |i| value(one, i), ", ");
            format!("SELECT {keys}, pg_catalog.clock_timestamp() AS at")
        };
        let query = unasked.iter().map(row).collect::<Vec<_>>().join(" UNION ALL ");
        let names = text_array(&key.iter().map(String::as_str).collect::<Vec<_>>());
        let sql = "SELECT bucardo.capture_note($1::pg_catalog.oid, $2::pg_catalog.text[], $3, NULL)";
        let oid = table.oid.to_string();
        self.errand(at, sql.to_string(), vec![oid, names, query]);
    }
}

#[cfg(test)]
mod tests {
    use super::{AT_ONCE, BYTES, Written, portions};

    #[test]
    fn portions_are_bounded_and_hold_all() {
        let row = |size: usize| Written::everywhere(Vec::new(), Some("x".repeat(size)));
        let sizes = |all: &[Written]| portions(all).iter().map(|p| p.len()).collect::<Vec<_>>();
        assert_eq!(sizes(&[]), Vec::<usize>::new());
        assert_eq!(sizes(&vec![row(1); AT_ONCE + 1]), [AT_ONCE, 1]);
        assert_eq!(sizes(&[row(1), row(BYTES), row(BYTES + 1), row(BYTES / 2), row(BYTES / 2)]), [1, 1, 1, 2]);
    }
}
