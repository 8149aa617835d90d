//! Which server is at the other end: one that failed over, one that is a copy of another, one whose clock goes wrong.
//!
//! Standbys are made, promoted and put into the place of others here. Who lost commits gets them again; who is another
//! database than before takes no part until somebody says that it is right.

use crate::cluster::{Cluster, Stop};
use crate::compare::literal;
use crate::net::{CONTROL, CONTROL_SETTINGS, Capture, Net};
use crate::scratch::{output, scratch};
use crate::wait::wait_until;

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

/// The status names the member and the statement that confirms it.
#[track_caller]
fn wait_refused(net: &Net, name: &str) {
    wait_until("the status to say that it is refused", || {
        let error = net.last_error();
        error.contains(&format!("db \"{name}\"")) && error.contains(&format!("update_db('{name}'"))
    });
    net.wait_state("bad|stalled");
}

/// In the place of a database stands a copy of it.
fn remake(server: &Cluster, db: &str) {
    let mut conn = server.connect("postgres");
    conn.exec(&format!("ALTER DATABASE {db} ALLOW_CONNECTIONS false"));
    conn.exec(&format!("SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = '{db}'"));
    conn.exec(&format!("ALTER DATABASE {db} RENAME TO old"));
    conn.exec(&format!("CREATE DATABASE {db} TEMPLATE old"));
}

#[test]
fn a_target_that_is_another_database_is_refused_until_confirmed() {
    let net = Net::apart(Capture::Native, 2).with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 20) g");
    net.settle(&["t"]);
    let server = net.server_of("B");
    server.sql("postgres", "DROP DATABASE b WITH (FORCE)");
    server.create_database("b", "");
    net.on("B").exec(&format!("{T}; INSERT INTO t VALUES (1, 'mine')"));
    net.on("A").exec("INSERT INTO t VALUES (100, 'y')");
    net.wait_equal("t", &["C"]);
    wait_refused(&net, "B");
    assert_eq!(net.on("B").one("SELECT string_agg(v, ',') FROM t"), "mine", "it was written to all the same");
    let fault = "SELECT string_agg(db || ': ' || fault, ', ') FROM bucardo.validate_sync('s')";
    assert!(net.control().one(fault).starts_with("B: it is another database than before"), "{}", net.control().one(fault));
    net.control().exec("SELECT bucardo.update_db('B', status => 'active')");
    net.settle(&["t"]);
    net.wait_state("good|empty");
}

#[test]
fn a_conninfo_given_anew_confirms_too() {
    let net = Net::apart(Capture::Plain, 1).with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.settle(&["t"]);
    remake(net.server_of("B"), "b");
    net.on("B").exec("DELETE FROM t");
    net.on("A").exec("INSERT INTO t VALUES (2, 'y')");
    wait_refused(&net, "B");
    let conninfo = literal(&net.conninfo("B"));
    net.control().exec(&format!("SELECT bucardo.update_db('B', conninfo => {conninfo})"));
    net.settle(&["t"]);
}

#[test]
fn a_source_that_is_another_database_is_refused_until_confirmed() {
    let net = Net::apart(Capture::Plain, 1).with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x'), (2, 'x')");
    net.settle(&["t"]);
    remake(net.server_of("A"), "a");
    net.on("A").exec("DELETE FROM t WHERE id = 1; INSERT INTO t VALUES (3, 'y')");
    wait_refused(&net, "A");
    assert_eq!(net.on("B").one("SELECT string_agg(id::text, ',' ORDER BY id) FROM t"), "1,2", "it was served all the same");
    net.control().exec("SELECT bucardo.update_db('A', status => 'active')");
    net.settle(&["t"]);
    net.on("A").exec("INSERT INTO t VALUES (4, 'z')");
    net.settle(&["t"]);
}

/// Two sources and a target, each on a server of its own, all with a database of the same name. Twins: B was made from A's
/// files, as a member often is, so that the two servers have the same identifiers.
pub fn two_sources(twins: bool) -> Net {
    three_members("A:source,B:source,C:target", twins)
}

