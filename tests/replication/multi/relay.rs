//! Conflicts along a cascade: a relayed copy has the time of the original change, and so never looks newer than it is; the
//! order in which the syncs are kicked changes nothing in what is left.

use super::cascade::Web;

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
