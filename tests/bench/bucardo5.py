"""The original Bucardo 5.6 over the same backlogs, by its own programs, with its defaults and tuned; only with WITH_BUCARDO5=1 in
the environment, because it needs the packages bucardo and postgresql-plperl. It runs while it is measured and is stopped then."""

import os
import shutil
import signal

from backlog import Turn, kinds
from common import until

# As it is tuned best: its four sleeps, and all keys of a run in one statement.
SLEEPS = ("mcp_loop_sleep", "ctl_sleep", "kid_sleep", "kid_nodeltarows_sleep")
TUNED = {**{name: "0.01" for name in SLEEPS}, "statement_chunk_size": "2000000"}
SETTINGS = {"the original": {}, "the original, tuned": TUNED}


class Daemon:
    """Its control database on the first server, a sync of the table from there to the second, and its processes."""

    def __init__(self, bench, settings):
        self.bench = bench
        self.pids = os.path.join(bench.place.folder, "bucardo5")
        bench.place.as_server(["mkdir", "-p", self.pids])
        bench.on(bench.one, "postgres", "DROP DATABASE IF EXISTS bucardo WITH (FORCE)")
        self._say("install", "--batch", "-U", "postgres", "-d", "postgres", "--piddir", self.pids)
        for name, server, db in (("A", bench.one, "source"), ("B", bench.two, "target")):
            self._do("add", "db", name, f"dbname={db}", f"host={server.folder}", "user=postgres")
        self._do("add", "table", "public.t", "db=A", "relgroup=g")
        self._do("add", "sync", "s", "relgroup=g", "dbs=A:source,B:target", "autokick=0")
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


def original(bench):
    """The original Bucardo 5.6 over the same backlogs, with its defaults and tuned."""
    if os.environ.get("WITH_BUCARDO5") != "1":
        bench.results.skip("the original Bucardo", "WITH_BUCARDO5=1 is not set")
        return
    if not shutil.which("bucardo"):
        bench.results.skip("the original Bucardo", "the packages bucardo and postgresql-plperl are not installed")
        return
    turns, copy = {name: Turn(bench) for name in SETTINGS}, Turn(bench)
    for _ in range(bench.repeat):
        for name, settings in SETTINGS.items():
            measure(bench, settings, turns[name], copy)
    for kind, count, _, _ in kinds(bench):
        work = f"backlog of {count:,} {kind}s, the original"
        bench.report(work, "COPY", copy.walls[kind], "s")
        for name, turn in turns.items():
            bench.report(work, name, turn.walls[kind], "s", copy.walls[kind])
    bench.drop("bucardo", "source", "target", "copied")


def measure(bench, settings, turn, copy):
    bench.databases("source")
    bench.databases("target", "copied", server=bench.two)
    source, target = bench.one.connect("source"), bench.two.connect("target")
    daemon = Daemon(bench, settings)
    try:
        for kind, _, sql, where in kinds(bench):
            source.run(sql)
            bench.checkpoint()
            last = source.one("SELECT max(id) FROM t" if kind == "insert" else "SELECT 1")
            there = f"SELECT 1 FROM t WHERE id = {last} AND a = {source.one(f'SELECT a FROM t WHERE id = {last}')}"

            def serve():
                daemon.kick()
                until(lambda: target.rows(there))

            turn.take(kind, serve)
            bench.equal(source, [target])
            bench.on(bench.two, "copied", "TRUNCATE t")
            bench.checkpoint()
            select = f"SELECT * FROM t WHERE {where}"
            copy.take(kind, lambda: bench.place.copy(bench.one, "source", select, bench.two, "copied", "t"))
    finally:
        daemon.close()
        source.close()
        target.close()
