"""The throw-away servers of the benchmarks: made by initdb, stock settings but for what a row of the table names, on unix
sockets only, stopped at the end whatever happens. It never touches a server that it did not start."""

import os
import subprocess
import time

import pq

# The same for every contender. Data checksums, fsync and full_page_writes stay as PostgreSQL ships them.
STOCK = """
listen_addresses = ''
shared_buffers = '512MB'
max_wal_size = '8GB'
checkpoint_timeout = '30min'
wal_level = logical
max_worker_processes = 32
max_wal_senders = 10
max_replication_slots = 10
max_connections = 250
max_locks_per_transaction = 512
"""


class Server:
    """One cluster in a folder of its own."""

    def __init__(self, place, name, settings=""):
        self.name = name
        self.place = place
        self.folder = os.path.join(place.folder, name)
        self.data = os.path.join(self.folder, "data")
        place.as_server(["mkdir", "-p", self.folder])
        place.as_server([place.bin("initdb"), "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"])
        conf = f"{STOCK}\nunix_socket_directories = '{self.folder}'\n{settings}\n"
        place.as_server(["tee", "-a", os.path.join(self.data, "postgresql.conf")], conf)
        self.start()

    def start(self):
        log = os.path.join(self.folder, "log")
        self.place.as_server([self.place.bin("pg_ctl"), "-D", self.data, "-l", log, "-w", "-t", "60", "start"])
        with open(os.path.join(self.data, "postmaster.pid"), encoding="ascii") as file:
            self.pid = int(file.readline())

    def stop(self):
        self.place.as_server([self.place.bin("pg_ctl"), "-D", self.data, "-m", "immediate", "-w", "stop"], check=False)

    def processes(self):
        """(pid, title) of the server's processes but for the postmaster."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as stat:
                    parent = int(stat.read().rsplit(")", 1)[1].split()[1])
                if parent == self.pid:
                    with open(f"/proc/{name}/cmdline", encoding="utf-8", errors="replace") as title:
                        found.append((int(name), title.read().replace("\0", " ").strip()))
            except OSError:
                pass  # it ended while it was looked at
        return found

    def cpu(self):
        """The processor time of the whole server so far, its ended processes included, in seconds."""
        with open(f"/proc/{self.pid}/stat", encoding="utf-8") as stat:
            ended = sum(int(ticks) for ticks in stat.read().rsplit(")", 1)[1].split()[13:15])
        total = ended / os.sysconf("SC_CLK_TCK")
        for pid in [self.pid, *(pid for pid, _ in self.processes())]:
            try:
                total += time.clock_gettime((~pid << 3) | 2)
            except OSError:
                pass
        return total

    def setting(self, name, value):
        """Changes a setting that a reload brings to all."""
        conn = self.connect()
        conn.run(f"ALTER SYSTEM SET {name} = '{value}'")
        conn.run("SELECT pg_reload_conf()")
        conn.close()

    def conninfo(self, db):
        return f"host={self.folder} dbname={db} user=postgres"

    def connect(self, db="postgres"):
        return pq.Connection(self.conninfo(db))

    def create_database(self, db):
        conn = self.connect()
        conn.run(f"DROP DATABASE IF EXISTS {db} WITH (FORCE)")
        conn.run(f"CREATE DATABASE {db}")
        conn.close()


class Place:
    """Where the servers live and how programs are run for them."""

    def __init__(self, bindir, folder, user):
        self.bindir, self.folder, self.user = bindir, folder, user
        self.servers = []

    def bin(self, program):
        return os.path.join(self.bindir, program)

    def command(self, command):
        return command if os.geteuid() != 0 else ["runuser", "-u", self.user, "--", *command]

    def as_server(self, command, stdin=None, check=True):
        done = subprocess.run(self.command(command), input=stdin, capture_output=True, text=True, cwd=self.folder)
        if check and done.returncode != 0:
            raise RuntimeError(f"{command[0]}: {done.stdout}{done.stderr}")
        return done.stdout

    def popen(self, command, **options):
        return subprocess.Popen(self.command(command), cwd=self.folder, **options)

    def server(self, name, settings=""):
        server = Server(self, name, settings)
        self.servers.append(server)
        return server

    def copy(self, source, source_db, select, target, target_db, table):
        """The reference: binary COPY out of one server, by a pipe, into the other. Seconds."""
        psql = self.bin("psql")
        out = [psql, "-Xqd", source.conninfo(source_db), "-c", f"COPY ({select}) TO STDOUT (FORMAT binary)"]
        into = [psql, "-Xqd", target.conninfo(target_db), "-c", f"COPY {table} FROM STDIN (FORMAT binary)"]
        began = time.perf_counter()
        reader = subprocess.Popen(out, stdout=subprocess.PIPE)
        writer = subprocess.run(into, stdin=reader.stdout)
        if reader.wait() or writer.returncode:
            raise RuntimeError("the reference COPY failed")
        return time.perf_counter() - began

    def close(self):
        for server in self.servers:
            server.stop()
