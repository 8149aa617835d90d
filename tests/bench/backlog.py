"""Backlogs: how long a run takes over many rows, against COPY of the same rows and against logical replication; to four targets;
from two sources; and the first copy of a table."""

from common import ROW, WIDTH, Skipped, kick, measured, orders, row_of, serve, timed, until
from opponents import Subscription

DETAILS = "SELECT details FROM bucardo.syncrun WHERE upserts + conflicts > 0 ORDER BY run DESC LIMIT 1"


class Turn:
    """One contender's figures: seconds on the wall and of both servers' processors, by kind."""

    def __init__(self, bench):
        self.bench = bench
        self.walls, self.cpus = {}, {}

    def take(self, kind, action):
        wall, cpu = measured(action, lambda: self.bench.one.cpu() + self.bench.two.cpu())
        self.walls.setdefault(kind, []).append(wall)
        self.cpus.setdefault(kind, []).append(cpu)


def kinds(bench, row=ROW):
    inserts, updates = bench.rows(1_000_000), bench.rows(200_000)
    return (
        ("insert", inserts, f"INSERT INTO t {row} FROM generate_series(1, {inserts}) g", "true"),
        ("update", updates, f"UPDATE t SET a = a + 1 WHERE id <= {updates}", f"id <= {updates}"),
    )


def ours(bench, row, control, source, target, turn, details):
    """Our turn: both backlogs, beginning with an empty table."""
    source.run("TRUNCATE t")
    kick(control)
    for kind, _, sql, _ in kinds(bench, row):
        control.run("SELECT bucardo.pause('s')")
        source.run(sql)
        bench.checkpoint()
        turn.take(kind, lambda: serve(control))
        details[kind] = control.one(DETAILS)
        bench.equal(source, [target])


def theirs(bench, row, subscription, turn):
    """Logical replication's turn. It is not held back meanwhile, because a subscription that is enabled anew starts seconds
    later: its time begins when the source has committed, before which it applies nothing."""
    source, target = subscription.source, subscription.target
    for conn in (source, target):
        conn.run("TRUNCATE t")
    for kind, _, sql, _ in kinds(bench, row):
        bench.checkpoint()
        source.run(sql)
        last = source.one("SELECT max(id) FROM t" if kind == "insert" else "SELECT 1")
        wanted = source.one(f"SELECT a FROM t WHERE id = {last}")
        there = f"SELECT 1 FROM t WHERE id = {last} AND a = {wanted}"
        turn.take(kind, lambda: until(lambda: target.rows(there)))
        bench.equal(source, [target])


def copied(bench, row, turn):
    """COPY's turn, of the rows that the source has."""
    for kind, _, _, where in kinds(bench, row):
        bench.on(bench.two, "copied", "TRUNCATE t")
        bench.checkpoint()
        select = f"SELECT * FROM t WHERE {where}"
        turn.take(kind, lambda: bench.place.copy(bench.one, "source", select, bench.two, "copied", "t"))


def backlog(bench):
    """A backlog until both sides are equal, against binary COPY of the same rows by a pipe."""
    one_backlog(bench, ROW, "")


def backlog_wide(bench):
    """The same of rows of 600 bytes, for which COPY takes as long as where the goals were set."""
    one_backlog(bench, row_of(WIDTH or 600), f" of {WIDTH or 600} bytes")


