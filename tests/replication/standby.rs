//! A standby of the control server: nothing works there and nothing can be changed, which it says in words; promoted, it
//! goes on where the primary was.

use crate::cluster::{Cluster, Stop};
use crate::net::{CONTROL, Capture, Net};
use crate::wait::wait_until;

#[test]
fn a_standby_refuses_in_words_and_goes_on_once_it_is_promoted() {
    let net = Net::apart(Capture::Native, 1).with_table("CREATE TABLE t (id int PRIMARY KEY, v text)", "public.t");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.settle(&["t"]);
    let standby = Cluster::copy_of(&net.servers[0], "standby", true);
    let mut conn = standby.connect(CONTROL);
    for call in [
        "start()",
        "stop()",
        "reload()",
        "ping()",
        "kick('s')",
        "kick('s', '1s')",
        "pause('s')",
        "resume('s')",
        "activate('s')",
        "deactivate('s')",
        "add_db('new')",
        "update_db('B', status => 'inactive')",
        "remove_db('B', force => true)",
        "add_dbgroup('g')",
        "update_dbgroup('s', 'A:source')",
        "remove_dbgroup('s', force => true)",
        "add_relgroup('g')",
        "remove_relgroup('s', force => true)",
        "add_table('public.t', 's')",
        "add_all_tables('s', 'A')",
        "update_table('public.t', 's', priority => 1)",
        "remove_table('public.t', 's')",
        "add_sync('new', dbs => 'A,B', tables => 'public.t')",
        "update_sync('s', priority => 1)",
        "remove_sync('s')",
    ] {
        let error = conn.expect_error(&format!("SELECT bucardo.{call}"), "25006");
        assert!(error.hint.contains("pg_promote"), "{call}: {error}");
    }
    assert_eq!(conn.one("SELECT state FROM bucardo.status"), "stopped");
    net.servers[0].stop(Stop::Immediate);
    standby.promote();
    conn.exec("INSERT INTO t VALUES (2, 'y')");
    wait_until("the row from the new primary", || net.on("B").number("SELECT count(*) FROM t") == 2);
    assert_eq!(standby.crash_restarts(), 0);
}
