"""The original Bucardo 5.6 at the same work, by its own programs, with its defaults and tuned; only with WITH_BUCARDO5=1 in the
environment, because it needs the packages bucardo and postgresql-plperl. It runs while it is measured and is stopped then. Where
others wake their servers by a commit it is kicked after it, by the NOTIFY that its triggers would send."""

import os
import shutil
import signal

from backlog import Turn, kinds
from common import ROW, median_and_p99, timed, until
from latency import one_by_one

# As it is tuned best: its four sleeps, and all keys of a run in one statement.
SLEEPS = ("mcp_loop_sleep", "ctl_sleep", "kid_sleep", "kid_nodeltarows_sleep")
TUNED = {**{name: "0.01" for name in SLEEPS}, "statement_chunk_size": "2000000"}
SETTINGS = {"the original": {}, "the original, tuned": TUNED}


class Daemon:
    """Its control database on the first server, a sync of the table from there to the second, or between both, and its processes."""

    def __init__(self, bench, settings, role="target", there="target"):
        self.bench = bench
        self.pids = os.path.join(bench.place.folder, "bucardo5")
        bench.place.as_server(["mkdir", "-p", self.pids])
        bench.on(bench.one, "postgres", "DROP DATABASE IF EXISTS bucardo WITH (FORCE)")
        self._say("install", "--batch", "-U", "postgres", "-d", "postgres", "--piddir", self.pids)
        for name, server, db in (("A", bench.one, "source"), ("B", bench.two, there)):
            self._do("add", "db", name, f"dbname={db}", f"host={server.folder}", "user=postgres")
        self._do("add", "table", "public.t", "db=A", "relgroup=g")
        self._do("add", "sync", "s", "relgroup=g", f"dbs=A:source,B:{role}", "autokick=0")
        for name, value in settings.items():
            self._do("set", f"{name}={value}")
        self.control = bench.one.connect("bucardo")
        self.control.run(f"UPDATE bucardo.bucardo_config SET setting = '{self.pids}' WHERE name = 'piddir'")
        files = "name IN ('reason_file', 'warning_file', 'log_conflict_file')"
        self.control.run(f"UPDATE bucardo.bucardo_config SET setting = '{self.pids}/' || name WHERE {files}")
        self._do("start", "--log-destination", self.pids)
        until(lambda: "bucardo.kid.sync.s.pid" in os.listdir(self.pids), 60, 0.05)

    def _say(self, *words):
        command = ["bucardo", "--no-bucardorc", "-h", self.bench.one.folder, *words]
        return self.bench.place.as_server(command)

    def _do(self, *words):
        return self._say("-d", "bucardo", "-U", "postgres", *words)

    def kick(self):
        self.control.run("NOTIFY bucardo, 'kick_sync_s'")

    def close(self):
        """Ends it, by the processes that its own files name."""
        self._do("stop", "measured")
        self.control.close()

        def alive():
            pids = []
            for name in os.listdir(self.pids):
                if name.endswith(".pid"):
                    with open(os.path.join(self.pids, name), encoding="ascii") as file:
                        pids.append(int(file.readline()))
            return [pid for pid in pids if os.path.exists(f"/proc/{pid}")]

        try:
            until(lambda: not alive(), 30, 0.1)
        except RuntimeError:
            for pid in alive():
                os.kill(pid, signal.SIGTERM)
        shutil.rmtree(self.pids)


class Figures:
    """What is known of it with one kind of settings."""

    def __init__(self, bench):
        self.turn = Turn(bench)
        self.captured, self.latency, self.two_sources = {}, [], []