def one_backlog(bench, row, wide):
    bench.databases("source", "logical_source")
    bench.databases("target", "copied", "updated", "logical", server=bench.two)
    control = bench.sync("source", ("A", bench.one, "source"), [("B", bench.two, "target")])
    source, target, updated = bench.one.connect("source"), bench.two.connect("target"), bench.two.connect("updated")
    subscription = Subscription(bench, bench.one, "logical_source", bench.two, "logical")
    mine, native, copy, limits, details = Turn(bench), Turn(bench), Turn(bench), {name: [] for name in LIMITS}, {}
    contenders = {
        "bucardo": lambda: ours(bench, row, control, source, target, mine, details),
        "native logical": lambda: theirs(bench, row, subscription, native),
        "COPY": lambda: copied(bench, row, copy),
        "limits": lambda: [limits[name].append(least(bench, updated, *kinds(bench, row)[1][2:])) for name, least in LIMITS.items()],
    }
    # What the others copy is there from the start.
    source.run(kinds(bench, row)[0][2])
    kick(control)
    for order in orders(contenders, bench.repeat):
        for name in order:
            contenders[name]()
    for kind, count, _, _ in kinds(bench, row):
        work = f"backlog of {count:,} {kind}s{wide}"
        bench.report(work, "COPY", copy.walls[kind], "s")
        bench.report(work, "bucardo", mine.walls[kind], "s", copy.walls[kind], "<= 1.5 x")
        bench.report(work, "native logical", native.walls[kind], "s", copy.walls[kind])
        if kind == "update":
            for name, walls in limits.items():
                bench.report(work, name, walls, "s", copy.walls[kind])
        for name, turn in (("COPY", copy), ("bucardo", mine), ("native logical", native)):
            bench.report(f"{work}: CPU", name, turn.cpus[kind], "s", None if turn is copy else copy.cpus[kind], ours=turn is mine)
        print(f"      {details[kind]}")
    subscription.close()
    for conn in (control, source, target, updated):
        conn.close()
    bench.drop("source", "target", "copied", "updated", "logical", "logical_source")


def as_before(bench, conn):
    """A table as receivers have it when the updates come: full pages, which somebody has read since."""
    conn.run("DROP TABLE IF EXISTS new; TRUNCATE t")
    bench.place.copy(bench.one, "source", "SELECT * FROM t", bench.two, "updated", "t")
    conn.run("SELECT count(*) FROM t")
    bench.checkpoint()


def update_alone(bench, conn, update, _where):
    """The same UPDATE typed in there: nothing is transported, and only one column is new."""
    as_before(bench, conn)
    return timed(lambda: conn.run(update))


def update_from(bench, conn, _update, where):
    """The rows are there already, in a table, and the UPDATE takes them from it."""
    as_before(bench, conn)
    conn.run(f"CREATE UNLOGGED TABLE new AS SELECT id, a + 1 AS a, v FROM t WHERE {where}; ANALYZE new; CHECKPOINT")
    return timed(lambda: conn.run("UPDATE t SET a = new.a, v = new.v FROM new WHERE t.id = new.id"))


def stored_anew(bench, conn, _update, where):
    """The rows deleted there, and copied in once more, without a look at what was there."""
    as_before(bench, conn)

    def anew():
        conn.run(f"DELETE FROM t WHERE {where}")
        bench.place.copy(bench.one, "source", f"SELECT * FROM t WHERE {where}", bench.two, "updated", "t")

    return timed(anew)


# What a receiver cannot do without, whoever brings the rows.
LIMITS = {
    "the UPDATE alone, there": update_alone,
    "UPDATE there, from a table": update_from,
    "DELETE there, then COPY": stored_anew,
}


def means_of_two(figures):
    """Of each repetition, which has every kind of figure twice, the means."""
    return [tuple(sum(pair) / 2 for pair in zip(*both)) for both in zip(figures[::2], figures[1::2])]


