//! What a source has for the others in one attempt: its snapshot, since when each of them has not been served, and the
//! changes in between. Plain data; `open` fills it in.

use std::collections::HashMap;

use super::marks::Pending;
use crate::catalog::sync::Sync;
use crate::kid::apply::Pass;
use crate::kid::bits;
use crate::kid::gather::TableChanges;
use crate::kid::retry::Care;
use crate::kid::shape::Shapes;
use crate::kid::statements::{Window, commit_time};

/// A TRUNCATE that others have not got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Truncated {
    /// When, as changes are timed.
    pub at: i64,
    /// The members towards which it is pending, as bits.
    pub towards: u64,
    /// The same with those that have got it otherwise.
    pub sent: u64,
    /// What tells it from others, and towards whom it is pending.
    pub pending: Vec<Pending>,
    /// The transactions: it may have happened more than once.
    pub xids: Vec<i64>,
    /// Whether a member that is away now has had it.
    pub elsewhere: bool,
}

/// Changes that are handled: those that lost a conflict, for everybody; those that nobody has won, but for some; and those that
/// some have got otherwise than by a run that served them.
#[derive(Clone, Debug)]
pub struct Settled {
    pub snapshot: Window,
    pub keys: Vec<Vec<String>>,
    /// The members against which they still contend, or to which they still go, as bits.
    pub open: u64,
    /// Whether the others know them, as if they had been served: else they stay where they are.
    pub known: bool,
    /// Whether somebody who takes part has got them by way of another one.
    pub heard: bool,
    /// Whether that one has written upon them what their author has not got: then no target gets them any more.
    pub older: bool,
}

/// What a source has for the others.
#[derive(Debug, Default)]
pub struct Offer {
    pub snapshot: String,
    /// The server's identifier, its timeline, and where its log was when the snapshot had been taken.
    pub identity: String,
    /// Where its log is then, as [`PLACE`](crate::kid::who::PLACE) tells it.
    pub place: String,
    /// Whether the server keeps the times of commits.
    pub commit_times: bool,
    /// Where its log must be flushed to before others may say that they have this; None: it is.
    pub unflushed: Option<String>,
    /// Since when each other member (by its place in the sync) has not been served.
    pub windows: Vec<(usize, Window)>,
    /// The same of members that are away, as far as the source knows.
    pub absent: Vec<Window>,
    /// Those of them that belong to the sync, by their places in it.
    pub away: Vec<(usize, Window)>,
    /// All of them in one.
    pub window: Option<Window>,
    /// The tables with changes, by their order in the sync.
    pub changes: Vec<TableChanges>,
    pub truncated: HashMap<i32, Truncated>,
    /// Tables of which every row may have changed, and towards whom that is pending.
    pub whole: HashMap<i32, u64>,
    /// Members to whom others' truncates come late, and which are made equal to this source instead, as bits.
    pub late: HashMap<i32, u64>,
    pub settled: HashMap<u32, Vec<Settled>>,
    /// Members that get whole tables now, as bits; of the second only tables that are empty there.
    pub copy_all: u64,
    pub copy_empty: u64,
    /// Sources that have got further than it has noted, as bits; and since when they have not been served, as it has it.
    pub behind: u64,
    pub noted: Vec<(usize, Window)>,
    /// Whether an account of it is not to be believed any more, and must be noted anew before it looks as if it were.
    pub unbelieved: bool,
    /// Whether it holds others' changes, kept for members that were away: all are here now, and get them from those others.
    pub echoed: bool,
    /// Whether others have notes of it that end when they have been served.
    pub heard: bool,
    /// The last change in any table.
    pub latest: i64,
}

