//! What everybody was served from is emptied, whoever reads it meanwhile, and nothing else is: not what somebody is only
//! now known to need, nor what a transaction that is open may still write.

use crate::cluster::Stop;
use crate::net::{Capture, Net};
use crate::wait::{reached, wait_until};
use std::sync::atomic::{AtomicBool, Ordering};

for_both!(
    readers_without_a_gap,
    who_stays_is_not_waited_for,
    writers_follow,
    set_back_while_it_is_purged,
    more_segments_than_locks
);

const HELD: &str = "SELECT coalesce(sum(pg_relation_size(g)), 0) FROM bucardo.capture c, unnest(c.segments) g";
const SEGMENTS: &str = "SELECT string_agg(g::regclass::text, ', ') FROM bucardo.capture c, unnest(c.segments) g";

/// A sync of t with a hundred changes that are served and not purged; nothing is purged by itself.
fn served(capture: Capture) -> Net {
    let net = Net::together_with(capture, 1, "bucardo.purge_interval = '1h'");
    net.everywhere("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)");
    net.add_sync("tables => 'public.t,public.u'");
    net.on("A").exec("INSERT INTO t SELECT generate_series(1, 100)");
    net.settle(&["t"]);
    assert!(net.on("A").number(HELD) > 0, "nothing was captured");
    net
}

/// As when runs follow one another: each holds what it reads until its end, and there is always one.
fn readers_without_a_gap(capture: Capture) {
    let net = served(capture);
    let mut a = net.on("A");
    let segments = a.one(SEGMENTS);
    let read = format!(
        "DO $$ BEGIN FOR i IN 1..50 LOOP PERFORM FROM {segments} LIMIT 1; PERFORM pg_sleep(0.002); COMMIT; END LOOP; END $$"
    );
    let over = AtomicBool::new(false);
    let purged = std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| {
                let mut reader = net.on("A");
                while !over.load(Ordering::Relaxed) {
                    reader.exec(&read);
                }
            });
        }
        let readers = format!("SELECT count(DISTINCT pid) FROM pg_locks WHERE relation = ANY ('{{{segments}}}'::regclass[])");
        wait_until("the readers", || a.number(&readers) == 4);
        let mut control = net.control();
        let purged = reached(|| {
            control.exec("SELECT bucardo.purge()");
            a.number(HELD) == 0
        });
        over.store(true, Ordering::Relaxed);
        purged
    });
    assert!(purged, "served changes are never purged while somebody reads");
    a.exec("DELETE FROM t WHERE id > 50");
    net.settle(&["t"]);
}

/// Somebody who reads for long costs those who come after him milliseconds; for an open transaction that has written, nobody
/// waits at all.
fn who_stays_is_not_waited_for(capture: Capture) {
    let net = served(capture);
    let (mut a, mut other) = (net.on("A"), net.on("A"));
    let segments = a.one(SEGMENTS);
    let mut purge = || {
        let told = "SET client_min_messages = log; SET log_lock_waits = on; SET deadlock_timeout = '1ms'";
        a.exec(told);
        let reply = a.try_query("SELECT bucardo.capture_purge(0)").expect("a purge that gives way");
        (reply.rows[0][0].clone().unwrap_or_default(), reply.notices.iter().any(|n| n.message.contains("still waiting")))
    };
    other.exec("BEGIN; INSERT INTO t VALUES (1000)");
    assert_eq!(purge(), ("0".to_string(), false), "purged, and waited, beside a writer");
    other.exec(&format!("ROLLBACK; BEGIN; SELECT FROM {segments} LIMIT 1"));
    // Whether it tells that it waits depends on when it wakes up.
    wait_until("a purge that waits for the reader", || {
        let (freed, waited) = purge();
        assert_eq!(freed, "0", "purged beside a reader");
        waited
    });
    // What is kept from nobody any more is read and written.
    net.on("A").exec(&format!("INSERT INTO t VALUES (1001); SELECT FROM {segments} LIMIT 1"));
    other.exec("COMMIT");
    net.settle(&["t"]);
    wait_until("all to be purged", || {
        net.control().exec("SELECT bucardo.purge(); SELECT bucardo.purge()");
        net.on("A").number(HELD) == 0
    });
}

