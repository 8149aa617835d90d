//! A hub and twenty leaves, a sync for each leaf: what one leaf writes reaches the others through the hub, once, and does not
//! come back. All are databases of one server; the kids are few, so the syncs must share them.

use super::cascade::Web;

const LEAVES: [&str; 20] = [
    "L01", "L02", "L03", "L04", "L05", "L06", "L07", "L08", "L09", "L10", "L11", "L12", "L13", "L14", "L15", "L16", "L17", "L18",
    "L19", "L20",
];

/// The hub is called A, so that the others are compared with it.
fn star(options: &str) -> Web {
    let names: Vec<&'static str> = std::iter::once("A").chain(LEAVES).collect();
    let mut web = Web::new(&names, &["A"]);
    for leaf in LEAVES {
        web.sync(&leaf.to_lowercase(), &format!("A:source,{leaf}:source"), options);
    }
    web
}

#[test]
fn every_change_reaches_every_leaf_once() {
    let web = star("");
    for (n, leaf) in LEAVES.into_iter().enumerate() {
        web.net.on(leaf).exec(&format!("INSERT INTO t SELECT {n} * 100 + g, '{leaf}' FROM generate_series(1, 10) g"));
    }
    web.net.on("A").exec("INSERT INTO t VALUES (9999, 'hub')");
    web.settled();
    web.expect("SELECT count(*) FROM t", "201");
    // No leaf is sent its own rows back.
    for (n, leaf) in LEAVES.into_iter().enumerate() {
        let echo = format!("SELECT count(*) FROM diary WHERE key BETWEEN {n} * 100 + 1 AND {n} * 100 + 10");
        assert_eq!(web.net.on(leaf).number(&echo), 0, "an echo on {leaf}");
    }
    web.net.on("L07").exec("UPDATE t SET val = 'L07' WHERE id <= 50; DELETE FROM t WHERE id > 1500");
    web.settled();
    web.expect("SELECT count(*) FROM t", "150");
    assert_eq!(web.net.control().number("SELECT count(*) FROM bucardo.conflict"), 0);
    assert_eq!(web.net.servers[0].crash_restarts(), 0);
}

#[test]
fn leaves_that_write_the_same_row_agree_on_the_last_one() {
    let web = star(", autokick => false");
    for leaf in ["L03", "L11", "L20", "L05", "L08"] {
        web.net.on(leaf).exec(&format!("INSERT INTO t VALUES (1, '{leaf}')"));
    }
    // The later ones are served first: their rows are at the hub when the earlier ones come.
    for sync in web.syncs.iter().rev().chain(&web.syncs) {
        web.kick(sync);
    }
    web.quiet();
    web.net.assert_equal("t");
    web.expect("SELECT val FROM t", "L08");
}
