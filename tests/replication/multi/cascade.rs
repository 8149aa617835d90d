//! Several syncs in a chain and in a ring, ready to use, and the plain cases: with `makedelta` what one sync writes on a
//! member is a change for the next one. Every change arrives once, nothing goes round for ever, and when all is quiet
//! nothing is pending. Conflicts along the way stand in `relay`, many leaves in `star`.

use crate::cluster::Cluster;
use crate::net::{CONTROL, CONTROL_SETTINGS, Net};
use crate::wait::{reached, wait_until};

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, val text)";

/// Notes each row that the replication writes.
const DIARY: &str = "CREATE TABLE diary (n bigint GENERATED ALWAYS AS IDENTITY, op text, key int, val text); \
     CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
       IF current_setting('session_replication_role') = 'replica' THEN \
         INSERT INTO public.diary (op, key, val) VALUES (TG_OP, coalesce(NEW.id, OLD.id), NEW.val); \
       END IF; RETURN NULL; END $$; \
     CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION note(); ALTER TABLE t ENABLE ALWAYS TRIGGER note";

/// Members on one server, joined by syncs of their own.
pub struct Web {
    pub net: Net,
    pub syncs: Vec<String>,
}

impl Web {
    /// Members with table `t` and a diary; those in `relays` pass on what they get. All keep commit times.
    pub fn new(names: &[&'static str], relays: &[&str]) -> Web {
        let mut net = Net { servers: vec![], members: vec![] };
        let settings = "track_commit_timestamp = on\nmax_connections = 300\nmax_worker_processes = 40\nbucardo.max_kids = 8";
        net.servers.push(Cluster::start(CONTROL, &format!("{CONTROL_SETTINGS}\n{settings}")));
        net.servers[0].create_database(CONTROL, "");
        net.control().exec("CREATE EXTENSION bucardo");
        for name in names {
            net.add_member(name, 0, "");
        }
        for name in relays {
            net.control().exec(&format!("SELECT bucardo.update_db('{name}', makedelta => true)"));
        }
        net.everywhere(&format!("{T}; {DIARY}"));
        Web { net, syncs: vec![] }
    }

    pub fn sync(&mut self, name: &str, dbs: &str, options: &str) {
        let sql = format!("SELECT bucardo.add_sync('{name}', dbs => '{dbs}', tables => 'public.t' {options})");
        self.net.control().exec(&sql);
        self.syncs.push(name.to_owned());
    }

    #[track_caller]
    pub fn kick(&self, sync: &str) -> String {
        self.net.control().one(&format!("SELECT bucardo.kick('{sync}', '80s')"))
    }

    /// Until nothing is pending anywhere and a kick of each sync finds nothing to do.
    #[track_caller]
    pub fn quiet(&self) {
        let mut control = self.net.control();
        let quiet = reached(|| {
            let idle = self.syncs.iter().all(|sync| self.kick(sync) == "empty");
            idle && control.number("SELECT count(*) FROM bucardo.pending()") == 0
        });
        assert!(quiet, "it does not become quiet\n{}", self.net.report());
        // And it stays so: no run does anything more, and runs come at most from kicks. What has run before a kick is in the history
        // when that is answered.
        let good = "SELECT count(*) FROM bucardo.syncrun WHERE state = 'good'";
        self.syncs.iter().for_each(|sync| drop(self.kick(sync)));
        let before = control.number(good);
        for _ in 0..2 {
            self.syncs.iter().for_each(|sync| assert_eq!(self.kick(sync), "empty", "{sync} began again\n{}", self.net.report()));
        }
        assert_eq!(control.number(good), before, "runs go on by themselves\n{}", self.net.report());
        assert_eq!(control.number("SELECT count(*) FROM bucardo.pending()"), 0);
    }

    #[track_caller]
    pub fn expect(&self, query: &str, wanted: &str) {
        for member in &self.net.members {
            let seen = self.net.on(member.name).maybe(query).unwrap_or_default();
            assert_eq!(seen, wanted, "{query} on {}\n{}", member.name, self.net.report());
        }
    }

    /// Quiet, equal, and every change written at most once on each member.
    #[track_caller]
    pub fn settled(&self) {
        self.quiet();
        self.net.assert_equal("t");
        let twice = "SELECT coalesce(string_agg(line, ', '), '') FROM \
                     (SELECT concat_ws(' ', op, key, val) AS line FROM diary GROUP BY 1 HAVING count(*) > 1 LIMIT 5) s";
        self.expect(twice, "");
    }
}

#[test]
fn a_chain_of_two_syncs() {
    let mut web = Web::new(&["A", "B", "C"], &["B"]);
    web.sync("ab", "A:source,B:target", "");
    web.sync("bc", "B:source,C:target", "");
    web.net.on("A").exec("INSERT INTO t SELECT g, 'A' FROM generate_series(1, 200) g");
    web.settled();
    web.expect("SELECT count(*) FROM t", "200");
    web.net
        .on("A")
        .exec("UPDATE t SET val = 'A2' WHERE id <= 20; DELETE FROM t WHERE id = 50; UPDATE t SET id = 1051 WHERE id = 51");
    web.settled();
    web.expect("SELECT concat_ws(' ', count(*), count(*) FILTER (WHERE val = 'A2'), max(id)) FROM t", "199 20 1051");
}

#[test]
fn what_a_middle_member_writes_itself_goes_down_only() {
    let mut web = Web::new(&["A", "B", "C"], &["B"]);
    web.sync("ab", "A:source,B:target", "");
    web.sync("bc", "B:source,C:target", "");
    web.net.on("A").exec("INSERT INTO t VALUES (1, 'A')");
    web.net.on("B").exec("INSERT INTO t VALUES (2, 'B')");
    web.quiet();
    assert_eq!(web.net.on("C").one("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t"), "1A 2B");
    assert_eq!(web.net.on("A").one("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t"), "1A");
}

#[test]
fn a_truncate_goes_down_a_chain() {
    let mut web = Web::new(&["A", "B", "C"], &["B"]);
    web.sync("ab", "A:source,B:target", "");
    web.sync("bc", "B:source,C:target", "");
    web.net.on("A").exec("INSERT INTO t SELECT g, 'A' FROM generate_series(1, 20) g");
    web.quiet();
    web.net.on("A").exec("TRUNCATE t; INSERT INTO t VALUES (99, 'after')");
    web.quiet();
    web.expect("SELECT string_agg(id || val, ' ') FROM t", "99after");
}

/// One partition is emptied: a whole table goes to the next member, and on from there, the deleted rows too.
#[test]
fn a_truncated_partition_goes_down_a_chain() {
    for dbs in ["A:source,B:target", "A:source,B:source"] {
        let mut web = Web::new(&["A", "B", "C"], &["B"]);
        web.net.everywhere(
            "DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, val text) PARTITION BY RANGE (id); \
             CREATE TABLE low PARTITION OF t FOR VALUES FROM (0) TO (100); CREATE TABLE high PARTITION OF t FOR VALUES FROM (100) TO (200)",
        );
        web.sync("ab", dbs, "");
        web.sync("bc", "B:source,C:target", "");
        web.net.on("A").exec("INSERT INTO t SELECT g, 'A' FROM generate_series(1, 120) g");
        web.quiet();
        web.net
            .on("A")
            .exec("BEGIN; TRUNCATE low; INSERT INTO t VALUES (50, 'after'); UPDATE t SET val = 'A2' WHERE id = 110; COMMIT");
        web.quiet();
        web.net.assert_equal("t");
        web.expect("SELECT concat_ws(' ', count(*), string_agg(val, ' ') FILTER (WHERE val <> 'A')) FROM t", "22 after A2");
    }
}

#[test]
fn a_copy_goes_down_a_chain() {
    for (dbs, how) in [("A:source,B:target", 1), ("A:source,B:source", 2)] {
        let mut web = Web::new(&["A", "B", "C"], &["B"]);
        web.sync("ab", dbs, "");
        web.sync("bc", "B:source,C:target", "");
        web.net.on("A").exec("SET session_replication_role = replica; INSERT INTO t SELECT g, 'A' FROM generate_series(1, 20) g");
        web.net.control().exec(&format!("SELECT bucardo.update_sync('ab', onetimecopy => {how})"));
        web.kick("ab");
        web.quiet();
        web.expect("SELECT count(*) FROM t", "20");
    }
}

/// A row of the middle member survives a TRUNCATE that comes to it; further down, where it was already, it survives too.
#[test]
fn what_survives_a_truncate_survives_it_down_the_chain() {
    let mut web = Web::new(&["A", "B", "C"], &["B"]);
    web.sync("ab", "A:source,B:source", ", autokick => false");
    web.sync("bc", "B:source,C:target", ", autokick => false");
    web.net.on("A").exec("INSERT INTO t SELECT g, 'A' FROM generate_series(1, 20) g");
    web.quiet();
    web.net.on("A").exec("TRUNCATE t");
    web.net.on("B").exec("INSERT INTO t VALUES (50, 'B')");
    assert_eq!(web.kick("bc"), "good");
    assert_eq!(web.kick("ab"), "good");
    web.quiet();
    web.expect("SELECT string_agg(id || val, ' ') FROM t", "50B");
}

#[test]
fn without_makedelta_nothing_is_passed_on() {
    let mut web = Web::new(&["A", "B", "C"], &[]);
    web.sync("ab", "A:source,B:target", "");
    web.sync("bc", "B:source,C:target", "");
    web.net.on("A").exec("INSERT INTO t VALUES (1, 'A')");
    web.quiet();
    assert_eq!(web.net.on("B").number("SELECT count(*) FROM t"), 1);
    assert_eq!(web.net.on("C").number("SELECT count(*) FROM t"), 0);
}

/// `makedelta` of one relation, and of a member that is switched on and off while it is in use.
#[test]
fn makedelta_of_a_relation_and_switched_under_way() {
    let mut web = Web::new(&["A", "B", "C"], &[]);
    web.sync("ab", "A:source,B:target", "");
    web.sync("bc", "B:source,C:target", "");
    let mut control = web.net.control();
    control.exec("SELECT bucardo.update_table('public.t', 'ab', makedelta => true)");
    web.net.on("A").exec("INSERT INTO t VALUES (1, 'A')");
    web.settled();
    control.exec("SELECT bucardo.update_table('public.t', 'ab', makedelta => false)");
    web.net.on("A").exec("INSERT INTO t VALUES (2, 'A')");
    web.quiet();
    assert_eq!(web.net.on("C").number("SELECT count(*) FROM t"), 1);
    control.exec("SELECT bucardo.update_table('public.t', 'ab', makedelta => true)");
    web.net.on("A").exec("UPDATE t SET val = 'A2'");
    web.settled();
}

/// A member that is to pass on what it gets, and from which nobody takes anything yet: whoever begins to, while a run is under way,
/// misses nothing of it.
#[test]
fn makedelta_before_anybody_takes_from_the_member() {
    for sources in ["A:source", "A:source,D:source"] {
        let mut web = Web::new(&["A", "B", "C", "D"], &["B"]);
        web.sync("ab", &format!("{sources},B:target"), "");
        web.net.on("A").exec("INSERT INTO t VALUES (1, 'before')");
        web.quiet();
        web.net
            .on("A")
            .exec("INSERT INTO t SELECT g, 'before' FROM generate_series(2, 300) g; UPDATE t SET val = 'b' WHERE id = 1");
        web.quiet();
        assert_eq!(web.net.on("B").number("SELECT count(*) FROM t"), 300);
        let mut control = web.net.control();
        let hits = "SELECT bucardo.fault_hits('kid.after_gather')";
        let before = control.number(hits);
        control.exec("SELECT bucardo.fault_set('kid.after_gather', 'wait')");
        web.net.on("A").exec("INSERT INTO t VALUES (1000, 'meanwhile')");
        wait_until("the run to have its snapshots", || web.net.control().number(hits) > before);
        web.sync("bc", "B:source,C:target", "");
        control.exec("SELECT bucardo.fault_clear()");
        web.quiet();
        assert_eq!(web.net.on("C").one("SELECT string_agg(val, ' ' ORDER BY id) FROM t"), "meanwhile", "{sources}");
        web.net.on("A").exec("UPDATE t SET val = 'after' WHERE id = 1");
        web.quiet();
        assert_eq!(web.net.on("C").one("SELECT string_agg(val, ' ' ORDER BY id) FROM t"), "after meanwhile", "{sources}");
    }
}

/// A table that a target captures once more goes another way than the one beside it, however often both have come together.
#[test]
fn one_table_is_passed_on_and_the_next_is_not() {
    let mut web = Web::new(&["A", "B", "C"], &[]);
    web.net.everywhere("CREATE TABLE u (id int PRIMARY KEY, val text)");
    let mut control = web.net.control();
    for (name, dbs) in [("ab", "A:source,B:target"), ("bc", "B:source,C:target")] {
        control.exec(&format!("SELECT bucardo.add_sync('{name}', dbs => '{dbs}', tables => 'public.t,public.u')"));
        web.syncs.push(name.to_owned());
    }
    web.net.on("A").exec("INSERT INTO t VALUES (1, 't'); INSERT INTO u VALUES (1, 'u')");
    web.quiet();
    control.exec("SELECT bucardo.update_table('public.t', 'ab', makedelta => true)");
    for n in 1..=6 {
        web.net.on("A").exec(&format!("UPDATE t SET val = 't{n}'; UPDATE u SET val = 'u{n}'"));
        web.quiet();
        assert_eq!(web.net.on("B").one("SELECT t.val || u.val FROM t, u"), format!("t{n}u{n}"));
        assert_eq!(web.net.on("C").one("SELECT val FROM t"), format!("t{n}"));
    }
    assert_eq!(web.net.on("C").number("SELECT count(*) FROM u"), 0);
}

fn ring() -> Web {
    let mut web = Web::new(&["A", "B", "C"], &["A", "B", "C"]);
    for (name, dbs) in [("ab", "A:source,B:source"), ("bc", "B:source,C:source"), ("ca", "C:source,A:source")] {
        web.sync(name, dbs, "");
    }
    web
}

#[test]
fn a_ring_of_three_syncs() {
    let web = ring();
    for (n, name) in ["A", "B", "C"].into_iter().enumerate() {
        web.net.on(name).exec(&format!("INSERT INTO t SELECT {n} * 1000 + g, '{name}' FROM generate_series(1, 50) g"));
    }
    web.settled();
    web.expect("SELECT count(*) FROM t", "150");
    web.net.on("B").exec(
        "UPDATE t SET val = 'B2' WHERE id <= 10; DELETE FROM t WHERE id BETWEEN 11 AND 20; UPDATE t SET id = 5000 WHERE id = 21",
    );
    web.settled();
    web.expect("SELECT concat_ws(' ', count(*), count(*) FILTER (WHERE val = 'B2'), max(id)) FROM t", "140 10 5000");
    // A change and its undoing, which must not chase each other round.
    web.net.on("C").exec("UPDATE t SET val = 'C' WHERE id = 1");
    web.net.on("C").exec("UPDATE t SET val = 'B2' WHERE id = 1");
    web.quiet();
    web.net.assert_equal("t");
}

/// Wherever a TRUNCATE comes back to, nobody is emptied by it once more.
#[test]
fn a_truncate_goes_round_a_ring_once() {
    let web = ring();
    web.net.on("A").exec("INSERT INTO t SELECT g, 'A' FROM generate_series(1, 20) g");
    web.quiet();
    for round in 1..=2 {
        web.net.on("A").exec("TRUNCATE t");
        web.quiet();
        web.expect("SELECT count(*) FROM t", "0");
        web.net.on("B").exec(&format!("INSERT INTO t VALUES ({round}, 'new')"));
        web.quiet();
        web.expect("SELECT string_agg(id || val, ' ') FROM t", &format!("{round}new"));
    }
    web.net.on("C").exec("TRUNCATE t; INSERT INTO t VALUES (3, 'C')");
    web.quiet();
    web.expect("SELECT string_agg(id || val, ' ') FROM t", "3C");
}

/// Nor between two syncs that go opposite ways.
#[test]
fn a_truncate_does_not_go_to_and_fro() {
    let mut web = Web::new(&["A", "B"], &["A", "B"]);
    web.sync("ab", "A:source,B:target", "");
    web.sync("ba", "B:source,A:target", "");
    web.net.on("A").exec("INSERT INTO t SELECT g, 'A' FROM generate_series(1, 20) g");
    web.quiet();
    for (name, id) in [("A", 1), ("B", 2), ("A", 3)] {
        web.net.on(name).exec("TRUNCATE t");
        web.quiet();
        web.net.on("B").exec(&format!("INSERT INTO t VALUES ({id}, 'new')"));
        web.quiet();
        web.expect("SELECT string_agg(id || val, ' ') FROM t", &format!("{id}new"));
    }
}

#[test]
fn a_ring_under_load_comes_to_rest() {
    let web = ring();
    std::thread::scope(|threads| {
        for (n, name) in ["A", "B", "C"].into_iter().enumerate() {
            let web = &web;
            threads.spawn(move || {
                let mut conn = web.net.on(name);
                for g in 0..150 {
                    conn.exec(&format!("INSERT INTO t VALUES ({}, '{name}')", (n + 1) * 1000 + g));
                    let _done = conn.try_query(&format!(
                        "INSERT INTO t VALUES ({}, '{name} {g}') ON CONFLICT (id) DO UPDATE SET val = excluded.val",
                        g % 5
                    ));
                }
            });
        }
    });
    web.quiet();
    web.net.assert_equal("t");
    web.expect("SELECT count(*) FROM t", "455");
}

/// Two syncs with the same members and table: each serves what the other one has not.
#[test]
fn two_syncs_over_the_same_pair() {
    let mut web = Web::new(&["A", "B"], &["A", "B"]);
    web.sync("one", "A:source,B:source", "");
    web.sync("two", "A:source,B:source", "");
    web.net.on("A").exec("INSERT INTO t SELECT g, 'A' FROM generate_series(1, 30) g");
    web.net.on("B").exec("INSERT INTO t SELECT g, 'B' FROM generate_series(101, 130) g");
    web.quiet();
    web.net.assert_equal("t");
    web.expect("SELECT count(*) FROM t", "60");
}

/// The middle server's kid dies between the two syncs: what was relayed is relayed once.
#[test]
fn a_relay_survives_the_death_of_kids() {
    let mut web = Web::new(&["A", "B", "C"], &["B"]);
    web.sync("ab", "A:source,B:target", "");
    web.sync("bc", "B:source,C:target", "");
    for round in 0..10 {
        web.net.on("A").exec(&format!("INSERT INTO t SELECT {round} * 100 + g, 'A' FROM generate_series(1, 50) g"));
        web.net.control().exec("SELECT count(pg_terminate_backend(pid, 30000)) FROM bucardo.activity WHERE kind = 'kid'");
    }
    wait_until("all rows to arrive", || web.net.on("C").number("SELECT count(*) FROM t") == 500);
    web.settled();
}

/// The first sync decides which of two rows goes; the next one has brought that row further down already.
#[test]
fn a_row_that_lost_goes_down_the_chain() {
    let mut web = Web::new(&["A", "B", "C"], &["B"]);
    web.net.everywhere("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, u text UNIQUE, val text)");
    web.sync("ab", "A:source,B:source", ", autokick => false");
    web.sync("bc", "B:source,C:target", ", autokick => false");
    web.net.on("B").exec("INSERT INTO t VALUES (2, 'x', 'B')");
    assert_eq!(web.kick("bc"), "good");
    web.net.on("A").exec("INSERT INTO t VALUES (1, 'x', 'A')");
    assert_eq!(web.kick("ab"), "good");
    web.quiet();
    web.expect("SELECT string_agg(concat_ws(' ', id, u, val), ', ' ORDER BY id) FROM t", "1 x A");
}

/// The same for a row that loses its parent, and for one that only the middle member had.
#[test]
fn what_a_run_removes_itself_goes_down_the_chain() {
    let mut web = Web::new(&["A", "B", "C"], &["B"]);
    web.net.everywhere(
        "DROP TABLE t; CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE t (id int PRIMARY KEY, p int REFERENCES p, u text UNIQUE)",
    );
    let tables = ", tables => 'public.p,public.t', autokick => false";
    for (name, dbs) in [("ab", "A:source,B:source"), ("bc", "B:source,C:target")] {
        web.net.control().exec(&format!("SELECT bucardo.add_sync('{name}', dbs => '{dbs}' {tables})"));
        web.syncs.push(name.to_owned());
    }
    web.net.on("A").exec("INSERT INTO p VALUES (1), (2)");
    web.quiet();
    // Neither sees what the other one does.
    web.net.on("B").exec("INSERT INTO t VALUES (10, 1, 'of B')");
    assert_eq!(web.kick("bc"), "good");
    web.net.on("A").exec("DELETE FROM p WHERE id = 1");
    assert_eq!(web.kick("ab"), "good");
    web.quiet();
    web.expect("SELECT count(*) FROM t", "0");
    web.expect("SELECT string_agg(id::text, ' ') FROM p", "2");
    web.net.on("B").exec("SET session_replication_role = replica; INSERT INTO t VALUES (20, 2, 'x')");
    web.net.on("C").exec("INSERT INTO t VALUES (20, 2, 'x')");
    web.net.on("A").exec("INSERT INTO t VALUES (21, 2, 'x')");
    assert_eq!(web.kick("ab"), "good");
    web.quiet();
    web.expect("SELECT string_agg(concat_ws(' ', id, p, u), ', ') FROM t", "21 2 x");
}
