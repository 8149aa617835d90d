"""What capture costs the application: the same statements without it, with the native trigger, with the plain SQL one, and while
PostgreSQL's logical decoding reads along. No run takes place meanwhile: the masters are stopped."""

import itertools
import os

from common import ROW, cpu_of, measured, orders
from opponents import Decoder
from turns import Turns

DATABASES = ("none", "native", "plain", "decoded")
# Triggers that do nothing, which tell what the server asks for having one at all: one of the native function, which looks for
# its segments in vain, and one in PL/pgSQL.
TABLES = "REFERENCING OLD TABLE AS o NEW TABLE AS n FOR EACH STATEMENT"
EMPTY = {
    "by_statement": f"{TABLES} EXECUTE FUNCTION bucardo.capture('seg0_active none none none id')",
    "by_plpgsql": f"{TABLES} EXECUTE FUNCTION nothing()",
}
NAMES = {
    "none": "no capture",
    "again": "no capture, another database",
    "native": "native",
    "plain": "plain SQL",
    "decoded": "logical decoding",
    "by_statement": "an empty native trigger by statement",
    "by_plpgsql": "an empty PL/pgSQL trigger by statement",
    "inserts": "a PL/pgSQL trigger that only inserts",
    "guarded": "the same with its owner's rights and path",
    "original": "triggers like the original's",
}
# The least that a plain trigger can do to write down a key; and what a function must have that writes where the application
# may not, so that nobody else's objects are called with the rights of its owner.
ONLY_INSERTS = """
CREATE SCHEMA least;
CREATE TABLE least.written (k int, xid bigint NOT NULL, at timestamptz NOT NULL);
CREATE FUNCTION least.inserts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO least.written SELECT n.id, txid_current(), clock_timestamp() FROM n;
    RETURN NULL;
END $$;
CREATE TRIGGER inserts AFTER UPDATE ON t REFERENCING OLD TABLE AS o NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION least.inserts();
"""
GUARDED = ONLY_INSERTS + "ALTER FUNCTION least.inserts() SECURITY DEFINER SET search_path = pg_catalog, pg_temp;"
# What the original Bucardo puts on a table and beside it, as far as an UPDATE meets it.
LIKE_THE_ORIGINAL = """
CREATE SCHEMA original;
CREATE TABLE original.delta (id int, txntime timestamptz NOT NULL DEFAULT now());
CREATE INDEX ON original.delta (txntime);
CREATE INDEX ON original.delta (id);
CREATE FUNCTION original.delta() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO original.delta VALUES (OLD.id);
    IF OLD.id <> NEW.id THEN
        INSERT INTO original.delta VALUES (NEW.id);
    END IF;
    RETURN NULL;
END $$;
CREATE FUNCTION original.kick() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'NOTIFY bucardo, ''kick_sync_s'''; RETURN NULL; END $$;
CREATE TRIGGER delta AFTER UPDATE ON t FOR EACH ROW EXECUTE FUNCTION original.delta();
CREATE TRIGGER kick AFTER UPDATE ON t FOR EACH STATEMENT EXECUTE FUNCTION original.kick();
"""


def captured_databases(bench):
    """Databases with the same table: two of them captured, one natively, one by plain SQL because the extension is not there."""
    bench.databases(*DATABASES, "sink")
    bench.databases("control", table=None)
    native = bench.sync("native", ("A", bench.one, "native"), [("B", bench.one, "sink")])
    control = bench.sync("control", ("A", bench.one, "plain"), [("B", bench.one, "sink")])
    for conn in (native, control):
        conn.run("SELECT bucardo.stop()")
        conn.close()


