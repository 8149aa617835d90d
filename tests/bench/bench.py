"""The benchmarks: each measures the extension and a named reference in the same run, in turn, and reports ratios.

usage: bench.py BINDIR FOLDER USER [--rows FACTOR] [--repeat N] [--json FILE] [NAME ...]

Numbers on different machines mean nothing beside each other; ratios within one run do. A benchmark that finds the
members unequal at its end fails, whatever its time was.
"""

import argparse
import json
import statistics
import sys
import threading
import time

from servers import Place

TABLE = "CREATE TABLE t (id int PRIMARY KEY, a int NOT NULL, v text)"
ROW = "SELECT g, g % 1000, 'row number ' || g"


class Bench:
    """What all benchmarks share: two servers, and the results."""

    def __init__(self, place, factor, repeat):
        self.place, self.factor, self.repeat = place, factor, repeat
        self.one = place.server("one", "shared_preload_libraries = 'bucardo'\ntrack_commit_timestamp = off")
        self.two = place.server("two", "")
        self.results = []

    def rows(self, count):
        return max(100, int(count * self.factor))

    def report(self, work, contender, values, unit, reference=None, goal=None):
        """Adds a line: the median of `values`, and its ratio to the median of `reference`."""
        median = statistics.median(values)
        line = {"work": work, "contender": contender, "unit": unit, "median": median, "min": min(values), "max": max(values)}
        if reference:
            line["ratio"] = median / statistics.median(reference)
        if goal:
            line["goal"] = goal
        self.results.append(line)
        ratio = f"{line['ratio']:7.2f} x" if reference else " " * 9
        print(f"  {work:<34} {contender:<22} {median:10.3f} {unit:<5} ({min(values):.3f}-{max(values):.3f}) {ratio}  {goal or ''}", flush=True)

    def databases(self, *names, server=None):
        for name in names:
            (server or self.one).create_database(name)

    def sync(self, control, source, targets, tables="all", options=""):
        """A control database with a sync from `source` to `targets`: (member, server, database)."""
        conn = self.one.connect(control)
        conn.run("CREATE EXTENSION IF NOT EXISTS bucardo")
        for name, server, db in [source, *targets]:
            conninfo = "" if (server, db) == (self.one, control) else server.conninfo(db)
            conn.run(f"SELECT bucardo.add_db('{name}', $${conninfo}$$)")
        dbs = ",".join([f"{source[0]}:source", *[f"{t[0]}:target" for t in targets]])
        conn.run(f"SELECT bucardo.add_sync('s', dbs => '{dbs}', tables => '{tables}'{options})")
        return conn

    def equal(self, source, others, table="t"):
        digest = f"SELECT count(*) || ' ' || coalesce(md5(string_agg(md5(x::text), '' ORDER BY id)), '') FROM {table} x"
        wanted = source.one(digest)
        for other in others:
            found = other.one(digest)
            if found != wanted:
                raise RuntimeError(f"the members differ: {wanted} and {found}")


