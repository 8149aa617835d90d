"""What it costs to have it: memory of a kid, processor time and writing at rest, and the space of served deltas."""

import threading
import time

from common import ROW, cpu_of, kick, serve, timed
from many import make_syncs


def anonymous(pid):
    """The anonymous memory of a process in MiB: what it has for itself, without shared buffers."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields["RssAnon"].split()[0]) / 1024


def peak_of_kids(bench, action):
    """The most anonymous memory that a kid had during `action`."""
    watcher = bench.one.connect("source")
    peak, over = [0.0], threading.Event()

    def watch():
        while not over.is_set():
            for (pid,) in watcher.rows("SELECT pid FROM bucardo.activity WHERE kind = 'kid'"):
                try:
                    peak[0] = max(peak[0], anonymous(pid))
                except OSError:
                    pass
            over.wait(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        action()
    finally:
        over.set()
        thread.join()
        watcher.close()
    return peak[0]


def memory(bench):
    """The anonymous memory of the kid while it serves a backlog: it must not grow with it."""
    bench.databases("source")
    bench.databases("target", server=bench.two)
    control = bench.sync("source", ("A", bench.one, "source"), [("B", bench.two, "target")])
    source, target = bench.one.connect("source"), bench.two.connect("target")
    # The goal is 64 MiB, and the default of bucardo.kid_work_mem. Once each: it is the peak of a whole run, which other work on
    # the machine does not change; what would change it is the number of rows.
    for count in (bench.rows(50_000), bench.rows(5_000_000)):
        for change in ("inserted", "updated"):
            control.run("SELECT bucardo.pause('s')")
            if change == "inserted":
                source.run("TRUNCATE t")
                source.run(f"INSERT INTO t {ROW} FROM generate_series(1, {count}) g")
            else:
                source.run("UPDATE t SET a = a + 1")
            peak = peak_of_kids(bench, lambda: serve(control))
            bench.report(f"memory of a kid, {count:,} rows {change}", "bucardo", [peak], "MiB", goal="<= 128 MiB")
            bench.equal(source, [target])
    for conn in (control, source, target):
        conn.close()
    bench.drop("source", "target")


def memory_of_conflicts(bench):
    """The same over what two sources have changed, a tenth of it on both."""
    alone, both = bench.rows(900_000), bench.rows(100_000, 10)
    bench.databases("source")
    bench.databases("other", server=bench.two)
    for server, db in ((bench.one, "source"), (bench.two, "other")):
        bench.on(server, db, f"INSERT INTO t {ROW} FROM generate_series(1, {2 * alone + both}) g")
    control = bench.sync_of("source", [("A", bench.one, "source", "source"), ("B", bench.two, "other", "source")])
    a, b = bench.one.connect("source"), bench.two.connect("other")
    control.run("SELECT bucardo.pause('s')")
    a.run(f"UPDATE t SET a = a + 1 WHERE id <= {alone + both}")
    b.run(f"UPDATE t SET a = a + 2 WHERE id > {alone}")
    bench.checkpoint()
    walls = []
    peak = peak_of_kids(bench, lambda: walls.append(timed(lambda: serve(control))))
    bench.equal(a, [b])
    work = f"two sources, 2 x {alone + both:,} updates, {both:,} conflicts"
    # The default of bucardo.kid_work_mem, and 100 MiB.
    bench.report(f"memory of a kid, {work}", "bucardo", [peak], "MiB", goal="<= 164 MiB")
    bench.report(work, "bucardo", walls, "s", ours=True)
    for conn in (control, a, b):
        conn.close()
    bench.drop("source", "other")


def workers(bench):
    """Our background workers, and the sessions that they have on both servers."""
    ours = [pid for pid, title in bench.one.processes() if "bucardo" in title and "[local]" not in title]
    sessions = []
    for server in (bench.one, bench.two):
        conn = server.connect()
        sql = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'bucardo%' AND backend_type = 'client backend'"
        sessions += [int(row[0]) for row in conn.rows(sql)]
        conn.close()
    return ours, sessions


def positions(bench):
    """The WAL written and the transaction ids taken so far on both servers."""
    found = []
    for server in (bench.one, bench.two):
        conn = server.connect()
        found.append((conn.number("SELECT pg_current_wal_insert_lsn() - '0/0'"), conn.number("SELECT pg_snapshot_xmax(pg_current_snapshot())::text")))
        conn.close()
    return [sum(column) for column in zip(*found)]


def tidy(bench, server):
    """What autovacuum would do, which is off: else whoever first reads what setting up has left prunes it, and writes that."""
    conn = server.connect()
    names = [row[0] for row in conn.rows("SELECT datname FROM pg_database WHERE datallowconn")]
    conn.close()
    for name in names:
        bench.on(server, name, "VACUUM")


def idle(bench):
    """Ten syncs of fifty tables at rest: processor time, WAL and transaction ids; woken by this server, and polled."""
    seconds = bench.seconds(60)
    for kind, server in (("woken", bench.one), ("polled", bench.two)):
        control = make_syncs(bench, 10, bench.rows(50, 2), server)
        for s in range(10):
            kick(control, f"s{s + 1}")
        for each in (bench.one, bench.two):
            each.setting("autovacuum", "off")
            tidy(bench, each)
        bench.checkpoint()
        # Until what was made is purged, compared and written out, and polling has slowed down.
        time.sleep(bench.seconds(25))
        ours, sessions = workers(bench)
        before, cpu = positions(bench), [sum(map(cpu_of, pids)) for pids in (ours, sessions)]
        time.sleep(seconds)
        used = [sum(map(cpu_of, pids)) - was for pids, was in zip((ours, sessions), cpu)]
        wal, xids = [now - was for now, was in zip(positions(bench), before)]
        work = f"idle {seconds} s, 10 syncs, {kind}"
        bench.report(work, f"CPU of {len(ours)} workers", [used[0] / seconds * 100], "%", goal="<= 0.5 %")
        bench.report(work, f"CPU of their {len(sessions)} sessions", [used[1] / seconds * 100], "%", ours=True)
        bench.report(work, "WAL", [wal], "bytes", goal="<= 0 bytes")
        bench.report(work, "transaction ids", [xids], "xids", goal="<= 0 xids")
        for each in (bench.one, bench.two):
            each.setting("autovacuum", "on")
        control.close()
        bench.drop("control", "source", "target")


SEGMENTS = "SELECT coalesce(sum(pg_relation_size(g)), 0) FROM bucardo.capture c, unnest(c.segments) g"


def rounds_of(bench, held, rounds, rows):
    """The seconds of runs of `rows` updates each, with or without a snapshot held on the source; bytes left after the purge."""
    bench.databases("source")
    bench.databases("target", server=bench.two)
    control = bench.sync("source", ("A", bench.one, "source"), [("B", bench.two, "target")])
    source, target, holder = bench.one.connect("source"), bench.two.connect("target"), bench.one.connect("source")
    source.run(f"INSERT INTO t {ROW} FROM generate_series(1, {rounds * rows}) g")
    kick(control)
    if held:
        holder.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM t LIMIT 1")
    times = []
    for n in range(rounds):
        control.run("SELECT bucardo.pause('s')")
        source.run(f"UPDATE t SET a = a + 1 WHERE id > {n * rows} AND id <= {(n + 1) * rows}")
        bench.checkpoint()
        times.append(timed(lambda: serve(control)))
    # A purge leaves the segment that is written to; the next one finds it left.
    for _ in range(2):
        source.run("SELECT bucardo.capture_purge(0)")
    left = source.number(SEGMENTS)
    bench.equal(source, [target])
    for conn in (holder, control, source, target):
        conn.close()
    bench.drop("source", "target")
    return times, left


def old_snapshot(bench):
    """2,000,000 changes served in ten runs while a snapshot is held on the source: the last runs against the first.

    Once: what is compared is one way through ten runs with itself, of which each is a repetition already."""
    rounds, rows = 10, bench.rows(200_000)
    work = f"10 x {rows:,} changes, an old snapshot"
    free, _ = rounds_of(bench, False, rounds, rows)
    held, left = rounds_of(bench, True, rounds, rows)
    bench.report(work, "no snapshot: the first 3 runs", free[:3], "s")
    bench.report(work, "no snapshot: the last 3 runs", free[-3:], "s", free[:3], ours=True, rounds=False)
    bench.report(work, "held: the first 3 runs", held[:3], "s")
    bench.report(work, "held: the last 3 runs", held[-3:], "s", held[:3], "<= 1.5 x", rounds=False)
    bench.report(work, "held: segments after the purge", [left], "bytes", goal="<= 0 bytes")


def purge(bench):
    """The purge of 1,000,000 served deltas, written by one statement, and by a statement for each row."""
    count = bench.rows(1_000_000)
    bench.databases("source")
    bench.databases("target", server=bench.two)
    control = bench.sync("source", ("A", bench.one, "source"), [("B", bench.two, "target")])
    bench.one.setting("bucardo.purge_interval", "1h")
    source, target = bench.one.connect("source"), bench.two.connect("target")
    # The master purges by itself what is large. Beside its purge ours would do nothing, and after it, find nothing: it is kept away.
    source.run("SELECT pg_advisory_lock(hashtextextended('bucardo capture', 0))")
    one_by_one = f"DO $$ BEGIN FOR i IN 1..{count} LOOP UPDATE t SET a = a + 1 WHERE id = i; END LOOP; END $$"
    changes = {"by one statement": f"INSERT INTO t {ROW} FROM generate_series(1, {count}) g", "by a statement each": one_by_one}
    figures = {name: [] for name in changes}
    for _ in range(bench.repeat):
        source.run("TRUNCATE t")
        kick(control)
        # In this order always: the second changes the rows of the first.
        for name, sql in changes.items():
            control.run("SELECT bucardo.pause('s')")
            source.run("SELECT bucardo.capture_purge(0)")
            source.run(sql)
            size = source.number(SEGMENTS)
            serve(control)
            took = timed(lambda: source.run("SELECT bucardo.capture_purge(0)")) * 1000
            figures[name].append((size / 1024 / 1024, took, source.number(SEGMENTS)))
            bench.equal(source, [target])
    for name, found in figures.items():
        work = f"purge of {count:,} deltas, {name}"
        sizes, times, left = zip(*found)
        bench.report(work, "size before", sizes, "MiB", ours=True)
        bench.report(work, "bucardo", times, "ms", goal="<= 20 ms")
        bench.report(work, "size after", left, "bytes", goal="<= 0 bytes")
    bench.one.setting("bucardo.purge_interval", "10s")
    for conn in (control, source, target):
        conn.close()
    bench.drop("source", "target")
