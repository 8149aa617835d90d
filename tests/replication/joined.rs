//! Tables that come to a live sync while a run is under way: what is written to them after the call has answered travels,
//! though the run had begun before.

use crate::net::{Capture, Net};
use crate::wait::wait_until;

/// A run that knows the catalog and has no snapshot yet stands still while `meanwhile` happens.
fn while_a_run_begins(net: &Net, meanwhile: impl FnOnce()) {
    net.control().exec("SELECT bucardo.fault_set('kid.before_gather', 'wait')");
    net.on("A").exec("UPDATE t SET v = v || '.'");
    wait_until("a run to begin", || net.control().one("SELECT bucardo.fault_taken('kid.before_gather')") == "t");
    meanwhile();
    net.control().exec("SELECT bucardo.fault_clear()");
}

fn ready(dbs: &str, more: &[&'static str]) -> Net {
    let mut net = Net::together(Capture::Plain, 1);
    more.iter().for_each(|name| net.add_member(name, 0, ""));
    net.everywhere("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE t2 (LIKE t INCLUDING ALL)");
    net.control().exec(&format!("SELECT bucardo.add_sync('s', dbs => '{dbs}', tables => 'public.t')"));
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.wait_served();
    net.wait_equal("t", &["B"]);
    net
}

#[test]
fn what_is_written_to_a_table_that_was_just_added_travels() {
    for dbs in ["A:source,B:target", "A:source,B:source"] {
        for call in ["add_table('public.t2', 's')", "update_sync('s', relgroup => 'both')"] {
            let net = ready(dbs, &[]);
            net.control().exec("SELECT bucardo.add_relgroup('both', 'public.t,public.t2')");
            while_a_run_begins(&net, || {
                net.control().exec(&format!("SELECT bucardo.{call}"));
                net.on("A").exec("INSERT INTO t2 VALUES (1, 'written after the answer')");
            });
            net.settle(&["t", "t2"]);
            net.wait_state("good|empty");
        }
    }
}

/// The same for a table that a member passes on from now on.
#[test]
fn what_is_written_after_makedelta_was_set_is_passed_on() {
    let net = ready("A:source,B:target", &["C"]);
    net.control().exec("SELECT bucardo.add_sync('s2', dbs => 'B:source,C:target', tables => 'public.t')");
    while_a_run_begins(&net, || {
        net.control().exec("SELECT bucardo.update_db('B', makedelta => true)");
        net.on("A").exec("INSERT INTO t VALUES (2, 'for all')");
    });
    net.wait_sql("C", "what is passed on", "SELECT count(*) = 1 FROM t WHERE id = 2");
}

/// What is captured and not of the sync any more, and changes of the catalog that do not concern it, hold up nobody.
#[test]
fn a_table_that_left_and_a_catalog_that_changes_hold_up_no_run() {
    for dbs in ["A:source,B:target", "A:source,B:source"] {
        let net = ready(dbs, &[]);
        net.control().exec("SELECT bucardo.add_table('public.t2', 's')");
        // Its capture cannot be taken off as long as somebody reads it.
        let mut reader = net.on("A");
        reader.exec("BEGIN; SELECT * FROM t2");
        net.control().exec("SELECT bucardo.remove_table('public.t2', 's')");
        let mut writer = net.on("A");
        for n in 0..20 {
            writer.exec(&format!("INSERT INTO t2 VALUES ({n}, 'for nobody'); UPDATE t SET v = '{n}'"));
            net.control().exec(&format!("SELECT bucardo.add_db('x{n}', 'host=/nowhere', check_connection => false)"));
        }
        net.wait_equal("t", &["B"]);
        reader.exec("COMMIT");
        assert_eq!(net.on("B").number("SELECT count(*) FROM t2"), 0);
        net.wait_state("good|empty");
    }
}