def timed(action):
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def until(condition, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("waited in vain")
        time.sleep(0.001)


# ---------------------------------------------------------------------------------------------------------- capture

def captured_databases(bench):
    """Three databases with the same table: without capture, with the native trigger, with plain SQL."""
    bench.databases("none", "native", "plain", "control", "sink")
    for db in ("none", "native", "plain", "sink"):
        bench.one.connect(db).run(TABLE)
    native = bench.sync("native", ("A", bench.one, "native"), [("B", bench.one, "sink")])
    control = bench.sync("control", ("A", bench.one, "plain"), [("B", bench.one, "sink")])
    for conn in (native, control):
        conn.run("SELECT bucardo.stop()")
    return {db: bench.one.connect(db) for db in ("none", "native", "plain")}


def drop_databases(bench, *names):
    for name in names:
        conn = bench.one.connect()
        conn.run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        conn.close()


def capture_statements(bench):
    """What one statement of many rows costs with capture, against the same without."""
    conns = captured_databases(bench)
    inserts, updates = bench.rows(1_000_000), bench.rows(200_000)
    times = {(kind, db): [] for kind in ("insert", "update") for db in conns}
    for _ in range(bench.repeat):
        for db, conn in conns.items():
            conn.run("TRUNCATE t; CHECKPOINT")
            sql = f"INSERT INTO t {ROW} FROM generate_series(1, {inserts}) g"
            times["insert", db].append(timed(lambda: conn.run(sql)))
            conn.run("VACUUM t")
            conn.run("CHECKPOINT")
            sql = f"UPDATE t SET a = a + 1 WHERE id <= {updates}"
            times["update", db].append(timed(lambda: conn.run(sql)))
            conn.rows("SELECT 1")
    for kind, count, goals in (("insert", inserts, ("<= 1.22", "<= 1.6")), ("update", updates, ("<= 1.18", "<= 1.35"))):
        work = f"capture of one {kind} of {count:,}"
        bench.report(work, "no capture", times[kind, "none"], "s")
        bench.report(work, "native", times[kind, "native"], "s", times[kind, "none"], goals[0])
        bench.report(work, "plain SQL", times[kind, "plain"], "s", times[kind, "none"], goals[1])
    for conn in conns.values():
        conn.close()
    drop_databases(bench, "none", "native", "plain", "control", "sink")


# ---------------------------------------------------------------------------------------------------------- backlog

def backlog(bench):
    """A backlog until both sides are equal, against binary COPY of the same rows by a pipe."""
    inserts, updates = bench.rows(1_000_000), bench.rows(200_000)
    bench.databases("source")
    bench.databases("target", "copied", "updated", server=bench.two)
    for conn in (bench.one.connect("source"), *(bench.two.connect(db) for db in ("target", "copied", "updated"))):
        conn.run(TABLE)
        conn.close()
    updated = bench.two.connect("updated")
    updated.run(f"INSERT INTO t {ROW} FROM generate_series(1, {inserts}) g")
    limit = []
    control = bench.sync("source", ("A", bench.one, "source"), [("B", bench.two, "target")])
    source, target = bench.one.connect("source"), bench.two.connect("target")
    copied = bench.two.connect("copied")
    ours, reference = {"insert": [], "update": []}, {"insert": [], "update": []}
    for _ in range(bench.repeat):
        control.run("SELECT bucardo.kick('s', '600s')")
        source.run("TRUNCATE t")
        control.run("SELECT bucardo.kick('s', '600s')")
        for kind, sql in (
            ("insert", f"INSERT INTO t {ROW} FROM generate_series(1, {inserts}) g"),
            ("update", f"UPDATE t SET a = a + 1 WHERE id <= {updates}"),
        ):
            control.run("SELECT bucardo.pause('s')")
            source.run(sql)
            source.run("CHECKPOINT")
            target.run("CHECKPOINT")
            control.run("SELECT bucardo.resume('s')")
            ours[kind].append(timed(lambda: control.run("SELECT bucardo.kick('s', '600s')")))
            bench.equal(source, [target])
            copied.run("TRUNCATE t; CHECKPOINT")
            where = "true" if kind == "insert" else f"id <= {updates}"
            reference[kind].append(bench.place.copy(bench.one, "source", f"SELECT * FROM t WHERE {where}", bench.two, "copied", "t"))
        updated.run("VACUUM t")
        updated.run("CHECKPOINT")
        limit.append(timed(lambda: updated.run(f"UPDATE t SET a = a + 1 WHERE id <= {updates}")))
    for kind, count in (("insert", inserts), ("update", updates)):
        work = f"backlog of {count:,} {kind}s"
        bench.report(work, "COPY", reference[kind], "s")
        bench.report(work, "bucardo", ours[kind], "s", reference[kind], "<= 1.5")
    bench.report(work, "the UPDATE alone, there", limit, "s", reference["update"])
    details = control.rows("SELECT details FROM bucardo.syncrun WHERE upserts > 1000 ORDER BY run DESC LIMIT 2")
    for row in details:
        print(f"      {row[0]}")
    for conn in (control, source, target, copied):
        conn.close()
    drop_databases(bench, "source")


# ---------------------------------------------------------------------------------------------------------- latency

def one_latency(source, target, first, count, pause):
    samples = []
    for n in range(first, first + count):
        time.sleep(pause)
        source.run(f"INSERT INTO t VALUES ({n}, 0, 'x')")
        began = time.perf_counter()
        while not target.rows(f"SELECT 1 FROM t WHERE id = {n}"):
            pass
        samples.append((time.perf_counter() - began) * 1000)
    return samples


def latency(bench):
    """From the commit to the row being visible on the other side, one row at a time."""
    count = bench.rows(300)
    bench.databases("source", "far_control")
    bench.databases("target", "far_source", "logical", server=bench.two)
    for server, db in ((bench.one, "source"), (bench.two, "target"), (bench.two, "far_source"), (bench.two, "logical")):
        server.connect(db).run(TABLE)
    near = bench.sync("source", ("A", bench.one, "source"), [("B", bench.two, "target")])
    source, target = bench.one.connect("source"), bench.two.connect("target")
    one_latency(source, target, 1, 20, 0.02)
    ours = one_latency(source, target, 1000, count, 0.01)
    work = "commit to visible"
    for name, values, goal in (("shared memory", ours, "<= 2"),):
        bench.report(work, f"{name}, median", [statistics.median(values)], "ms", goal=goal)
        bench.report(work, f"{name}, p99", [sorted(values)[int(len(values) * 0.99)]], "ms", goal="<= 8")
    near.run("SELECT bucardo.remove_sync('s')")
    far = bench.sync("far_control", ("F", bench.two, "far_source"), [("B", bench.two, "target")])
    target.run("TRUNCATE t")
    far_source = bench.two.connect("far_source")
    one_latency(far_source, target, 1, 20, 0.02)
    polled = one_latency(far_source, target, 1000, count, 0.01)
    poll_min = far.one("SHOW bucardo.poll_min")
    bench.report(work, "polled, median", [statistics.median(polled)], "ms", goal=f"<= poll_min ({poll_min}) + 5")
    source.run("TRUNCATE t; CREATE PUBLICATION p FOR TABLE t")
    logical = bench.two.connect("logical")
    logical.run(f"CREATE SUBSCRIPTION x CONNECTION '{bench.one.conninfo('source')}' PUBLICATION p")
    one_latency(source, logical, 1, 20, 0.02)
    theirs = one_latency(source, logical, 1000, count, 0.01)
    logical.run("DROP SUBSCRIPTION x")
    bench.report(work, "native logical, median", [statistics.median(theirs)], "ms")
    bench.report(work, "native logical, p99", [sorted(theirs)[int(len(theirs) * 0.99)]], "ms")
    for conn in (near, far, source, target, far_source, logical):
        conn.close()
    drop_databases(bench, "source", "far_control")


# ----------------------------------------------------------------------------------------------------------- memory

def peak_of(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields["RssAnon"].split()[0]) / 1024


def memory(bench):
    """The anonymous memory of the kid while it serves a backlog: it must not grow with it."""
    bench.databases("source")
    bench.databases("target", server=bench.two)
    for conn in (bench.one.connect("source"), bench.two.connect("target")):
        conn.run(TABLE)
        conn.close()
    control = bench.sync("source", ("A", bench.one, "source"), [("B", bench.two, "target")])
    source = bench.one.connect("source")
    for count in (bench.rows(100_000), bench.rows(2_000_000)):
        source.run("TRUNCATE t")
        control.run("SELECT bucardo.kick('s', '600s')")
        control.run("SELECT bucardo.pause('s')")
        source.run(f"INSERT INTO t {ROW} FROM generate_series(1, {count}) g; UPDATE t SET a = a + 1")
        control.run("SELECT bucardo.resume('s')")
        watcher = bench.one.connect("source")
        peak, over = [0.0], threading.Event()

        def watch():
            while not over.is_set():
                for (pid,) in watcher.rows("SELECT pid FROM bucardo.activity WHERE kind = 'kid'"):
                    try:
                        peak[0] = max(peak[0], peak_of(pid))
                    except OSError:
                        pass
                time.sleep(0.02)

        thread = threading.Thread(target=watch)
        thread.start()
        control.run("SELECT bucardo.kick('s', '600s')")
        over.set()
        thread.join()
        bench.report(f"memory of a kid, {count:,} keys", "bucardo", peak, "MiB", goal="<= 64 MiB + kid_work_mem")
    drop_databases(bench, "source")


BENCHES = {f.__name__: f for f in (capture_statements, backlog, latency, memory)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bindir")
    parser.add_argument("folder")
    parser.add_argument("user")
    parser.add_argument("--rows", type=float, default=1.0, help="all row counts times this")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", help="write the results here")
    parser.add_argument("names", nargs="*", help=f"which of {', '.join(BENCHES)}; all when left out")
    args = parser.parse_intermixed_args()
    unknown = [name for name in args.names if name not in BENCHES]
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}")
    place = Place(args.bindir, args.folder, args.user)
    try:
        bench = Bench(place, args.rows, args.repeat)
        for name in args.names or BENCHES:
            print(f"{name}: {' '.join(BENCHES[name].__doc__.split())}", flush=True)
            BENCHES[name](bench)
    finally:
        place.close()
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(bench.results, file, indent=1)


if __name__ == "__main__":
    sys.exit(main())
