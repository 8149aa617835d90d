"""How the cost grows with tables and syncs: a sync of 1,000 tables of which one changed, and 100 syncs on four kids."""

import time

from common import kick, timed, until

RUNS = "SELECT extract(epoch FROM ended - started) * 1000 FROM bucardo.syncrun WHERE state = 'good' ORDER BY run DESC LIMIT {}"


def make_tables(bench, server, db, count):
    """Tables t1, t2, … in transactions of a hundred, because each takes locks."""
    conn = server.connect(db)
    for first in range(1, count + 1, 100):
        names = range(first, min(first + 100, count + 1))
        conn.run("".join(f"CREATE TABLE t{n} (id int PRIMARY KEY, a int NOT NULL, v text);" for n in names))
    conn.close()


def run_times(bench, count, samples):
    """The durations of runs of a sync of `count` tables, one of which had one row inserted."""
    for server, db in ((bench.one, "source"), (bench.two, "target")):
        server.create_database(db)
        make_tables(bench, server, db, count)
    control = bench.sync("source", ("A", bench.one, "source"), [("B", bench.two, "target")])
    source, target = bench.one.connect("source"), bench.two.connect("target")
    waits = []
    for n in range(samples + 5):
        source.run(f"INSERT INTO t1 VALUES ({n}, 0, 'x')")
        waits.append(timed(lambda: until(lambda: target.rows(f"SELECT 1 FROM t1 WHERE id = {n}"))) * 1000)
        kick(control)
        time.sleep(0.02)
    bench.equal(source, [target], "t1")
    values = [float(row[0]) for row in control.rows(RUNS.format(samples))]
    for conn in (control, source, target):
        conn.close()
    bench.drop("source", "target")
    return values, waits[5:]


def thousand_tables(bench):
    """A sync of 1,000 tables, one changed, against a sync of one table: the time of a run."""
    count, samples = bench.rows(1_000, 5), bench.rows(50, 5)
    (one, one_waits), (many, many_waits) = run_times(bench, 1, samples), run_times(bench, count, samples)
    work = f"one of {count:,} tables changed"
    bench.report(work, "a run, 1 table", one, "ms")
    bench.report(work, f"a run, {count:,} tables", many, "ms", one, "<= 2 x")
    bench.report(work, "commit to visible, 1 table", one_waits, "ms")
    bench.report(work, f"commit to visible, {count:,} tables", many_waits, "ms", one_waits, ours=True)


def make_syncs(bench, syncs, tables, source=None):
    """A control database `control` with syncs s1, s2, … of ten tables each."""
    source = source or bench.one
    bench.databases("control", table=None)
    for server, db in ((source, "source"), (bench.two, "target")):
        server.create_database(db)
        make_tables(bench, server, db, syncs * tables)
    control = bench.one.connect("control")
    control.run("CREATE EXTENSION bucardo")
    control.run(f"SELECT bucardo.add_db('A', $${source.conninfo('source')}$$), bucardo.add_db('B', $${bench.two.conninfo('target')}$$)")
    for s in range(syncs):
        names = ", ".join(f"public.t{s * tables + n + 1}" for n in range(tables))
        control.run(f"SELECT bucardo.add_sync('s{s + 1}', dbs => 'A:source, B:target', tables => '{names}')")
    return control


SERVED = """SELECT extract(epoch FROM min(r.ended) - k.at) * 1000
FROM bucardo.sync s CROSS JOIN (SELECT '{at}'::timestamptz AS at) k LEFT JOIN bucardo.syncrun r ON r.sync = s.name AND r.started >= k.at
GROUP BY s.name, k.at"""


def hundred_syncs(bench):
    """100 syncs of ten tables on four kids: all kicked at once, and each by itself at rest."""
    syncs = bench.rows(100, 4)
    control = make_syncs(bench, syncs, 10)
    bench.one.setting("bucardo.max_kids", 4)
    source, target = bench.one.connect("source"), bench.two.connect("target")
    for s in range(syncs):
        kick(control, f"s{s + 1}")
    at = control.one("SELECT clock_timestamp()")
    source.run("".join(f"INSERT INTO t{s * 10 + 1} VALUES (1, 0, 'x');" for s in range(syncs)))
    for s in range(syncs):
        control.run(f"SELECT bucardo.kick('s{s + 1}')")
    until(lambda: all(row[0] for row in control.rows(SERVED.format(at=at))), pause=0.02)
    waits = [float(row[0]) for row in control.rows(SERVED.format(at=at))]
    for s in range(syncs):
        bench.equal(source, [target], f"t{s * 10 + 1}")
    fresh = [timed(lambda: kick(control, f"s{s + 1}")) * 1000 for s in range(syncs)]
    work = f"{syncs} syncs x 10 tables on 4 kids"
    bench.report(work, "all at once: kick to end of run", waits, "ms", ours=True)
    bench.report(work, "all at once: the last", [max(waits)], "ms", ours=True)
    bench.report(work, "a fresh kick", fresh, "ms", goal="<= 100 ms")
    for conn in (control, source, target):
        conn.close()
    bench.drop("control", "source", "target")
