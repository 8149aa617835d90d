//! Sets of a sync's members as bits, by their places in it: what the master names to a kid, and what changes wait for.
//! Pure.

use std::collections::HashMap;

use crate::catalog::sync::{Member, Relation, Role, Sync};

/// The members at these places.
pub fn of(places: impl Iterator<Item = usize>) -> u64 {
    union(places.map(|place| 1 << place))
}

/// The members that are in any of the sets.
pub fn union(sets: impl Iterator<Item = u64>) -> u64 {
    sets.fold(0, |all, set| all | set)
}

/// The members of which that is true.
pub fn where_member(sync: &Sync, is: impl Fn(&Member) -> bool) -> u64 {
    of(sync.members.iter().enumerate().filter(|(_, m)| is(m)).map(|(place, _)| place))
}

/// The members that are active.
pub fn active(sync: &Sync) -> u64 {
    where_member(sync, |m| m.db.active)
}

pub fn sources(sync: &Sync) -> u64 {
    where_member(sync, |m| m.role == Role::Source)
}

/// The source that receives nothing because there is no other.
pub fn only_source(sync: &Sync) -> u64 {
    Some(sources(sync)).filter(|sources| sources.count_ones() == 1).unwrap_or(0)
}

/// The members that capture what they get because `makedelta` says so, by relation.
pub fn noted(sync: &Sync) -> HashMap<i32, u64> {
    let noted = |r: &Relation| (r.id, where_member(sync, |m| r.makedelta.unwrap_or(m.db.makedelta)));
    sync.relations.iter().filter(|r| !r.is_sequence).map(noted).filter(|(_, bits)| *bits != 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_become_bits() {
        assert_eq!(of([0, 3, 63].into_iter()), 1 | 1 << 3 | 1 << 63);
        assert_eq!(of(std::iter::empty()), 0);
        assert_eq!(union([0b001, 0b101, 0b100].into_iter()), 0b101);
    }
}
