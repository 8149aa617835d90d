//! Conflicts along a cascade: a relayed copy has the time of the original change, and so never looks newer than it is; the
//! order in which the syncs are kicked changes nothing in what is left.

use super::cascade::Web;
use crate::wait::wait_until;

/// Two syncs meet in B; both directions, run by kicks only.
fn chain() -> Web {
    let mut web = Web::new(&["A", "B", "C"], &["B"]);
    web.sync("ab", "A:source,B:source", ", autokick => false");
    web.sync("bc", "B:source,C:source", ", autokick => false");
    web
}

fn write(web: &Web, name: &str, id: i32) {
    web.net.on(name).exec(&format!("INSERT INTO t VALUES ({id}, '{name}') ON CONFLICT (id) DO UPDATE SET val = excluded.val"));
}

#[test]
fn a_relayed_copy_does_not_beat_a_later_change() {
    let web = chain();
    write(&web, "A", 1);
    write(&web, "C", 1);
    // The relay writes A's row on B after C's change: that is no change of B's time.
    assert_eq!(web.kick("ab"), "good");
    assert_eq!(web.kick("bc"), "good");
    web.quiet();
    web.expect("SELECT val FROM t", "C");
    let decided = r#"sync = 'bc' AND winner = 'C' AND rows = '{"B": {"id": 1, "val": "A"}, "C": {"id": 1, "val": "C"}}'"#;
    assert_eq!(web.net.control().number(&format!("SELECT count(*) FROM bucardo.conflict WHERE {decided}")), 1);
}

#[test]
fn a_relayed_copy_beats_an_earlier_change() {
    let web = chain();
    write(&web, "C", 1);
    write(&web, "A", 1);
    assert_eq!(web.kick("ab"), "good");
    assert_eq!(web.kick("bc"), "good");
    web.quiet();
    web.expect("SELECT val FROM t", "A");
}

/// Also through two relays, and for a deletion.
#[test]
fn the_original_time_travels_down_a_long_chain() {
    let mut web = Web::new(&["A", "B", "C", "D"], &["B", "C"]);
    for (name, dbs) in [("ab", "A:source,B:source"), ("bc", "B:source,C:source"), ("cd", "C:source,D:source")] {
        web.sync(name, dbs, ", autokick => false");
    }
    web.net.everywhere("SET session_replication_role = replica; INSERT INTO t VALUES (3, 'start'), (4, 'start')");
    write(&web, "A", 1);
    web.net.on("A").exec("DELETE FROM t WHERE id = 3");
    write(&web, "D", 1);
    write(&web, "D", 2);
    write(&web, "D", 3);
    web.net.on("D").exec("UPDATE t SET val = 'D' WHERE id = 4");
    write(&web, "A", 2);
    web.net.on("A").exec("DELETE FROM t WHERE id = 4");
    for sync in ["ab", "bc", "cd"] {
        assert_eq!(web.kick(sync), "good");
    }
    web.quiet();
    web.expect("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t", "1D 2A 3D");
}

/// Every order of writes of three members, or two of them, to one key, and both orders of kicks: the last write is left.
#[test]
fn the_order_of_kicks_does_not_matter() {
    const ORDERS: [[&str; 3]; 6] =
        [["A", "B", "C"], ["A", "C", "B"], ["B", "A", "C"], ["B", "C", "A"], ["C", "A", "B"], ["C", "B", "A"]];
    for kicks in [["ab", "bc"], ["bc", "ab"]] {
        let web = chain();
        let mut last = vec![];
        for (n, order) in ORDERS.iter().enumerate() {
            for leave_out in ["", "A", "B", "C"] {
                let writers: Vec<&str> = order.iter().copied().filter(|name| *name != leave_out).collect();
                let id = (n * 4 + last.len() % 4) as i32 + 1;
                writers.iter().for_each(|name| write(&web, name, id));
                last.push(format!("{id}{}", writers[writers.len() - 1]));
            }
        }
        for sync in kicks.iter().cycle().take(6) {
            web.kick(sync);
        }
        web.quiet();
        web.expect("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t", &last.join(" "));
    }
}

