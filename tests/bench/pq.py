"""libpq for the benchmarks, by ctypes: one connection, simple queries, text answers. Nothing is timed in here.

A benchmark needs a session that stays open and answers at once; psql as a process for each statement would be
measured instead of the server.
"""

import ctypes
import ctypes.util

_lib = ctypes.CDLL(ctypes.util.find_library("pq") or "libpq.so.5")
_lib.PQconnectdb.restype = ctypes.c_void_p
_lib.PQconnectdb.argtypes = [ctypes.c_char_p]
_lib.PQexec.restype = ctypes.c_void_p
_lib.PQexec.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
_lib.PQgetvalue.restype = ctypes.c_char_p
_lib.PQgetvalue.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
for _name in ("PQstatus", "PQresultStatus", "PQntuples", "PQnfields"):
    getattr(_lib, _name).argtypes = [ctypes.c_void_p]
_lib.PQgetisnull.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
for _name in ("PQerrorMessage", "PQresultErrorMessage"):
    getattr(_lib, _name).restype = ctypes.c_char_p
    getattr(_lib, _name).argtypes = [ctypes.c_void_p]
for _name in ("PQclear", "PQfinish"):
    getattr(_lib, _name).argtypes = [ctypes.c_void_p]
    getattr(_lib, _name).restype = None


_lib.PQresultErrorField.restype = ctypes.c_char_p
_lib.PQresultErrorField.argtypes = [ctypes.c_void_p, ctypes.c_int]


class Error(Exception):
    """What the server said."""

    def __init__(self, message, sqlstate=None):
        super().__init__(message)
        self.sqlstate = sqlstate


class Connection:
    """A session. Statements raise `Error` when they fail."""

    def __init__(self, conninfo):
        self._conn = _lib.PQconnectdb(conninfo.encode())
        if _lib.PQstatus(self._conn) != 0:
            raise Error(_lib.PQerrorMessage(self._conn).decode())
        self.run("SET client_min_messages = warning")
        self.pid = int(self.one("SELECT pg_backend_pid()"))

    def rows(self, sql):
        """All rows of the last statement, as lists of texts and None."""
        result = _lib.PQexec(self._conn, sql.encode())
        try:
            if _lib.PQresultStatus(result) not in (0, 1, 2):
                state = _lib.PQresultErrorField(result, ord("C"))
                message = _lib.PQresultErrorMessage(result).decode().strip()
                raise Error(f"{message}\n{sql[:400]}", state.decode() if state else None)
            columns = range(_lib.PQnfields(result))
            return [
                [None if _lib.PQgetisnull(result, r, c) else _lib.PQgetvalue(result, r, c).decode() for c in columns]
                for r in range(_lib.PQntuples(result))
            ]
        finally:
            _lib.PQclear(result)

    def run(self, sql):
        self.rows(sql)

    def one(self, sql):
        return self.rows(sql)[0][0]

    def number(self, sql):
        return float(self.one(sql) or 0)

    def close(self):
        _lib.PQfinish(self._conn)
        self._conn = None