impl Offer {
    /// Whether it has anything for anybody.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.truncated.is_empty() && self.whole.is_empty()
    }

    /// Whether its receivers get further by this run.
    pub fn has_news(&self) -> bool {
        !self.is_empty()
            || self.copy_all != 0
            || self.copy_empty != 0
            || self.behind != 0
            || self.unbelieved
            || self.echoed
            || self.heard
    }

    /// The changes of a table.
    pub fn change(&self, relation: i32) -> Option<&TableChanges> {
        self.changes.iter().find(|c| c.relation == relation)
    }

    /// The window in which all others lie.
    pub fn union(&self) -> Window {
        self.window.clone().unwrap_or_else(|| union(&self.windows))
    }

    /// Whether all were served up to the same place.
    pub fn is_level(&self) -> bool {
        self.windows.iter().all(|(_, w)| Some(w) == self.windows.first().map(|(_, w)| w))
    }

    /// The expression for the members towards which a delta of the window of all is pending, also those that are away.
    pub fn towards(&self) -> String {
        let union = self.union();
        let (all, some): (Vec<_>, Vec<_>) = self.windows.iter().chain(&self.away).partition(|(_, w)| covers(w, &union));
        let all = format!("{}::pg_catalog.int8", bits::of(all.iter().map(|(m, _)| *m)) as i64);
        if some.is_empty() {
            return all;
        }
        let one = |(member, window): &&(usize, Window)| {
            format!(" | CASE WHEN {} THEN {}::pg_catalog.int8 ELSE 0 END", window.condition(), 1_i64 << member)
        };
        format!("({all}{})", some.iter().map(one).collect::<String>())
    }

    /// The members towards which a transaction's changes are pending, as bits.
    pub fn pending(&self, xid: i64) -> u64 {
        bits::of(self.windows.iter().filter(|(_, w)| w.holds(xid)).map(|(m, _)| *m))
    }

    /// The expression for the time of a delta `d`.
    pub fn time(&self) -> &'static str {
        if self.commit_times { commit_time(true) } else { "d.at" }
    }
}

impl<'a> Pass<'a> {
    /// What a source has for all others, as it is read: nothing is left out, and nobody captures it. `news`: see
    /// [`Reading::news`](crate::kid::reading::Reading::news).
    pub(super) fn of_offer(
        sync: &'a Sync,
        care: Care,
        offer: &'a Offer,
        (source, source_version): (&'a Shapes, i32),
        news: String,
    ) -> Self {
        Pass {
            sync,
            changes: &offer.changes,
            window: offer.union(),
            care,
            source,
            source_version,
            news,
            excluded: HashMap::new(),
            level: offer.is_level(),
            noted: HashMap::new(),
            relayed: 0,
            origin: String::new(),
            tag: String::new(),
        }
    }
}

/// Whether a window holds all that another one holds.
pub(super) fn covers(window: &Window, other: &Window) -> bool {
    let number = |w: &Window| w.xmax.parse::<i64>().unwrap_or(0);
    number(window) <= number(other) && other.running().all(|xid| window.holds(xid))
}

/// The window that holds what any of these holds: from the lowest end on, and whatever ran for any of them.
pub fn union(windows: &[(usize, Window)]) -> Window {
    let number = |w: &Window| w.xmax.parse::<i64>().unwrap_or(0);
    let xmax = windows.iter().map(|(_, w)| number(w)).min().unwrap_or(0);
    let mut xip: Vec<i64> = windows.iter().flat_map(|(_, w)| w.running()).filter(|x| *x < xmax).collect();
    xip.sort_unstable();
    xip.dedup();
    let list: Vec<String> = xip.iter().map(i64::to_string).collect();
    Window { xmax: xmax.to_string(), xip: format!("{{{}}}", list.join(",")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kid::gather::window;

    #[test]
    fn a_union_holds_what_any_window_holds() {
        let all = vec![(1, window("90:120:100,110")), (2, window("90:105:95"))];
        let both = union(&all);
        for xid in 80..130 {
            assert_eq!(both.holds(xid), all.iter().any(|(_, w)| w.holds(xid)), "{xid}");
        }
    }

    #[test]
    fn who_waits_for_a_transaction() {
        let offer = Offer { windows: vec![(1, window("90:120:100")), (3, window("130:130:"))], ..Offer::default() };
        assert_eq!((offer.pending(100), offer.pending(125), offer.pending(130), offer.pending(99)), (0b10, 0b10, 0b1010, 0));
        assert!(!offer.is_level());
    }

    #[test]
    fn who_is_away_counts_where_it_waits_for_a_delta() {
        let away = |served: &str| Offer {
            windows: vec![(1, window("90:120:100"))],
            away: vec![(3, window(served))],
            ..Offer::default()
        };
        for older in ["90:120:100", "90:110:100", "80:90:", "90:120:90,100"] {
            assert_eq!(away(older).towards(), "10::pg_catalog.int8", "{older}");
        }
        for newer in ["90:120:", "130:130:", "100:125:100"] {
            assert!(away(newer).towards().starts_with("(2::pg_catalog.int8 | CASE WHEN (xid >= "), "{newer}");
        }
    }
}