/// A ring in which the same key is written on all three at once.
#[test]
fn a_conflict_all_round_a_ring() {
    let mut web = Web::new(&["A", "B", "C"], &["A", "B", "C"]);
    for (name, dbs) in [("ab", "A:source,B:source"), ("bc", "B:source,C:source"), ("ca", "C:source,A:source")] {
        web.sync(name, dbs, ", autokick => false");
    }
    for (id, order) in [(1, ["A", "B", "C"]), (2, ["C", "B", "A"]), (3, ["B", "C", "A"]), (4, ["A", "C", "B"])] {
        order.iter().for_each(|name| write(&web, name, id));
    }
    for sync in ["ab", "bc", "ca", "ab", "bc", "ca"] {
        web.kick(sync);
    }
    web.quiet();
    web.net.assert_equal("t");
    web.expect("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t", "1C 2A 3A 4B");
}

/// What one sync decided is, for the next one, a change at the winner's time.
#[test]
fn a_decision_is_passed_on_once() {
    let mut web = Web::new(&["A", "B", "C"], &["A", "B"]);
    web.sync("ab", "A:source,B:source", ", autokick => false");
    web.sync("bc", "B:source,C:target", ", autokick => false");
    write(&web, "A", 1);
    write(&web, "B", 1);
    write(&web, "A", 1);
    assert_eq!(web.kick("bc"), "good");
    assert_eq!(web.net.on("C").one("SELECT val FROM t"), "B");
    assert_eq!(web.kick("ab"), "good");
    assert_eq!(web.kick("bc"), "good");
    web.quiet();
    web.expect("SELECT val FROM t", "A");
    assert_eq!(web.net.control().number("SELECT count(*) FROM bucardo.conflict"), 1);
}

/// A TRUNCATE keeps its time as rows do.
#[test]
fn a_relayed_truncate_does_not_beat_a_later_row() {
    let web = chain();
    web.net.on("A").exec("INSERT INTO t SELECT g, 'A' FROM generate_series(1, 20) g");
    web.quiet();
    web.net.on("A").exec("TRUNCATE t");
    write(&web, "C", 50);
    assert_eq!(web.kick("ab"), "good");
    assert_eq!(web.kick("bc"), "good");
    web.quiet();
    web.expect("SELECT string_agg(id || val, ' ') FROM t", "50C");
}

/// The second time it comes nobody is emptied by it, though the first mark of it is purged by then.
#[test]
fn a_truncate_that_comes_by_two_ways_comes_once() {
    let mut web = Web::new(&["A", "B", "C", "D"], &["B", "C"]);
    for (name, dbs) in [("ab", "A:source,B:target"), ("bc", "B:source,C:target"), ("ac", "A:source,C:target")] {
        web.sync(name, dbs, ", autokick => false");
    }
    web.sync("cd", "C:source,D:source", ", autokick => false");
    web.net.on("A").exec("INSERT INTO t SELECT g, 'A' FROM generate_series(1, 20) g");
    web.quiet();
    for round in 1..=2 {
        web.net.on("A").exec("TRUNCATE t");
        for sync in ["ab", "bc", "cd"] {
            assert_eq!(web.kick(sync), "good", "{sync} in round {round}");
        }
        web.expect("SELECT count(*) FROM t", "0");
        web.net.control().exec("SELECT bucardo.purge(); SELECT bucardo.purge()");
        assert_eq!(web.net.on("C").number("SELECT count(*) FROM bucardo.capture_mark"), 0);
        write(&web, "B", round);
        assert_eq!(web.kick("bc"), "good");
        assert_eq!(web.kick("cd"), "good");
        web.quiet();
        for member in ["B", "C", "D"] {
            let left = web.net.on(member).one("SELECT string_agg(id || val, ' ') FROM t");
            assert_eq!(left, format!("{round}B"), "{member} in round {round}");
        }
    }
}