def empty_triggers(bench):
    """Databases with the same table and a trigger that does nothing."""
    bench.databases(*EMPTY)
    for db, trigger in EMPTY.items():
        bench.on(bench.one, db, "CREATE EXTENSION bucardo; SELECT bucardo.stop()")
        bench.on(bench.one, db, "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
        bench.on(bench.one, db, f"CREATE TRIGGER empty AFTER UPDATE ON t {trigger}")


def drop_captured(bench):
    bench.drop("control", *DATABASES, "sink")


def capture_statements(bench):
    """What one statement of many rows costs with capture, against the same without."""
    captured_databases(bench)
    empty_triggers(bench)
    # How much two contenders differ that are alike.
    bench.databases("again")
    conns = {db: bench.one.connect(db) for db in (*DATABASES, "again", *EMPTY)}
    inserts, updates = bench.rows(1_000_000), bench.rows(200_000)
    walls = {(kind, db): [] for kind in ("insert", "update") for db in conns}
    cpus = {key: [] for key in walls}

    def once(kind, db, sql):
        wall, cpu = measured(lambda: conns[db].run(sql), lambda: cpu_of(conns[db].pid))
        walls[kind, db].append(wall)
        cpus[kind, db].append(cpu)

    for order in orders(tuple(conns), bench.repeat):
        for db in order:
            decoder = Decoder(bench, bench.one, db) if db == "decoded" else None
            conns[db].run("TRUNCATE t")
            if db in ("native", "plain"):
                conns[db].run("SELECT bucardo.capture_purge(0)")
            conns[db].run("CHECKPOINT")
            once("insert", db, f"INSERT INTO t {ROW} FROM generate_series(1, {inserts}) g")
            conns[db].run("VACUUM t")
            conns[db].run("CHECKPOINT")
            once("update", db, f"UPDATE t SET a = a + 1 WHERE id <= {updates}")
            if decoder:
                decoder.close()
    goals = {"insert": {"native": "<= 1.22 x", "plain": "<= 1.6 x"}, "update": {"native": "<= 1.18 x", "plain": "<= 1.35 x"}}
    for kind, count in (("insert", inserts), ("update", updates)):
        # The empty triggers are for updates only.
        for db in conns if kind == "update" else (*DATABASES, "again"):
            work, goal = f"capture of one {kind} of {count:,}", goals[kind].get(db)
            against = (None, None) if db == "none" else (walls[kind, "none"], cpus[kind, "none"])
            bench.report(work, NAMES[db], walls[kind, db], "s", against[0], goal)
            bench.report(f"{work}: CPU", NAMES[db], cpus[kind, db], "s", against[1], ours=db in ("native", "plain"))
    for conn in conns.values():
        conn.close()
    drop_captured(bench)
    bench.drop(*EMPTY, "again")


def capture_transactions(bench):
    """One-row transactions by pgbench: their rate and their processor time against the same without capture."""
    captured_databases(bench)
    empty_triggers(bench)
    plain = {"inserts": ONLY_INSERTS, "guarded": GUARDED, "original": LIKE_THE_ORIGINAL}
    bench.databases("again", *plain)
    for db, sql in plain.items():
        bench.on(bench.one, db, sql)
    contenders = (*DATABASES, "again", *EMPTY, *plain)
    rows = bench.rows(100_000)
    script = os.path.join(bench.place.folder, "update.pgbench")
    with open(script, "w", encoding="ascii") as file:
        file.write(f"\\set id random(1, {rows})\nUPDATE t SET a = a + 1 WHERE id = :id;\n")
    os.chmod(script, 0o644)
    for db in contenders:
        bench.on(bench.one, db, f"INSERT INTO t {ROW} FROM generate_series(1, {rows}) g; ALTER TABLE t SET (fillfactor = 50)")
        bench.on(bench.one, db, "VACUUM FULL t")
    # Short turns, and many: what the machine does besides changes from one second to the next.
    full = bench.factor >= 0.01
    rounds, length = (8 * bench.repeat, 0.25) if full else (1, 0.02)
    off, on = {"native": ">= 0.95 x", "plain": ">= 0.88 x"}, {"native": ">= 0.97 x", "plain": ">= 0.93 x"}
    for protocol in ("simple", "prepared"):
        for (commit, goals), clients in itertools.product((("off", off), ("on", on)), (2, 16)):
            rates, costs = {db: [] for db in contenders}, {db: [] for db in contenders}
            for db in contenders:
                bench.on(bench.one, db, "VACUUM t")
            Decoder(bench, bench.one, "decoded").close()
            bench.checkpoint()
            turns = Turns(bench, contenders, ["-f", script, "-c", str(clients), "-j", "2", "-M", protocol], commit)
            try:
                for db in contenders:
                    turns.turn(db, 2 * length)
                for order in orders(contenders, rounds):
                    for db in order:
                        decoder = Decoder(bench, bench.one, db) if db == "decoded" else None
                        tps, micros = turns.turn(db, length)
                        if decoder:
                            decoder.close()
                        rates[db].append(tps)
                        costs[db].append(micros)
            finally:
                turns.close()
            work = f"one-row commits, {protocol}, {clients} clients, sync {commit}"
            for db in contenders:
                against = (None, None) if db == "none" else (rates["none"], costs["none"])
                bench.report(work, NAMES[db], rates[db], "tps", against[0], goals.get(db))
                bench.report(f"{work}: CPU", NAMES[db], costs[db], "us", against[1], ours=db in goals)
    drop_captured(bench)
    bench.drop(*EMPTY, "again", *plain)
