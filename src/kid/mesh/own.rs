//! How far a source was served by another one, by its own account, which stands beside the rows and was committed with
//! them. It goes before the other one's copy of it, which may be behind after a crash. It must not be believed when that
//! other one has failed over and lost what it had given, because it gives the numbers of lost transactions again.

use super::Mesh;
use crate::kid::who::{self, location};

/// What an account says of the server that it was noted of, compared with the one that is there.
#[derive(Debug, PartialEq, Eq)]
enum Account {
    Holds,
    /// It is the same database on a later timeline, and held if that one begins behind where its log was.
    Doubtful,
    Void,
}

impl Mesh<'_> {
    /// Whether the source `at` still has all that it had when a receiver noted of it what `noted` says. `here`: what would
    /// be noted now. `rewound`: the timeline on which it was found to have lost commits, if it was.
    pub(super) fn still_has(&mut self, at: usize, here: &str, noted: &str, rewound: Option<&str>) -> bool {
        match compare(here, noted, rewound) {
            Account::Holds => true,
            Account::Void => false,
            Account::Doubtful => {
                let place = |identity: &str| identity.split_once('/').map_or_else(String::new, |(_, place)| place.to_string());
                let (then, now) = (place(noted), place(here));
                // The question may be refused; the transaction must go on.
                let lost = self.members[at].attempt(|conn| {
                    conn.query("SAVEPOINT bucardo_history")?;
                    let lost = who::has_lost(conn, &then, &now);
                    conn.query("ROLLBACK TO SAVEPOINT bucardo_history; RELEASE SAVEPOINT bucardo_history")?;
                    Ok(lost)
                });
                lost == Some(false)
            }
        }
    }
}

/// Identities as [`super::offer::Offer`] has them: system/timeline:location.
fn compare(here: &str, noted: &str, rewound: Option<&str>) -> Account {
    let server = |identity: &str| identity.split(':').next().unwrap_or("").to_string();
    let (now, then) = (server(here), server(noted));
    let place = |identity: &str| identity.split_once(':').and_then(|(_, place)| location(place));
    // Its log was on the disk up to where that was noted; if it ends before, its files were put back to what they were.
    if now == then {
        let gone = place(here).zip(place(noted)).is_some_and(|(here, noted)| here < noted);
        return if gone { Account::Void } else { Account::Holds };
    }
    let (Some((system, _)), Some((was, timeline))) = (now.split_once('/'), then.split_once('/')) else { return Account::Void };
    // Timelines have eight digits.
    if system != was || !noted.contains(':') || rewound.is_some_and(|rewound| timeline < rewound) {
        return Account::Void;
    }
    Account::Doubtful
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_holds_on_its_own_timeline_and_is_looked_into_on_a_later_one() {
        let here = "7/00000002:0/5000000";
        assert_eq!(compare(here, "7/00000002:0/4000000", None), Account::Holds);
        assert_eq!(compare(here, "7/00000002:0/5000000", None), Account::Holds);
        assert_eq!(compare(here, "7/00000002:0/5000001", None), Account::Void, "put back");
        assert_eq!(compare(here, "7/00000002:1/0", None), Account::Void, "put back");
        assert_eq!(compare(here, "7/00000002", None), Account::Holds, "as it was noted once");
        assert_eq!(compare(here, "7/00000001:0/4000000", None), Account::Doubtful);
        assert_eq!(compare(here, "7/00000001", None), Account::Void, "nobody knows where that was");
        assert_eq!(compare(here, "8/00000001:0/4000000", None), Account::Void, "another database");
        assert_eq!(compare(here, "", None), Account::Void);
    }

    #[test]
    fn what_was_noted_before_a_loss_holds_no_more() {
        let (here, noted) = ("7/00000003:0/6000000", "7/00000001:0/4000000");
        assert_eq!(compare(here, noted, Some("00000002")), Account::Void);
        assert_eq!(compare(here, "7/00000002:0/5000000", Some("00000002")), Account::Doubtful);
    }
}
