//! Wrong calls: each is refused with the contract's SQLSTATE and one line that names the object, and leaves nothing
//! behind on any member. The server never restarts because of one.

use crate::cluster::Cluster;
use crate::compare::literal;
use crate::footprint::{Footprint, assert_unchanged};
use crate::net::{CONTROL, Capture, Net};
use crate::wire::PgError;
use std::net::TcpListener;

/// All codes that the contract knows.
const CODES: &str = "42704 42710 22023 08001 2BP01 55000 57014 42501 0A000";

/// Two members with tables of every kind of fault on B.
fn net() -> Net {
    let net = Net::together(Capture::Plain, 1);
    net.everywhere(
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE keyless (v text); CREATE TABLE other (id int PRIMARY KEY)",
    );
    net.on("A").exec(
        "CREATE TABLE missing (id int PRIMARY KEY); CREATE TABLE lacks (id int PRIMARY KEY, extra int); \
         CREATE TABLE kind (id int PRIMARY KEY, v int); CREATE VIEW view AS SELECT 1 AS id; CREATE SEQUENCE lonely",
    );
    net.on("B").exec(
        "CREATE TABLE lacks (id int PRIMARY KEY); CREATE TABLE kind (id int PRIMARY KEY, v point); CREATE VIEW view AS SELECT 1 AS id",
    );
    net
}

/// Every call in turn must fail with its code and leave nothing.
fn refused(net: &Net, calls: &[(&str, &str)]) {
    let before = Footprint::of(net);
    for (codes, call) in calls {
        let call = format!("SELECT bucardo.{call}");
        let error = refusal(net, &call);
        assert!(codes.contains(&error.sqlstate), "{call}: expected {codes}, got\n{error}");
        assert!(!error.message.is_empty() && !error.message.contains('\n'), "{call}: not one line:\n{error}");
        assert_unchanged(net, &before, &call);
    }
    assert_eq!(net.servers[0].crash_restarts(), 0);
}

fn refusal(net: &Net, call: &str) -> PgError {
    match net.control().try_query(call) {
        Ok(reply) => panic!("{call} was accepted: {:?}", reply.rows),
        Err(error) => error,
    }
}

#[test]
fn unknown_things() {
    let net = net();
    refused(
        &net,
        &[
            ("42704", "kick('nosuch')"),
            ("42704", "kick('nosuch', '5s')"),
            ("42704", "pause('nosuch')"),
            ("42704", "resume('nosuch')"),
            ("42704", "activate('nosuch')"),
            ("42704", "deactivate('nosuch')"),
            ("42704", "remove_sync('nosuch')"),
            ("42704", "update_sync('nosuch', priority => 1)"),
            ("42704", "validate_sync('nosuch')"),
            ("42704", "update_db('nosuch', status => 'inactive')"),
            ("42704", "remove_db('nosuch')"),
            ("42704", "update_dbgroup('nosuch', 'A')"),
            ("42704", "remove_dbgroup('nosuch')"),
            ("42704", "remove_relgroup('nosuch')"),
            ("42704", "add_dbgroup('g', 'A:source,nosuch:target')"),
            ("42704", "add_table('public.t', 'nosuch')"),
            ("42704", "add_all_tables('nosuch', 'A')"),
            ("42704", "remove_table('public.t', 'nosuch')"),
            ("42704", "add_sync('s', dbs => 'A:source,nosuch:target', tables => 'public.t')"),
            ("42704", "add_sync('s', dbs => 'A,B', relgroup => 'nosuch')"),
            ("42704", "add_sync('s', dbs => 'A,B', tables => 'public.nosuch')"),
            ("42704", "add_sync('s', dbs => 'nosuch', tables => 'public.t')"),
            ("42704", "purge('nosuch')"),
        ],
    );
}

