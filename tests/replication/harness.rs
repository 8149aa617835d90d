//! The harness itself, on plain servers: if these fail, no other failure means anything.

use crate::cluster::{Cluster, Stop};
use crate::proxy::Proxy;
use crate::wire::Conn;

#[test]
fn clusters_start_stop_and_keep_their_data() {
    let one = Cluster::start("one", "");
    let two = Cluster::start("two", "");
    assert_ne!(one.port(), two.port());
    one.sql("postgres", "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2)");
    one.restart(Stop::Fast);
    one.restart(Stop::Immediate);
    assert_eq!(one.connect("postgres").number("SELECT count(*) FROM t"), 2);
    assert_eq!(one.crash_restarts(), 0);
    assert!(two.connect("postgres").expect_error("SELECT 1 FROM t", "42P01").message.contains('t'));
}

#[test]
fn an_open_transaction_stays_open_and_blocked_statements_are_answered_later() {
    let one = Cluster::start("one", "");
    let (mut writer, mut waiter) = (one.connect("postgres"), one.connect("postgres"));
    writer.exec("CREATE TABLE t (id int PRIMARY KEY, v text)");
    writer.copy_in("COPY t FROM STDIN", "1\tone\n2\t\\N\n");
    writer.exec("BEGIN; UPDATE t SET v = 'new' WHERE id = 1");
    waiter.send("UPDATE t SET v = v || '!' WHERE id = 1 RETURNING v").unwrap();
    writer.exec("COMMIT");
    assert_eq!(waiter.finish().unwrap().rows, vec![vec![Some("new!".to_owned())]]);
    assert_eq!(writer.query("SELECT v FROM t WHERE id = 2"), vec![vec![None]]);
}

#[test]
fn errors_keep_their_fields_and_notices_arrive() {
    let one = Cluster::start("one", "");
    let mut conn = one.connect("postgres");
    let sql = "DO $$ BEGIN RAISE EXCEPTION 'm' USING errcode = '22023', detail = 'd', hint = 'h'; END $$";
    let error = conn.expect_error(sql, "22023");
    assert_eq!((error.message.as_str(), error.detail.as_str(), error.hint.as_str()), ("m", "d", "h"));
    let reply = conn.try_query("DO $$ BEGIN RAISE WARNING 'careful'; END $$").unwrap();
    assert_eq!(reply.notices[0].message, "careful");
    let mut victim = one.connect("postgres");
    conn.exec(&format!("SELECT pg_terminate_backend({}, 60000)", victim.pid));
    assert_eq!(victim.expect_error("SELECT 1", "57P01").severity, "FATAL");
}

#[test]
fn a_network_is_cut_stalled_and_healed() {
    let one = Cluster::start("one", "");
    let proxy = Proxy::to(&one);
    let open = || Conn::open(proxy.address().0, proxy.address().1, "postgres", "postgres");
    let mut conn = open().unwrap();
    assert_eq!(conn.number("SELECT 1"), 1);
    proxy.cut();
    conn.expect_error("SELECT 1", "08006");
    assert!(open().is_err(), "a connection through a network that is cut");
    proxy.heal();
    let mut conn = open().unwrap();
    proxy.stall();
    conn.send("SELECT pg_sleep(0)").unwrap();
    proxy.heal();
    assert_eq!(conn.finish().unwrap().rows.len(), 1);
    assert_eq!(one.connect("postgres").number("SELECT 1"), 1, "the other way is open all the time");
}