pub fn three_members(dbs: &str, twins: bool) -> Net {
    let mut net = Net { servers: vec![], members: vec![] };
    net.servers.push(Cluster::start(CONTROL, CONTROL_SETTINGS));
    net.servers[0].create_database(CONTROL, "");
    net.control().exec("CREATE EXTENSION bucardo");
    for (n, name) in ["A", "B", "C"].into_iter().enumerate() {
        let server = match name {
            "B" if twins => Cluster::copy_of(&net.servers[1], "b", false),
            _ => Cluster::start(&name.to_lowercase(), ""),
        };
        if !(twins && name == "B") {
            server.create_database("app", "");
            server.sql("app", T);
        }
        net.servers.push(server);
        net.members.push(crate::net::Member { name, server: n + 1, db: "app".to_owned() });
        net.register(name);
    }
    net.control().exec(&format!("SELECT bucardo.add_sync('s', dbs => '{dbs}', tables => 'public.t')"));
    net
}

fn a_copy_in_the_place_of_a_source(twins: bool) {
    let net = two_sources(twins);
    net.on("A").exec("INSERT INTO t SELECT g, 'A' FROM generate_series(1, 20) g");
    net.settle(&["t"]);
    net.on("B").exec("UPDATE t SET v = 'B' WHERE id <= 5");
    net.settle(&["t"]);
    // B's place is taken by a copy of A as it is now; what A writes afterwards B had got already.
    let copy = Cluster::copy_of(net.server_of("A"), "copy", false);
    net.on("A").exec("UPDATE t SET v = 'later' WHERE id <= 10; INSERT INTO t VALUES (100, 'later')");
    net.settle(&["t"]);
    net.server_of("B").replace_by_copy_of(&copy);
    drop(copy);
    net.on("A").exec("INSERT INTO t VALUES (101, 'A')");
    net.wait_equal("t", &["C"]);
    wait_refused(&net, "B");
    assert_eq!(net.on("B").number("SELECT count(*) FROM t WHERE id > 100"), 0, "it was written to all the same");
    net.control().exec("SELECT bucardo.update_db('B', status => 'active')");
    net.settle(&["t"]);
    assert_eq!(net.on("A").one(" SELECT count(*) FROM t WHERE id <= 10 AND v <> 'later'"), "0", "old rows came back");
    net.on("B").exec("INSERT INTO t VALUES (200, 'B'); UPDATE t SET v = 'B again' WHERE id = 1");
    net.settle(&["t"]);
    assert_eq!(net.on("C").one("SELECT string_agg(v, ',' ORDER BY id) FROM t WHERE id IN (1, 200)"), "B again,B");
    net.wait_state("good|empty");
}

#[test]
fn a_copy_of_another_source_is_refused_until_confirmed() {
    a_copy_in_the_place_of_a_source(false);
}

#[test]
fn a_copy_of_another_source_is_refused_where_all_have_the_same_identifiers() {
    a_copy_in_the_place_of_a_source(true);
}