#[test]
fn lists_roles_and_options() {
    let net = net();
    let mut calls: Vec<(&str, String)> = [
        "dbs => 'A:source,A:target', tables => 'public.t'",
        "dbs => 'A:sauce,B:target', tables => 'public.t'",
        "dbs => 'A:target,B:target', tables => 'public.t'",
        "dbs => '', tables => 'public.t'",
        "dbs => 'A:source', tables => 'public.t'",
        "dbs => 'A,B', tables => ''",
        "dbs => 'A,B', tables => ' , '",
        "dbs => 'A,B'",
        "dbs => 'A,B', tables => 'public.t', relgroup => 'both'",
        "dbs => 'A,B', tables => 'public.\"t'",
    ]
    .iter()
    .map(|arguments| ("22023 42704", format!("add_sync('s', {arguments})")))
    .collect();
    for option in [
        "conflict_strategy => 'nonsense words'",
        "onetimecopy => 3",
        "onetimecopy => -1",
        "checktime => '-1 second'",
        "checktime => '0'",
        "lifetime => '-1 day'",
        "maxkicks => -1",
        "isolation_level => 'read committed'",
        "deletemethod => 'burn'",
        "status => 'maybe'",
    ] {
        calls.push(("22023", format!("add_sync('s', dbs => 'A,B', tables => 'public.t', {option})")));
    }
    calls.push(("42710 22023", "add_db('A')".into()));
    calls.push(("22023", "add_db('new', dbgroup => 'g', role => 'king')".into()));
    calls.push(("22023", "update_db('A', status => 'asleep')".into()));
    let calls: Vec<(&str, &str)> = calls.iter().map(|(code, call)| (*code, call.as_str())).collect();
    refused(&net, &calls);
}

#[test]
fn names_out_of_bounds_and_names_at_the_bound() {
    let net = net();
    let (long, wide) = ("n".repeat(64), "ü".repeat(32));
    let huge = "h".repeat(200);
    let mut calls = vec![];
    for name in ["", "  ", "a:b", "a,b", "new\nline", "tab\t", long.as_str(), wide.as_str(), huge.as_str()] {
        let name = literal(name);
        calls.push(format!("add_db({name})"));
        calls.push(format!("add_dbgroup({name})"));
        calls.push(format!("add_relgroup({name})"));
        calls.push(format!("add_sync({name}, dbs => 'A,B', tables => 'public.t')"));
    }
    refused(&net, &calls.iter().map(|call| ("22023", call.as_str())).collect::<Vec<_>>());
    for (n, name) in ["it's \"so\" $1 %s", "ünï ☃", &"n".repeat(63), "back\\slash"].iter().enumerate() {
        let name = literal(name);
        let mut control = net.control();
        control.exec(&format!("SELECT bucardo.add_sync({name}, dbs => 'A,B', tables => 'public.t')"));
        net.on("A").exec(&format!("INSERT INTO t VALUES ({n}, 'x')"));
        net.wait_equal("t", &["B"]);
        let state = control.one(&format!("SELECT bucardo.kick({name}, '60s')"));
        assert!(state == "good" || state == "empty");
        control.exec(&format!("SELECT bucardo.remove_sync({name})"));
    }
}

#[test]
fn tables_that_cannot_be_replicated() {
    let net = net();
    refused(
        &net,
        &[
            ("55000", "add_sync('s', dbs => 'A,B', tables => 'public.keyless')"),
            (CODES, "add_sync('s', dbs => 'A,B', tables => 'public.missing')"),
            (CODES, "add_sync('s', dbs => 'A,B', tables => 'public.lacks')"),
            (CODES, "add_sync('s', dbs => 'A,B', tables => 'public.kind')"),
            (CODES, "add_sync('s', dbs => 'A,B', tables => 'public.view')"),
            (CODES, "add_sync('s', dbs => 'A,B', tables => 'public.lonely')"),
            ("22023", "add_sync('s', dbs => 'A,B', tables => 'public.t,public.keyless,public.missing,public.kind')"),
            ("22023", "add_sync('s', dbs => 'A,B', tables => 'pg_catalog.pg_class')"),
        ],
    );
    let all = "SELECT bucardo.add_sync('s', dbs => 'A,B', tables => 'public.t,public.keyless,public.missing,public.kind')";
    let error = refusal(&net, all);
    for table in ["keyless", "missing", "kind"] {
        assert!(error.detail.contains(table), "the DETAIL lists not all faults:\n{error}");
    }
}

