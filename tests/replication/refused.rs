//! A row that a member refuses among many: the others go on, and the status names the row by its key, and shows no more of it.

use crate::multi::Plan;
use crate::net::{Capture, Net};

const T: &str = "CREATE TABLE t (secret text, id int, region text, PRIMARY KEY (region, id))";
const ROWS: &str = "INSERT INTO t SELECT 'hidden ' || g, g, 'north' FROM generate_series(1, 3000) g";
const CHECK: &str = "ALTER TABLE t ADD CHECK (secret NOT LIKE 'hidden 2345%')";
const TRIGGER: &str = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
     $$BEGIN IF NEW.id = 2345 AND NEW.secret LIKE 'hidden%' THEN RAISE 'not this one'; END IF; RETURN NEW; END$$; \
     CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION refuse(); ALTER TABLE t ENABLE ALWAYS TRIGGER refuse";

fn says_which(error: &str) {
    for part in ["\"B\"", "public.t", "(region, id)=(north, 2345)"] {
        assert!(error.contains(part), "no {part} in {error}");
    }
    assert!(!error.contains("hidden"), "{error}");
}

/// Rows that are all new, which go straight into the table, and changed ones, which are staged.
#[test]
fn one_of_many_rows_is_named() {
    for rule in [CHECK, TRIGGER] {
        let net = Net::together(Capture::Native, 2).with_table(T, "public.t");
        net.on("B").exec(rule);
        net.on("A").exec(ROWS);
        net.wait_equal("t", &["C"]);
        net.wait_state("bad");
        says_which(&net.last_error());
        net.on("A").exec("UPDATE t SET secret = 'known' WHERE id = 2345");
        net.settle(&["t"]);
        net.on("A").exec("UPDATE t SET secret = 'hidden ' || id");
        net.wait_equal("t", &["C"]);
        net.wait_state("bad");
        says_which(&net.last_error());
        net.on("A").exec("DELETE FROM t WHERE id = 2345");
        net.settle(&["t"]);
        net.wait_state("good|empty");
    }
}

#[test]
fn one_of_many_rows_of_two_sources_is_named() {
    let m = Plan::new(2).start().with(T, "tables => 'public.t'");
    m.on("B").exec(TRIGGER);
    m.on("A").exec(ROWS);
    m.try_kick().expect_err("B refuses a row");
    says_which(&m.last_error());
    m.on("A").exec("UPDATE t SET secret = 'known' WHERE id = 2345");
    m.drain_equal(&["t"]);
}

/// A trigger that refuses the statement, whatever rows it is of: no row is blamed.
#[test]
fn no_row_is_named_where_none_is_to_blame() {
    let net = Net::together(Capture::Native, 2).with_table(T, "public.t");
    net.on("B").exec(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'none at all'; END$$; \
         CREATE TRIGGER refuse BEFORE INSERT ON t EXECUTE FUNCTION refuse(); ALTER TABLE t ENABLE ALWAYS TRIGGER refuse",
    );
    net.on("A").exec(ROWS);
    net.wait_equal("t", &["C"]);
    net.wait_state("bad");
    let error = net.last_error();
    assert!(error.contains("public.t: none at all") && !error.contains("(region, id)"), "{error}");
    net.on("B").exec("DROP TRIGGER refuse ON t");
    net.settle(&["t"]);
}