/// Sources that are away for a sync have changes kept for them: those are no changes for another one.
#[test]
fn what_is_kept_for_who_is_away_goes_through_no_other_sync() {
    let mut web = Web::new(&["A", "B", "C", "D"], &[]);
    web.sync("abc", "A:source,B:source,C:source", ", autokick => false");
    web.sync("bd", "B:source,D:target", ", autokick => false");
    let rows = |member: &str| web.net.on(member).one("SELECT coalesce(string_agg(id || val, ' ' ORDER BY id), '') FROM t");
    let kicks = || ["abc", "bd", "abc", "bd"].map(|sync| web.kick(sync));
    let is_away = |away: bool| {
        let status = if away { "inactive" } else { "active" };
        web.net.control().exec(&format!("SELECT bucardo.update_db('C', status => '{status}')"));
    };
    write(&web, "B", 9);
    assert_eq!(kicks(), ["good", "good", "empty", "empty"]);
    is_away(true);
    write(&web, "A", 1);
    assert_eq!(kicks(), ["good", "empty", "empty", "empty"]);
    // Beside a change that is one for it.
    write(&web, "B", 10);
    assert_eq!(kicks(), ["good", "good", "empty", "empty"]);
    assert_eq!(["A", "B", "D"].map(rows), ["1A 9B 10B", "1A 9B 10B", "9B 10B"]);
    web.net.on("A").exec("TRUNCATE t; INSERT INTO t VALUES (2, 'A')");
    assert_eq!(kicks(), ["good", "empty", "empty", "empty"]);
    assert_eq!(["A", "B", "D"].map(rows), ["2A", "2A", "9B 10B"]);
    is_away(false);
    assert_eq!(kicks()[1..], ["empty", "empty", "empty"]);
    assert_eq!(["A", "B", "C", "D"].map(rows), ["2A", "2A", "2A", "9B 10B"]);
    // And the other sync, which has no use for it, keeps none of it from being purged.
    let held = "SELECT coalesce(sum(pg_relation_size(g)), 0) + (SELECT count(*) FROM bucardo.capture_mark) FROM bucardo.capture c, unnest(c.segments) g";
    wait_until("B to keep nothing", || {
        web.net.control().exec("SELECT bucardo.purge(); SELECT bucardo.purge()");
        web.net.on("B").number(held) == 0
    });
    write(&web, "B", 11);
    web.quiet();
    assert_eq!(["A", "B", "C", "D"].map(rows), ["2A 11B", "2A 11B", "2A 11B", "9B 10B 11B"]);
}

/// The same where a member passes on what it gets, which it does once.
#[test]
fn what_is_kept_is_passed_on_by_who_passes_on() {
    let mut web = Web::new(&["A", "B", "C", "D"], &["B"]);
    web.sync("abc", "A:source,B:source,C:source", ", autokick => false");
    web.sync("bd", "B:source,D:target", ", autokick => false");
    web.net.control().exec("SELECT bucardo.update_db('C', status => 'inactive')");
    for change in ["INSERT INTO t SELECT g, 'A' FROM generate_series(1, 5) g", "TRUNCATE t; INSERT INTO t VALUES (6, 'A')"] {
        web.net.on("A").exec(change);
        assert_eq!(["abc", "bd", "abc", "bd"].map(|sync| web.kick(sync)), ["good", "good", "empty", "empty"]);
        assert_eq!(
            web.net.on("D").one("SELECT string_agg(id || val, ' ') FROM t"),
            web.net.on("A").one("SELECT string_agg(id || val, ' ') FROM t")
        );
    }
    web.net.control().exec("SELECT bucardo.update_db('C', status => 'active')");
    web.settled();
}

/// Two syncs of the same members, of which one is away: neither takes what the other one keeps for that member for a change.
#[test]
fn what_two_syncs_keep_for_who_is_away_does_not_go_between_them() {
    let mut web = Web::new(&["A", "B", "C"], &[]);
    for name in ["one", "two"] {
        web.sync(name, "A:source,B:source,C:source", ", autokick => false");
    }
    write(&web, "A", 1);
    web.quiet();
    web.net.control().exec("SELECT bucardo.update_db('C', status => 'inactive')");
    web.net.on("A").exec("UPDATE t SET val = 'x' WHERE id = 1");
    for sync in ["one", "two"] {
        web.kick(sync);
    }
    for sync in ["one", "two", "one", "two"] {
        assert_eq!(web.kick(sync), "empty", "{sync} has something to do once more");
    }
    assert_eq!(web.net.control().number("SELECT count(*) FROM bucardo.conflict"), 0);
    web.net.control().exec("SELECT bucardo.update_db('C', status => 'active')");
    web.quiet();
    web.expect("SELECT string_agg(id || val, ' ') FROM t", "1x");
}