#[test]
fn things_that_exist_already_or_are_in_use() {
    let net = net();
    net.add_sync("tables => 'public.t'");
    net.control().exec("SELECT bucardo.add_relgroup('g', 'public.other'); SELECT bucardo.add_dbgroup('d', 'A:source,B:target')");
    net.control().exec("SELECT bucardo.add_sync('s2', dbs => 'd', relgroup => 'g')");
    refused(
        &net,
        &[
            ("42710", "add_sync('s', dbs => 'A,B', tables => 'public.other')"),
            ("42710", "add_db('B')"),
            ("42710", "add_relgroup('g')"),
            ("42710", "add_dbgroup('d')"),
            ("42710", "add_table('public.other', 'g')"),
            ("2BP01", "remove_db('A')"),
            ("2BP01", "remove_db('B')"),
            ("2BP01", "remove_relgroup('g')"),
            ("2BP01", "remove_dbgroup('d')"),
        ],
    );
    assert!(!refusal(&net, "SELECT bucardo.remove_db('A')").hint.is_empty());
}

#[test]
fn members_that_cannot_be_reached() {
    let net = net();
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = silent.local_addr().expect("it has an address").port();
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port is free").local_addr().expect("it has an address").port();
    refused(
        &net,
        &[
            ("22023 08001", "add_db('new', 'host=127.0.0.1 nonsense')"),
            ("22023 08001", "add_db('new', 'nosuchoption=1')"),
            ("22023 08001", "add_db('new', 'postgresql://host:port:more/')"),
            ("08001", &format!("add_db('new', 'host=127.0.0.1 port={closed} dbname=x user=postgres')")),
            ("08001", &format!("add_db('new', 'host=127.0.0.1 port={port} dbname=x user=postgres')")),
            ("08001", &format!("add_db('new', {})", literal(&net.servers[0].conninfo("nosuch")))),
            ("08001", "add_db('new', 'service=nosuchservice')"),
        ],
    );
    let unchecked = format!("SELECT bucardo.add_db('new', 'host=127.0.0.1 port={closed}', check_connection => false)");
    assert_eq!(net.control().one(&unchecked), "new");
}

/// As every statement that waits for a lock, also for one on a member.
#[test]
fn a_lock_on_a_member_is_waited_for_as_long_as_the_caller_says() {
    let net = net();
    let before = Footprint::of(&net);
    let mut locker = net.on("A");
    locker.exec("BEGIN; LOCK t IN ACCESS EXCLUSIVE MODE");
    let mut control = net.control();
    control.exec("SET lock_timeout = '300ms'");
    let call = format!("SELECT bucardo.add_sync('s', dbs => '{}', tables => 'public.t')", net.dbs());
    let error = control.expect_error(&call, "55P03");
    assert!(error.message.contains("db \"A\""), "{error}");
    locker.exec("COMMIT");
    assert_unchanged(&net, &before, &call);
    control.exec("RESET lock_timeout");
    control.exec(&call);
}

#[test]
fn a_wrong_password_is_refused_and_not_repeated() {
    let net = net();
    let guarded = Cluster::start("guarded", "");
    guarded.sql("postgres", "CREATE ROLE app LOGIN PASSWORD 'right'");
    guarded.authenticate("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256");
    let port = guarded.port();
    crate::wait::wait_until("the guard to stand", || {
        let call =
            format!("SELECT bucardo.add_db('x', 'host=127.0.0.1 port={port} dbname=postgres user=app password=hunter2wrong')");
        let error = refusal(&net, &call);
        assert_eq!(error.sqlstate, "08001", "{error}");
        assert!(!error.full().contains("hunter2wrong"), "the password is in the error:\n{error}");
        error.full().contains("password")
    });
}