/// Its catalog says how far others were served, in numbers that mean nothing on the new server.
#[test]
fn a_source_restored_from_a_dump_takes_part_again() {
    let net = two_sources(false);
    net.on("A").exec("INSERT INTO t SELECT g, 'A' FROM generate_series(1, 20) g");
    net.on("A").exec("SELECT pg_current_xact_id() FROM generate_series(1, 3000)");
    net.settle(&["t"]);
    let server = net.server_of("A");
    let dump = output(scratch().server_command("pg_dump").arg("-d").arg(server.conninfo("app")));
    net.on("A").exec("UPDATE t SET v = 'A later' WHERE id <= 5");
    net.on("B").exec("UPDATE t SET v = 'B later' WHERE id = 20; DELETE FROM t WHERE id = 19");
    net.settle(&["t"]);
    server.stop(Stop::Fast);
    let new = Cluster::start("new", "");
    new.create_database("app", "");
    let file = new.folder().join("dump.sql");
    std::fs::write(&file, dump).expect("the dump can be written");
    let mut psql = scratch().server_command("psql");
    output(psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", &new.conninfo("app"), "-f"]).arg(&file));
    server.replace_by_copy_of(&new);
    net.on("B").exec("UPDATE t SET v = 'B again' WHERE id = 18");
    wait_refused(&net, "A");
    net.control().exec("SELECT bucardo.update_db('A', status => 'active')");
    net.settle(&["t"]);
    let rows = net.on("A").one("SELECT string_agg(id || v, ',' ORDER BY id) FROM t WHERE v <> 'A' OR id = 19");
    assert_eq!(rows, "1A later,2A later,3A later,4A later,5A later,18B again,20B later");
    net.on("A").exec("UPDATE t SET v = 'restored' WHERE id = 1; DELETE FROM t WHERE id = 2");
    net.settle(&["t"]);
    assert_eq!(net.on("C").one("SELECT v FROM t WHERE id = 1"), "restored");
    assert_eq!(net.on("C").number("SELECT count(*) FROM t"), 18);
}

#[test]
fn two_members_that_turn_out_to_be_one_database_are_not_both_served() {
    let net = two_sources(true);
    net.on("A").exec("INSERT INTO t VALUES (1, 'A')");
    net.settle(&["t"]);
    let both = format!(
        "host={},{} port={},{} dbname=app user=postgres",
        net.server_of("B").folder().display(),
        net.server_of("A").folder().display(),
        net.server_of("B").port(),
        net.server_of("A").port()
    );
    net.control().exec(&format!("SELECT bucardo.update_db('B', conninfo => {})", literal(&both)));
    net.server_of("B").stop(Stop::Fast);
    net.on("A").exec("INSERT INTO t VALUES (2, 'A')");
    net.wait_equal("t", &["C"]);
    wait_until("the status to say so", || {
        let error = net.last_error();
        error.contains("db \"B\"") && (error.contains("same database as db \"A\"") || error.contains("copy of db \"A\""))
    });
    net.server_of("B").launch();
    net.settle(&["t"]);
}

/// `name` gets a standby, and a conninfo by which whichever of the two can be written is found.
pub fn with_standby(net: &Net, name: &str) -> Cluster {
    let primary = net.server_of(name);
    let standby = Cluster::copy_of(primary, "standby", true);
    let conninfo = format!(
        "host={},{} port={},{} dbname={} user=postgres target_session_attrs=read-write",
        primary.folder().display(),
        standby.folder().display(),
        primary.port(),
        standby.port(),
        net.members.iter().find(|m| m.name == name).unwrap().db,
    );
    net.control().exec(&format!("SELECT bucardo.update_db('{name}', conninfo => {})", literal(&conninfo)));
    standby
}

/// Until the standby has all that its primary has written.
fn wait_streamed(primary: &Cluster, standby: &Cluster) {
    let at = primary.connect("postgres").one("SELECT pg_current_wal_lsn()");
    let there = format!("SELECT pg_last_wal_replay_lsn() >= '{at}'");
    wait_until("the standby to have all", || standby.connect("postgres").one(&there) == "t");
}

/// The standby is cut off, then `writes` happen; its primary dies, and the standby goes on without them. Its member
/// stands on server `net.servers[n]`, whose place the standby takes in the harness.
pub fn fail_over(net: &mut Net, name: &str, standby: Cluster, writes: impl FnOnce(&Net)) {
    let server = net.members.iter().find(|m| m.name == name).unwrap().server;
    wait_streamed(&net.servers[server], &standby);
    standby.stop(Stop::Fast);
    writes(net);
    net.servers[server].stop(Stop::Immediate);
    standby.launch();
    standby.promote();
    net.servers[server] = standby;
}

/// B fails over and loses what it had been given, of which A has no deltas any more; then A changes more.
fn lose_on_target(net: &mut Net) {
    let standby = with_standby(net, "B");
    net.on("A").exec("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 20) g");
    net.settle(&["t"]);
    fail_over(net, "B", standby, |net| {
        net.on("A").exec("UPDATE t SET v = 'lost' WHERE id <= 5; DELETE FROM t WHERE id = 20; INSERT INTO t VALUES (21, 'lost')");
        net.settle(&["t"]);
        net.control().exec("SELECT bucardo.purge()");
    });
    net.on("A").exec("INSERT INTO t VALUES (22, 'y')");
}

#[test]
fn a_target_that_failed_over_gets_what_it_lost() {
    let mut net = Net::apart(Capture::Plain, 2).with_table(T, "public.t");
    lose_on_target(&mut net);
    net.settle(&["t"]);
    net.wait_state("good|empty");
}

/// A source's standby goes on without knowing that a table was added, while its other tables are captured.
#[test]
fn a_table_that_was_just_added_is_captured_after_a_failover() {
    let mut net = Net::apart(Capture::Plain, 1).with_table(T, "public.t");
    net.everywhere("CREATE TABLE u (id int PRIMARY KEY, v text)");
    let standby = with_standby(&net, "A");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.settle(&["t"]);
    fail_over(&mut net, "A", standby, |net| {
        net.control().exec("SELECT bucardo.add_table('public.u', 's')");
        net.on("A").exec("INSERT INTO u VALUES (1, 'before')");
        net.settle(&["t", "u"]);
    });
    net.on("A").exec("INSERT INTO t VALUES (2, 'y')");
    net.settle(&["t"]);
    net.on("A").exec("INSERT INTO u VALUES (2, 'after')");
    net.on("A").exec("INSERT INTO t VALUES (3, 'z')");
    net.wait_sql("B", "what was written after the failover", "SELECT count(*) = 1 FROM u WHERE v = 'after'");
}

/// The run that is under way had given it more in an earlier round than it has then.
#[test]
fn a_target_that_failed_over_during_a_run_gets_what_it_lost() {
    for _ in 0..10 {
        let mut net = Net::apart(Capture::Native, 2).with_table(T, "public.t");
        let standby = with_standby(&net, "B");
        net.on("A").exec("INSERT INTO t SELECT g, 'x' FROM generate_series(-20, -1) g");
        net.settle(&["t"]);
        let mut ended = 0;
        fail_over(&mut net, "B", standby, |net| {
            let last = net.control().number("SELECT max(run) FROM bucardo.syncrun WHERE state = 'good'");
            net.control().exec("SELECT bucardo.fault_set('kid.before_next_round', 'wait')");
            let stands = || net.control().one("SELECT bucardo.fault_taken('kid.before_next_round')::text") == "true";
            let mut id = 0;
            wait_until("a run that goes on", || {
                let one_by_one = "BEGIN FOR i IN {} .. {} + 199 LOOP INSERT INTO t VALUES (i, 'y'); COMMIT; END LOOP; END";
                net.on("A").exec(&format!("DO $${}$$", one_by_one.replace("{}", &id.to_string())));
                id += 200;
                stands()
            });
            ended = net.control().number(&format!("SELECT count(*) FROM bucardo.syncrun WHERE state = 'good' AND run > {last}"));
        });
        net.control().exec("SELECT bucardo.fault_clear()");
        net.settle(&["t"]);
        net.wait_state("good|empty");
        // What a run has noted that had ended by then tells of the loss as well.
        if ended == 0 {
            return;
        }
    }
    panic!("never was it the first run that went on");
}

/// What the control database knows of it fails over with it, and has lost what would tell.
#[test]
fn a_target_that_failed_over_with_the_control_database_gets_what_it_lost() {
    let mut net = Net::beside_the_target().with_table(T, "public.t");
    lose_on_target(&mut net);
    net.wait_sql("B", "the row from the new primary", "SELECT EXISTS (SELECT FROM t WHERE id = 22)");
    net.settle(&["t"]);
    net.wait_state("good|empty");
    // It is told once: whoever is met again has lost nothing since.
    let said = || net.servers[0].log().matches("has lost what it had committed").count();
    assert_eq!(said(), 1);
    net.control().exec("SELECT count(pg_terminate_backend(pid, 30000)) FROM bucardo.activity WHERE kind = 'kid'");
    net.on("A").exec("INSERT INTO t VALUES (23, 'y')");
    net.settle(&["t"]);
    assert_eq!(said(), 1);
}

/// It dies when its receivers have committed, and before it has answered that it knows.
#[test]
fn a_source_that_failed_over_before_the_mark_takes_back_what_it_lost() {
    let mut net = Net::apart(Capture::Plain, 1).with_table(T, "public.t");
    let standby = with_standby(&net, "A");
    net.on("A").exec("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 20) g");
    net.settle(&["t"]);
    fail_over(&mut net, "A", standby, |net| {
        net.rest();
        net.on("A").exec("INSERT INTO t VALUES (21, 'lost')");
        net.control().exec("SELECT bucardo.fault_set('kid.before_mark', 'wait'); SELECT bucardo.resume('s')");
        let stands = || net.control().one("SELECT bucardo.fault_taken('kid.before_mark')::text") == "true";
        wait_until("the receiver to have committed", stands);
        assert_eq!(net.on("B").number("SELECT count(*) FROM t"), 21);
    });
    net.control().exec("SELECT bucardo.fault_clear()");
    net.on("A").exec("INSERT INTO t VALUES (22, 'y')");
    net.settle(&["t"]);
    net.wait_state("good|empty");
}

#[test]
fn a_source_that_failed_over_gets_back_what_it_lost() {
    let mut net = two_sources(false);
    let standby = with_standby(&net, "A");
    net.on("A").exec("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 20) g");
    net.settle(&["t"]);
    fail_over(&mut net, "A", standby, |net| {
        net.on("A").exec("UPDATE t SET v = 'of A' WHERE id <= 5; INSERT INTO t VALUES (21, 'of A')");
        net.on("B").exec("UPDATE t SET v = 'of B' WHERE id BETWEEN 10 AND 15; DELETE FROM t WHERE id = 20");
        net.settle(&["t"]);
        net.control().exec("SELECT bucardo.purge()");
    });
    net.on("A").exec("INSERT INTO t VALUES (30, 'A goes on')");
    net.on("B").exec("INSERT INTO t VALUES (31, 'B goes on')");
    net.settle(&["t"]);
    let rows = net.on("A").one("SELECT string_agg(id || v, ',' ORDER BY id) FROM t WHERE v <> 'x'");
    let of_b = (10..=15).map(|n| format!("{n}of B")).collect::<Vec<_>>().join(",");
    assert_eq!(rows, format!("1of A,2of A,3of A,4of A,5of A,{of_b},21of A,30A goes on,31B goes on"));
    assert_eq!(net.on("A").number("SELECT count(*) FROM t WHERE id = 20"), 0);
    net.wait_state("good|empty");
}

/// A and B fail over in one moment, and both have lost what they wrote and what the other gave them. A third source has
/// it all; where the only other member is a target, all become equal to what the sources still have.
#[test]
fn two_sources_that_lose_commits_together() {
    for dbs in ["A:source,B:source,C:source", "A:source,B:source,C:target"] {
        let mut net = three_members(dbs, false);
        let standbys = ["A", "B"].map(|name| with_standby(&net, name));
        net.on("A").exec("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 20) g");
        net.settle(&["t"]);
        for (n, standby) in standbys.iter().enumerate() {
            wait_streamed(&net.servers[n + 1], standby);
            standby.stop(Stop::Fast);
        }
        net.on("A").exec("UPDATE t SET v = 'of A' WHERE id <= 3; INSERT INTO t VALUES (21, 'of A')");
        net.on("B").exec("UPDATE t SET v = 'of B' WHERE id BETWEEN 10 AND 12; DELETE FROM t WHERE id = 20");
        net.settle(&["t"]);
        net.control().exec("SELECT bucardo.purge()");
        net.on("C").exec("INSERT INTO t VALUES (40, 'of C')");
        if dbs.ends_with("C:source") {
            net.settle(&["t"]);
        }
        net.servers[1..3].iter().for_each(|server| server.stop(Stop::Immediate));
        for (n, standby) in standbys.into_iter().enumerate() {
            standby.launch();
            standby.promote();
            net.servers[n + 1] = standby;
        }
        net.on("A").exec("UPDATE t SET v = 'A goes on' WHERE id = 1; INSERT INTO t VALUES (30, 'A goes on')");
        net.on("B").exec("UPDATE t SET v = 'B goes on' WHERE id = 12; INSERT INTO t VALUES (31, 'B goes on')");
        net.settle(&["t"]);
        let rows = net.on("A").one("SELECT string_agg(id || v, ',' ORDER BY id) FROM t WHERE v <> 'x' OR id = 20");
        let wanted = match dbs.ends_with("C:source") {
            true => "1A goes on,2of A,3of A,10of B,11of B,12B goes on,21of A,30A goes on,31B goes on,40of C",
            false => "1A goes on,12B goes on,20x,30A goes on,31B goes on",
        };
        assert_eq!(rows, wanted, "{dbs}");
        net.wait_state("good|empty");
    }
}

#[test]
fn a_single_source_that_failed_over_and_its_target_become_equal() {
    let mut net = Net::apart(Capture::Plain, 1).with_table(T, "public.t");
    let standby = with_standby(&net, "A");
    net.on("A").exec("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 20) g");
    net.settle(&["t"]);
    fail_over(&mut net, "A", standby, |net| {
        net.on("A").exec("UPDATE t SET v = 'lost' WHERE id <= 5; INSERT INTO t VALUES (21, 'lost')");
        net.settle(&["t"]);
    });
    net.on("A").exec("INSERT INTO t VALUES (22, 'y')");
    net.settle(&["t"]);
    assert_eq!(net.on("B").number("SELECT count(*) FROM t WHERE v = 'lost'"), 0, "the source is what the target must be");
}

#[test]
fn a_failover_that_lost_nothing_copies_nothing() {
    let mut net = Net::apart(Capture::Plain, 1).with_table(T, "public.t");
    let standby = with_standby(&net, "B");
    net.on("A").exec("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 20) g");
    net.settle(&["t"]);
    net.on("B").exec("UPDATE t SET v = 'of B alone' WHERE id = 1");
    fail_over(&mut net, "B", standby, |_| {});
    net.on("A").exec("INSERT INTO t VALUES (22, 'y')");
    net.wait_sql("B", "what came afterwards", "SELECT count(*) = 1 FROM t WHERE id = 22");
    assert_eq!(net.on("B").one("SELECT v FROM t WHERE id = 1"), "of B alone", "a whole table was copied");
    net.wait_state("good|empty");
}

/// B has what A gave it, and A's own note of that is lost with A; nothing else is. What B then writes on it contends with nobody.
#[test]
fn a_failover_that_lost_nothing_makes_nothing_contend_again() {
    let mut net = three_members("A:source,B:source,C:target", false);
    let standby = with_standby(&net, "A");
    net.control().exec("SELECT bucardo.update_sync('s', conflict_strategy => 'bucardo_source')");
    net.on("A").exec("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 20) g");
    net.settle(&["t"]);
    let passed = || net.control().number("SELECT bucardo.fault_hits('kid.after_commit')");
    let before = passed();
    net.control().exec("SELECT bucardo.fault_set('kid.after_commit', 'wait')");
    net.on("A").exec("UPDATE t SET v = 'of A' WHERE id <= 5");
    wait_until("all to have committed", || passed() > before);
    wait_streamed(net.server_of("A"), &standby);
    standby.stop(Stop::Fast);
    let runs = || net.control().number("SELECT count(*) FROM bucardo.syncrun");
    let done = runs();
    net.control().exec("SELECT bucardo.pause('s')");
    net.control().exec("SELECT bucardo.fault_clear()");
    wait_until("the run to be over", || runs() > done);
    net.on("B").exec("UPDATE t SET v = 'of B' WHERE id <= 5");
    let server = net.members.iter().find(|m| m.name == "A").unwrap().server;
    net.servers[server].stop(Stop::Immediate);
    standby.launch();
    standby.promote();
    net.servers[server] = standby;
    net.control().exec("SELECT bucardo.resume('s')");
    net.settle(&["t"]);
    assert_eq!(net.on("C").one("SELECT string_agg(DISTINCT v, ',') FROM t WHERE id <= 5"), "of B");
    assert_eq!(net.control().number("SELECT count(*) FROM bucardo.conflict"), 0, "decided again");
    net.wait_state("good|empty");
}

#[test]
fn a_copy_of_the_control_server_does_not_run_by_itself() {
    let net = Net::apart(Capture::Plain, 1).with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.settle(&["t"]);
    let copy = Cluster::copy_of(&net.servers[0], "copy", false);
    let status = "SELECT concat_ws(': ', state, last_error) FROM bucardo.status";
    wait_until("the copy to say why it does nothing", || {
        let seen = copy.connect(CONTROL).one(status);
        seen.starts_with("stopped: ") && seen.contains("copy of the control database") && seen.contains("bucardo.start()")
    });
    for call in ["kick('s')", "kick('s', '1s')"] {
        let error = copy.connect(CONTROL).expect_error(&format!("SELECT bucardo.{call}"), "55000");
        assert!(error.message.contains("copy of the control database"), "{call}: {error}");
    }
    net.servers[0].restart(Stop::Fast);
    net.on("A").exec("INSERT INTO t VALUES (2, 'x')");
    net.settle(&["t"]);
    net.servers[0].stop(Stop::Fast);
    net.on("A").exec("INSERT INTO t VALUES (3, 'x')");
    let mut started = copy.connect(CONTROL);
    assert_eq!(started.one("SELECT bucardo.start()"), "started");
    // From here on it is merely starting.
    assert_eq!(started.one("SELECT bucardo.kick('s')"), "kicked");
    net.wait_sql("B", "the copy to go on in its place", "SELECT count(*) = 3 FROM t");
    copy.restart(Stop::Fast);
    net.on("A").exec("INSERT INTO t VALUES (4, 'x')");
    net.wait_sql("B", "the copy to go on after a restart", "SELECT count(*) = 4 FROM t");
}

#[test]
fn a_control_database_restored_from_a_dump_knows_its_members() {
    let net = Net::apart(Capture::Native, 1).with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.settle(&["t"]);
    let dump = output(scratch().server_command("pg_dump").arg("-d").arg(net.servers[0].conninfo(CONTROL)));
    net.servers[0].stop(Stop::Fast);
    let new = Cluster::start("new", CONTROL_SETTINGS);
    new.create_database(CONTROL, "");
    let file = new.folder().join("dump.sql");
    std::fs::write(&file, dump).expect("the dump can be written");
    let mut psql = scratch().server_command("psql");
    output(psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", &new.conninfo(CONTROL), "-f"]).arg(&file));
    new.sql(CONTROL, "SELECT bucardo.update_sync('s', status => 'active')");
    new.sql(CONTROL, "INSERT INTO t VALUES (2, 'y')");
    net.wait_sql("B", "the restored control database to serve it", "SELECT count(*) = 2 FROM t");
    let works = "SELECT state IN ('good', 'empty', 'running') FROM bucardo.status WHERE sync = 's'";
    wait_until("the status to say so", || new.connect(CONTROL).one(works) == "t");
}

#[test]
fn a_promoted_standby_of_the_control_server_goes_on() {
    let net = Net::apart(Capture::Plain, 1).with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.settle(&["t"]);
    let standby = Cluster::copy_of(&net.servers[0], "standby", true);
    wait_streamed(&net.servers[0], &standby);
    net.servers[0].stop(Stop::Fast);
    standby.promote();
    net.on("A").exec("INSERT INTO t VALUES (2, 'x')");
    net.wait_sql("B", "the promoted server to go on", "SELECT count(*) = 2 FROM t");
    standby.restart(Stop::Fast);
    net.on("A").exec("INSERT INTO t VALUES (3, 'x')");
    net.wait_sql("B", "it to go on after a restart", "SELECT count(*) = 3 FROM t");
}

#[test]
fn clocks_that_differ_are_told_where_the_latest_change_wins() {
    let net = two_sources(false);
    let warning = "SELECT coalesce((SELECT warning FROM bucardo.status WHERE sync = 's'), '')";
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.settle(&["t"]);
    assert_eq!(net.control().one(warning), "");
    // Clocks are compared at connect, and a run may still use a connection that was there: so there is one run after another.
    let after_runs = |what: &str, condition: &str| {
        wait_until(what, || {
            net.kick();
            net.control().one(&format!("SELECT {condition} FROM bucardo.status WHERE sync = 's'")) == "t"
        });
    };
    net.control().exec("SELECT bucardo.fault_clock('B', 90); SELECT bucardo.update_sync('s', stayalive => false)");
    after_runs(
        "the status to tell of the clocks",
        "coalesce(warning, '') LIKE '%\"B\" is 90.0 s ahead of that of db \"A\"%' AND state IN ('good', 'empty', 'running')",
    );
    assert!(net.servers[0].log().contains("WARNING:  bucardo: sync \"s\": the clock of db \"B\""), "the log does not tell it");
    net.control().exec("SELECT bucardo.update_sync('s', conflict_strategy => 'bucardo_source')");
    after_runs("the clocks to matter no more", "warning IS NULL");
    net.control().exec("SELECT bucardo.update_sync('s', conflict_strategy => 'bucardo_latest')");
    after_runs("the clocks to matter again", "warning IS NOT NULL");
    net.control().exec("SELECT bucardo.fault_clock('B', 0)");
    after_runs("clocks that agree", "warning IS NULL");
}
