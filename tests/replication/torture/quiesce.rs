//! Peace, and what must hold then: nothing pending, all members equal, every constraint true, every decision with a winner,
//! every acknowledged row there, the books balanced, nothing left of what was captured.

use super::{TABLES, World, ledger};
use crate::cluster::Cluster;
use crate::net::CONTROL;
use crate::wait::reached;
use std::sync::atomic::Ordering;

fn ask(control: &Cluster, sql: &str) -> Option<String> {
    let reply = control.try_connect(CONTROL).ok()?.try_query(sql).ok()?;
    // A warning of a kick says that a member is away: no peace yet.
    if reply.notices.iter().any(|n| n.severity == "WARNING") {
        return None;
    }
    reply.rows.first()?.first()?.clone()
}

/// Everything is up and resumed; waits until a run finds nothing to do.
pub fn make_peace(world: &World) {
    world.proxies.iter().for_each(crate::proxy::Proxy::heal);
    let control = &world.m.servers[0];
    let up = reached(|| ask(control, "SELECT bucardo.start()").is_some());
    assert!(up, "the control database does not answer");
    // Not paused is an error to resume, perhaps; the state tells.
    let resumed = reached(|| {
        let _done = ask(control, "SELECT bucardo.resume('s')");
        ask(control, "SELECT (state NOT IN ('paused', 'stopped', 'inactive'))::text FROM bucardo.status WHERE sync = 's'")
            .as_deref()
            == Some("true")
    });
    assert!(resumed, "the sync does not resume\n{}", world.m.report());
    let quiet = reached(|| {
        ask(control, "SELECT bucardo.kick('s', '30s')").as_deref() == Some("empty")
            && ask(control, "SELECT count(*) FROM bucardo.pending()").as_deref() == Some("0")
    });
    assert!(quiet, "no peace: {}\n{}\n{}", world.m.last_error(), world.m.report(), differences(world));
}

/// For a failure: which tables are equal and which are not, although there is no peace.
fn differences(world: &World) -> String {
    let line = |name: &str| {
        let rows = TABLES.map(|t| {
            format!(
                "(SELECT '{t} ' || count(*) || ' ' || coalesce(md5(string_agg(x::text, ',' ORDER BY x::text)), '-') FROM {t} x)"
            )
        });
        let sql = format!("SELECT concat_ws(', ', {})", rows.join(", "));
        let seen = world.m.server_of(name).try_connect(&name.to_lowercase()).and_then(|mut conn| conn.try_query(&sql));
        format!("   {name}: {}", seen.map_or_else(|e| e.message, |reply| crate::net::show(&reply.rows[0])))
    };
    world.m.names().iter().map(|name| line(name)).collect::<Vec<_>>().join("\n")
}

/// Conditions that must hold on every member, looked at without the indexes, which would only say what they believe.
const TRUTHS: [(&str, &str); 4] = [
    (
        "a child without its parent",
        "SELECT count(*) FROM child c LEFT JOIN parent p ON p.id = c.parent WHERE c.parent IS NOT NULL AND p.id IS NULL",
    ),
    ("a unique value twice", "SELECT count(*) FROM (SELECT u FROM item WHERE u IS NOT NULL GROUP BY u HAVING count(*) > 1) s"),
    (
        "a key twice",
        "SELECT count(*) FROM (SELECT 1 FROM item GROUP BY id HAVING count(*) > 1 UNION ALL SELECT 1 FROM parent GROUP BY id HAVING count(*) > 1 \
         UNION ALL SELECT 1 FROM child GROUP BY a, b HAVING count(*) > 1) s",
    ),
    (
        "a constraint or an index that is not valid",
        "SELECT (SELECT count(*) FROM pg_constraint WHERE NOT convalidated) + (SELECT count(*) FROM pg_index WHERE NOT indisvalid)",
    ),
];

/// What capture still holds on a source.
const CAPTURED: &str = "SELECT (SELECT coalesce(sum(pg_relation_size(g)), 0) FROM bucardo.capture c, unnest(c.segments) g) \
     + (SELECT count(*) FROM bucardo.capture_mark) + (SELECT count(*) FROM bucardo.capture_settled) \
     + (SELECT count(*) FROM bucardo.capture_heard)";

/// Who is at work on a member, and what each holds.
fn sessions(world: &World, member: &str) -> String {
    let sql = "SELECT concat_ws(' | ', a.pid, a.backend_type, a.application_name, a.state, a.wait_event, a.xact_start, a.backend_xmin, a.query, \
        (SELECT string_agg(l.relation::regclass || ' ' || l.mode, ', ') FROM pg_locks l WHERE l.pid = a.pid AND l.granted AND l.relation > 16384)) \
        FROM pg_stat_activity a WHERE a.pid <> pg_backend_pid() ORDER BY a.pid";
    world.m.on(member).query(sql).into_iter().filter_map(|row| row[0].clone()).collect::<Vec<_>>().join("\n")
}

pub fn check(world: &World) {
    let m = &world.m;
    ledger::compare(world);
    TABLES.iter().for_each(|table| m.assert_equal(table));
    for name in m.names() {
        let mut conn = m.on(name);
        conn.exec("SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off");
        for (what, count) in TRUTHS {
            assert_eq!(conn.number(count), 0, "{what} on {name}\n{}", m.report());
        }
    }
    let (there, known) = (m.on("T").number("SELECT count(*) FROM entry"), world.acknowledged.load(Ordering::SeqCst));
    assert!(there >= known, "{known} rows of entry were acknowledged, {there} are there\n{}", m.report());
    let none =
        "SELECT coalesce(string_agg(c::text, E'\\n'), '') FROM (SELECT * FROM bucardo.conflict WHERE winner IS NULL LIMIT 5) c";
    assert_eq!(m.control().one(none), "", "decisions without a winner");
    // An error that only follows from another one explains nothing.
    let masked = "SELECT coalesce(string_agg(s::text, E'\\n'), '') FROM bucardo.syncrun s WHERE sqlstate = '25P02'";
    assert_eq!(m.control().one(masked), "", "runs that name the wrong error");
    let live = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'";
    for name in m.names() {
        // A run that is over has ended its transactions: left open, they would hold back vacuum for ever.
        let closed = reached(|| m.on(name).number(live) == 0);
        assert!(closed, "a transaction stays open on {name}\n{}", m.report());
    }
    ledger::balance(world);
    for name in &m.sources {
        let mut left = 0;
        let empty = reached(|| {
            m.control().exec("SELECT bucardo.purge()");
            left = m.on(name).number(CAPTURED);
            left == 0
        });
        assert!(
            empty,
            "{left} bytes and rows of what was captured are left on {name}\n{}\n{}",
            sessions(world, name),
            m.report()
        );
    }
}