#[test]
fn without_the_preload_it_says_what_to_set() {
    let bare = Cluster::start("bare", "");
    let mut conn = bare.connect("postgres");
    let reply = conn.try_query("CREATE EXTENSION bucardo").expect("it works without the preload");
    assert!(
        reply.notices.iter().any(|n| n.severity == "NOTICE" && n.full().contains("shared_preload_libraries")),
        "{:?}",
        reply.notices
    );
    for call in ["ping()", "start()", "add_sync('s', dbs => 'A,B', tables => 'public.t')"] {
        let error = conn.try_query(&format!("SELECT bucardo.{call}")).expect_err("no master here");
        assert!(error.sqlstate == "55000" || call.starts_with("add_sync"), "{call}: {error}");
        assert!(error.sqlstate != "55000" || error.hint.contains("shared_preload_libraries"), "{call}: {error}");
    }
    assert_eq!(bare.crash_restarts(), 0);
}

#[test]
fn roles_without_rights_are_refused_everywhere() {
    let net = net();
    net.add_sync("tables => 'public.t'");
    net.control().exec("CREATE ROLE nobody LOGIN");
    let mut nobody = net.servers[0].connect_as(CONTROL, "nobody");
    for call in [
        "kick('s')",
        "pause('s')",
        "add_db('x')",
        "remove_sync('s')",
        "stop()",
        "purge()",
        "add_sync('x', dbs => 'A,B', tables => 'all')",
    ] {
        nobody.expect_error(&format!("SELECT bucardo.{call}"), "42501");
    }
    for view in ["status", "db", "sync", "syncrun", "activity", "conflict"] {
        nobody.expect_error(&format!("SELECT * FROM bucardo.{view}"), "42501");
    }
}

#[test]
fn a_member_whose_role_may_not_take_part() {
    let net = net();
    let mut control = net.control();
    control.exec("CREATE ROLE app LOGIN");
    let conninfo = literal(&net.conninfo("B").replace("user=postgres", "user=app"));
    control.exec(&format!("SELECT bucardo.update_db('B', {conninfo})"));
    let call = "add_sync('s', dbs => 'A,B', tables => 'public.t', stayalive => false)";
    refused(&net, &[("42501", call)]);
    let error = refusal(&net, &format!("SELECT bucardo.{call}"));
    assert!(error.message.contains("\"app\"") && error.hint.contains("GRANT SET ON PARAMETER"), "{error}");
    control.exec("ALTER ROLE app SUPERUSER");
    control.exec(&format!("SELECT bucardo.{call}"));
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.wait_equal("t", &["B"]);
    // What it finds out later it says once, with the mend.
    control.exec("ALTER ROLE app NOSUPERUSER");
    net.on("A").exec("INSERT INTO t VALUES (2, 'y')");
    let error = net.try_kick().expect_err("the role may not");
    assert_eq!((error.sqlstate.as_str(), error.message.matches("db \"B\"").count()), ("42501", 1), "{error}");
    assert!(!error.hint.is_empty(), "{error}");
    control.exec("ALTER ROLE app SUPERUSER");
    net.settle(&["t"]);
}

#[test]
fn the_same_sync_added_by_two_sessions_at_once() {
    let net = net();
    let results: Vec<Result<_, PgError>> = std::thread::scope(|threads| {
        let call = "SELECT bucardo.add_sync('s', dbs => 'A:source,B:target', tables => 'public.t')";
        let running: Vec<_> = (0..4).map(|_| threads.spawn(|| net.control().try_query(call))).collect();
        running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1, "{results:?}");
    for error in results.into_iter().filter_map(Result::err) {
        assert_eq!(error.sqlstate, "42710", "{error}");
    }
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.settle(&["t"]);
}

#[test]
fn a_kick_that_nobody_serves_times_out() {
    let net = net();
    net.add_sync("tables => 'public.t'");
    net.kick();
    let mut locker = net.on("B");
    locker.exec("BEGIN; LOCK t");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    let error = net.control().expect_error("SELECT bucardo.kick('s', '300ms')", "57014");
    assert!(error.full().contains('s'));
    locker.exec("COMMIT");
    net.settle(&["t"]);
}