def fan_out(bench):
    """The work of the source for four targets, against that for one: the processor time of its whole server. Both syncs serve the
    same changes, one after the other. The first of them finds the rows as they were written and takes a fifth more, so that each
    repetition has both orders, and their mean counts."""
    targets = [("B", "target1"), ("C", "target2"), ("D", "target3"), ("E", "target4"), ("F", "target5")]
    groups = {"one": targets[:1], "four": targets[1:]}
    bench.databases("control", table=None)
    bench.databases("source", server=bench.two)
    bench.databases(*(db for _, db in targets))
    control = bench.sync("control", ("A", bench.two, "source"), [], name=None)
    for sync, members in groups.items():
        for name, db in members:
            control.run(f"SELECT bucardo.add_db('{name}', $${bench.one.conninfo(db)}$$)")
        dbs = ",".join(["A:source", *(f"{name}:target" for name, _ in members)])
        control.run(f"SELECT bucardo.add_sync('{sync}', dbs => '{dbs}', tables => 'all')")
    source = bench.two.connect("source")
    others = [bench.one.connect(db) for _, db in targets]
    figures = {}
    for order in [order for _ in range(bench.repeat) for order in (tuple(groups), tuple(groups)[::-1])]:
        source.run("TRUNCATE t")
        for sync in order:
            kick(control, sync)
        for kind, rows, sql, _ in kinds(bench):
            for sync in order:
                control.run(f"SELECT bucardo.pause('{sync}')")
            source.run(sql)
            bench.checkpoint()
            for sync in order:
                control.run(f"SELECT bucardo.resume('{sync}')")
                wall, cpu = measured(lambda sync=sync: kick(control, sync), bench.two.cpu)
                figures.setdefault((kind, rows, sync), []).append((wall, cpu))
            bench.equal(source, others)
    for conn in (control, source, *others):
        conn.close()
    bench.drop("control", "source", *(db for _, db in targets))
    for kind, rows, _, _ in kinds(bench):
        work = f"{rows:,} {kind}s to 1 and to 4"
        alone, four = (means_of_two(figures[kind, rows, sync]) for sync in groups)
        bench.report(work, "CPU of the source, one target", [cpu for _, cpu in alone], "s")
        bench.report(work, "CPU of the source, four targets", [cpu for _, cpu in four], "s", [cpu for _, cpu in alone], "<= 1.2 x")
        bench.report(work, "wall, four targets", [wall for wall, _ in four], "s", [wall for wall, _ in alone], ours=True)


def two_sources(bench):
    """Two sources: 20,000 disjoint updates on each and 2,000 rows that both changed, until both are equal."""
    alone, both = bench.rows(20_000), bench.rows(2_000, 10)
    total = 2 * alone + both
    bench.databases("source")
    bench.databases("other", server=bench.two)
    work, times = f"two sources, 2 x {alone:,} updates, {both:,} conflicts", []
    for server, db in ((bench.one, "source"), (bench.two, "other")):
        bench.on(server, db, f"INSERT INTO t {ROW} FROM generate_series(1, {total}) g")
    try:
        control = bench.sync_of("source", [("A", bench.one, "source", "source"), ("B", bench.two, "other", "source")])
    except Skipped as skipped:
        bench.results.skip(work, skipped)
        bench.drop("source", "other")
        return
    a, b = bench.one.connect("source"), bench.two.connect("other")
    for _ in range(bench.repeat + 1):
        control.run("SELECT bucardo.pause('s')")
        a.run(f"UPDATE t SET a = a + 1 WHERE id <= {alone} OR id > {2 * alone}")
        b.run(f"UPDATE t SET a = a + 2 WHERE id > {alone}")
        times.append(timed(lambda: serve(control)))
        bench.equal(a, [b])
    # The first run prepares what later ones find.
    bench.report(work, "bucardo", times[1:], "s", goal="<= 0.30 s")
    for conn in (control, a, b):
        conn.close()
    bench.drop("source", "other")


def storm(bench):
    """The same number of updates on each of two sources: of rows of its own, and all of the same rows."""
    count = bench.rows(20_000)
    bench.databases("source")
    bench.databases("other", server=bench.two)
    for server, db in ((bench.one, "source"), (bench.two, "other")):
        bench.on(server, db, f"INSERT INTO t {ROW} FROM generate_series(1, {2 * count}) g")
    control = bench.sync_of("source", [("A", bench.one, "source", "source"), ("B", bench.two, "other", "source")])
    a, b = bench.one.connect("source"), bench.two.connect("other")
    turn = Turn(bench)
    for turns in range(bench.repeat + 1):
        for kind, where in (("disjoint", f"id > {count}"), ("contended", f"id <= {count}")):
            control.run("SELECT bucardo.pause('s')")
            a.run(f"UPDATE t SET a = a + 1 WHERE id <= {count}")
            b.run(f"UPDATE t SET a = a + 2 WHERE {where}")
            bench.checkpoint()
            # The first runs prepare what later ones find.
            if turns == 0:
                serve(control)
            else:
                turn.take(kind, lambda: serve(control))
            bench.equal(a, [b])
    work = f"two sources, 2 x {count:,} updates"
    for clock, of in (("", turn.walls), (": CPU", turn.cpus)):
        bench.report(work + clock, "bucardo, disjoint", of["disjoint"], "s", ours=True)
        bench.report(work + clock, "bucardo, all in conflict", of["contended"], "s", of["disjoint"], None if clock else "<= 1.33 x", ours=True)
    for conn in (control, a, b):
        conn.close()
    bench.drop("source", "other")


