//! Members with several hosts, of which some are silent or are not the one that is meant, and names that nobody can say
//! an address for: each host has a time of its own, and the master waits for none of them.

use std::process::Command;

use crate::cluster::{Cluster, Stop};
use crate::life::{MASTER, Silent};
use crate::net::{Capture, Net};
use crate::wait::wait_until;

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

#[test]
fn a_silent_host_and_a_read_only_one_are_passed_by() {
    let net = Net::apart(Capture::Plain, 1).with_table(T, "public.t");
    let standby = Cluster::start("standby", "");
    ["a", "b"].iter().for_each(|db| standby.create_database(db, ""));
    standby.configure("default_transaction_read_only = on");
    standby.restart(Stop::Fast);
    let silent = Silent::start();
    let mut control = net.control();
    for name in ["A", "B"] {
        let (server, db) = (net.server_of(name), name.to_lowercase());
        let conninfo = format!(
            "host=127.0.0.1,127.0.0.1,127.0.0.1 port={},{},{} dbname={db} user=postgres target_session_attrs=read-write tcp_user_timeout=0",
            silent.port,
            standby.port(),
            server.port()
        );
        // The waiting opening …
        control.exec(&format!("SELECT bucardo.add_db('{name}_too', '{conninfo}')"));
        control.exec(&format!("SELECT bucardo.update_db('{name}', conninfo => '{conninfo}')"));
    }
    // … and the master's, which alone hears of the change.
    control.exec(MASTER);
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.wait_equal("t", &["B"]);
    // With none that is meant all are told.
    let conninfo = format!(
        "host=127.0.0.1,127.0.0.1 port={},{} dbname=postgres user=postgres target_session_attrs=read-write connect_timeout=2",
        silent.port,
        standby.port()
    );
    let error = control.expect_error(&format!("SELECT bucardo.add_db('none', '{conninfo}')"), "08001").full();
    assert!(error.contains("timeout expired") && error.contains("read-only"), "{error}");
}

#[test]
fn the_activity_tells_which_member_is_waited_for() {
    let net = Net::apart(Capture::Plain, 1).with_table(T, "public.t");
    net.server_of("B").freeze();
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    let mut control = net.control();
    wait_until("the kid to wait for B", || {
        control.number("SELECT count(*) FROM bucardo.activity WHERE phase = 'connect' AND db = 'B'") == 1
    });
    net.server_of("B").thaw();
    net.settle(&["t"]);
}

/// A resolver that never answers for the names below .hangs.test.
const RESOLVER: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <string.h>
#include <unistd.h>
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) = dlsym(RTLD_NEXT, "getaddrinfo");
    while (node && strstr(node, ".hangs.test")) pause();
    return real(node, service, hints, found);
}
"#;

#[test]
fn a_resolver_that_hangs_does_not_hold_the_master() {
    let net = Net::together_with(Capture::Native, 1, "bucardo.connect_timeout = '600s'").with_table(T, "public.t");
    let server = &net.servers[0];
    let source = server.folder().join("resolver.c");
    std::fs::write(&source, RESOLVER).unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-o"]).arg(server.folder().join("preload.so")).arg(&source).arg("-ldl");
    assert!(cc.status().expect("there is a C compiler").success());
    server.restart(Stop::Fast);
    let mut control = net.control();
    control.exec("SELECT bucardo.add_db('Z', 'host=db.hangs.test dbname=postgres', check_connection => false)");
    // A new master asks every member what it captures.
    control.exec(MASTER);
    for id in 1..=3 {
        net.on("A").exec(&format!("INSERT INTO t VALUES ({id}, 'x')"));
        net.kick();
    }
    net.assert_equal("t");
    let late = "SELECT bucardo.add_db('late', 'host=db.hangs.test dbname=postgres connect_timeout=2')";
    let error = control.expect_error(late, "08001").full();
    assert!(error.contains("could not translate host name \"db.hangs.test\" to address in time"), "{error}");
    // A name that the resolver knows is one with all its addresses.
    let conninfo = format!("host=localhost port={} dbname=postgres user=postgres", server.port());
    control.exec(&format!("SELECT bucardo.add_db('local', '{conninfo}')"));
    let error = control.expect_error("SELECT bucardo.add_db('no', 'host=nobody.invalid')", "08001").full();
    assert!(error.contains("could not translate host name \"nobody.invalid\" to address: "), "{error}");
    drop(control);
    server.begin_stop(Stop::Fast);
    server.await_stop();
    server.launch();
    wait_until("the server to be there", || server.try_connect("postgres").is_ok());
}