/// A session that goes on writes into the segment that a purge has sent writers to, and the one that it left is purged next.
fn writers_follow(capture: Capture) {
    let net = served(capture);
    let (mut a, mut other) = (net.on("A"), net.on("A"));
    let segment = "bucardo.capture c, generate_subscripts(c.segments, 1) i WHERE c.relid = 't'::regclass";
    let filled = format!(
        "SELECT coalesce(string_agg(i::text, ',' ORDER BY i), '') FROM {segment} AND pg_relation_size(c.segments[i]) > 0"
    );
    let active = other
        .one("SELECT format('SELECT last_value FROM %s', active::regclass) FROM bucardo.capture WHERE relid = 't'::regclass");
    a.exec("INSERT INTO t VALUES (2000)");
    net.settle(&["t"]);
    let left = other.one(&active);
    assert_eq!(other.one(&filled), left);
    wait_until("writers to be sent elsewhere", || {
        other.exec("SELECT bucardo.capture_purge(1)");
        other.one(&active) != left
    });
    a.exec("INSERT INTO t VALUES (2001)");
    let next = other.one(&active);
    assert!(other.one(&filled).split(',').any(|segment| segment == next), "a session writes where it wrote before");
    net.settle(&["t"]);
    wait_until("the segment that was left to be empty", || {
        other.exec("SELECT bucardo.capture_purge(1)");
        !other.one(&filled).split(',').any(|segment| segment == left)
    });
    // A purge that was ended when it had sent writers elsewhere and told nobody; the next one tells them, though it cannot empty what they fill.
    wait_until("all to be empty", || {
        other.exec("SELECT bucardo.capture_purge(1)");
        other.one(&filled).is_empty()
    });
    let mut open = net.on("A");
    open.exec("BEGIN; INSERT INTO t VALUES (2002)");
    a.exec("INSERT INTO t VALUES (2003)");
    let empty = format!("SELECT setval(c.active::regclass, i) FROM {segment} AND pg_relation_size(c.segments[i]) = 0 LIMIT 1");
    let third = other.one(&empty);
    // In time it would come to know by itself: whenever anything else makes it forget the table.
    let told = (3000..3050).any(|id| {
        other.exec("SELECT bucardo.capture_purge(1)");
        a.exec(&format!("INSERT INTO t VALUES ({id})"));
        other.one(&filled).split(',').any(|segment| segment == third)
    });
    assert!(told, "a session is never told where to write");
    open.exec("COMMIT");
    net.settle(&["t"]);
}

/// Between the look at how far everybody was served and the lock, a source that has lost commits is set back.
fn set_back_while_it_is_purged(capture: Capture) {
    let net = served(capture);
    let (mut a, mut purge, mut holder) = (net.on("A"), net.on("A"), net.on("A"));
    a.exec("TRUNCATE u");
    net.settle(&["t", "u"]);
    net.rest();
    // The purge has seen that t is served, and comes no further than to the mark of u.
    holder.exec("BEGIN; SELECT FROM bucardo.capture_mark FOR UPDATE");
    purge.send("SELECT bucardo.capture_purge(0)").unwrap();
    net.wait_sql(
        "A",
        "the purge to stop",
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query = 'SELECT bucardo.capture_purge(0)' AND wait_event_type = 'Lock')",
    );
    a.exec("UPDATE bucardo.capture_track SET served = '3:3:'");
    holder.exec("ROLLBACK");
    let freed = purge.finish().unwrap().rows[0][0].clone();
    assert_eq!(freed.as_deref(), Some("0"), "changes purged that are needed again");
    net.on("B").exec("DELETE FROM t WHERE id <= 50");
    net.control().exec("SELECT bucardo.resume('s')");
    net.settle(&["t", "u"]);
}

/// To empty the segments of all tables at once takes more locks than a server has; of some after the others it does not.
fn more_segments_than_locks(capture: Capture) {
    let net = Net::together_with(capture, 1, "bucardo.purge_interval = '1h'");
    let each = |from: i32, to: i32, what: &str| {
        format!("DO $$ BEGIN FOR i IN {from}..{to} LOOP EXECUTE format('{what}', i); COMMIT; END LOOP; END $$")
    };
    net.everywhere(&each(1, 500, "CREATE TABLE t%s (id text PRIMARY KEY)"));
    net.add_sync("tables => 'all', autokick => false");
    net.server_of("A").configure("max_locks_per_transaction = 10\nmax_connections = 20");
    net.server_of("A").restart(Stop::Fast);
    for part in 0..25 {
        net.on("A").exec(&each(part * 20 + 1, part * 20 + 20, "INSERT INTO t%s VALUES (1)"));
        net.kick();
    }
    assert_eq!(
        net.on("A").number(&format!("SELECT count(*) FROM ({HELD} GROUP BY c.id HAVING sum(pg_relation_size(g)) > 0) x")),
        500
    );
    // Whoever looks after the captured tables just then keeps a purge away.
    wait_until("all to be empty", || {
        net.control().exec("SELECT bucardo.purge()");
        net.on("A").number(HELD) == 0
    });
}