def original(bench):
    """The original Bucardo 5.6, with its defaults and tuned: capture of a statement, the same backlogs, commit to visible, two sources."""
    if os.environ.get("WITH_BUCARDO5") != "1":
        bench.results.skip("the original Bucardo", "WITH_BUCARDO5=1 is not set")
        return
    if not shutil.which("bucardo"):
        bench.results.skip("the original Bucardo", "the packages bucardo and postgresql-plperl are not installed")
        return
    figures, copy, bare = {name: Figures(bench) for name in SETTINGS}, Turn(bench), {}
    for _ in range(bench.repeat):
        for name, settings in SETTINGS.items():
            one_way(bench, settings, figures[name], copy, bare)
            figures[name].two_sources.append(two_sources(bench, settings))
    for kind, count, _, _ in kinds(bench):
        work = f"one {kind.upper()} of {count:,}, the original"
        bench.report(work, "no capture", bare[kind], "s")
        # Its triggers are the same however it is set.
        captured = [seconds for one in zip(*(figures[name].captured[kind] for name in SETTINGS)) for seconds in one]
        bench.report(work, "the original", captured, "s", bare[kind])
    for kind, count, _, _ in kinds(bench):
        work = f"backlog of {count:,} {kind}s, the original"
        bench.report(work, "COPY", copy.walls[kind], "s")
        for name in SETTINGS:
            bench.report(work, name, figures[name].turn.walls[kind], "s", copy.walls[kind])
    for name in SETTINGS:
        median_and_p99(bench.report, "commit to visible, the original", name, figures[name].latency)
    for name in SETTINGS:
        bench.report("two sources, the original", name, figures[name].two_sources, "s")
    bench.drop("bucardo", "source", "bare", "target", "other", "copied")


def one_way(bench, settings, figures, copy, bare):
    bench.databases("source", "bare")
    bench.databases("target", "copied", server=bench.two)
    source, target, plain = bench.one.connect("source"), bench.two.connect("target"), bench.one.connect("bare")
    daemon = Daemon(bench, settings)
    try:
        # First: later it would look through what it keeps of the backlogs.
        figures.latency.append(one_by_one(source, target, range(1, bench.rows(30, 3) + 1), 0.01, daemon.kick))
        bench.equal(source, [target])
        source.run("DELETE FROM t")
        daemon.kick()
        until(lambda: target.one("SELECT count(*) FROM t") == "0")
        for kind, _, sql, where in kinds(bench):
            figures.captured.setdefault(kind, []).append(timed(lambda sql=sql: source.run(sql)))
            bare.setdefault(kind, []).append(timed(lambda sql=sql: plain.run(sql)))
            bench.checkpoint()
            last = source.one("SELECT max(id) FROM t" if kind == "insert" else "SELECT 1")
            there = f"SELECT 1 FROM t WHERE id = {last} AND a = {source.one(f'SELECT a FROM t WHERE id = {last}')}"

            def serve(there=there):
                daemon.kick()
                until(lambda: target.rows(there))

            figures.turn.take(kind, serve)
            bench.equal(source, [target])
            bench.on(bench.two, "copied", "TRUNCATE t")
            bench.checkpoint()
            select = f"SELECT * FROM t WHERE {where}"
            copy.take(kind, lambda select=select: bench.place.copy(bench.one, "source", select, bench.two, "copied", "t"))
    finally:
        daemon.close()
        for conn in (source, target, plain):
            conn.close()


def two_sources(bench, settings):
    """Seconds until both have the same, after disjoint updates of each and some of the same rows."""
    alone, both = bench.rows(20_000), bench.rows(2_000, 10)
    bench.databases("source")
    bench.databases("other", server=bench.two)
    a, b = bench.one.connect("source"), bench.two.connect("other")
    for conn in (a, b):
        conn.run(f"INSERT INTO t {ROW} FROM generate_series(1, {2 * alone + both}) g")
    daemon = Daemon(bench, settings, "source", "other")
    try:
        a.run(f"UPDATE t SET a = a + 1 WHERE id <= {alone} OR id > {2 * alone}")
        b.run(f"UPDATE t SET a = a + 2 WHERE id > {alone}")
        bench.checkpoint()
        what = "SELECT sum(a::bigint * id) FROM t"

        def serve():
            daemon.kick()
            until(lambda: a.one(what) == b.one(what))

        seconds = timed(serve)
        bench.equal(a, [b])
        return seconds
    finally:
        daemon.close()
        a.close()
        b.close()