def activate(control):
    control.run("SELECT bucardo.activate('s')")
    kick(control)


# Neither COPY nor a subscription analyzes the table.
COPIED_ONCE = ", onetimecopy => 1, analyze_after_copy => false, status => 'inactive'"


def initial_copy(bench):
    """The first copy of a table of 5,000,000 rows of about 100 bytes, against binary COPY and the initial copy of a subscription."""
    count = bench.rows(5_000_000)
    table = "CREATE TABLE t (id int PRIMARY KEY, a int NOT NULL, v text)"
    bench.databases("source", table=table)
    bench.databases("copied", "subscribed", server=bench.two, table=table)
    work, walls = f"initial copy of {count:,} rows", {"bucardo": [], "COPY": [], "native logical": []}
    bench.on(bench.one, "source", f"INSERT INTO t SELECT g, g % 1000, repeat(md5(g::text), 2) FROM generate_series(1, {count}) g")
    source = bench.one.connect("source")

    def ours():
        bench.databases("target", server=bench.two, table=table)
        bench.on(bench.one, "source", "DROP EXTENSION IF EXISTS bucardo CASCADE")
        bench.on(bench.two, "postgres", "CHECKPOINT")
        control = bench.sync("source", ("A", bench.one, "source"), [("B", bench.two, "target")], options=COPIED_ONCE)
        seconds = timed(lambda: activate(control))
        target = bench.two.connect("target")
        bench.equal(source, [target])
        control.close()
        target.close()
        return seconds

    def limit():
        bench.on(bench.two, "copied", "TRUNCATE t")
        bench.on(bench.two, "copied", "CHECKPOINT")
        return bench.place.copy(bench.one, "source", "SELECT * FROM t", bench.two, "copied", "t")

    contenders = {"bucardo": ours, "COPY": limit, "native logical": lambda: initial_subscription(bench)}
    try:
        for order in orders(contenders, bench.repeat):
            for name in order:
                walls[name].append(contenders[name]())
        bench.report(work, "COPY", walls["COPY"], "s")
        bench.report(work, "bucardo", walls["bucardo"], "s", walls["COPY"], "<= 1.05 x")
        bench.report(work, "native logical", walls["native logical"], "s", walls["COPY"])
    except Skipped as skipped:
        bench.results.skip(work, skipped)
    source.close()
    bench.drop("source", "target", "copied", "subscribed")


def initial_subscription(bench):
    """Seconds that a new subscription takes to copy the table."""
    there = bench.two.connect("subscribed")
    there.run("TRUNCATE t")
    there.run("CHECKPOINT")
    bench.on(bench.one, "source", "DROP PUBLICATION IF EXISTS first; CREATE PUBLICATION first FOR TABLE t")

    def copied():
        there.run(f"CREATE SUBSCRIPTION first CONNECTION '{bench.one.conninfo('source')}' PUBLICATION first")
        until(lambda: there.one("SELECT bool_and(srsubstate IN ('r', 's')) FROM pg_subscription_rel") == "t")

    seconds = timed(copied)
    there.run("DROP SUBSCRIPTION first")
    there.close()
    bench.on(bench.one, "source", "DROP PUBLICATION first")
    return seconds
