//! The smallest PostgreSQL client that the scenarios need: the simple query protocol over a unix socket.
//!
//! It stands outside everything: a scenario is an application or an operator, and sees what those see. One connection
//! per session costs no process, gives the fields of an error (SQLSTATE, DETAIL, HINT) undamaged, and holds a
//! transaction open as long as a scenario likes. It must never know anything about the extension.

use std::io::{BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A server that says nothing for so long has hung; the scenario fails instead of hanging with it.
const SILENCE: Duration = Duration::from_secs(150);

/// A message with severity, as the server sent it; also made here (class 08) when the connection breaks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PgError {
    pub severity: String,
    pub sqlstate: String,
    pub message: String,
    pub detail: String,
    pub hint: String,
}

impl PgError {
    fn broken(what: impl std::fmt::Display) -> Self {
        PgError { severity: "FATAL".into(), sqlstate: "08006".into(), message: what.to_string(), ..Self::default() }
    }

    fn parse(body: &[u8]) -> Self {
        let mut error = PgError::default();
        for field in body.split(|byte| *byte == 0).filter(|field| field.len() > 1) {
            let text = String::from_utf8_lossy(&field[1..]).into_owned();
            match field[0] {
                b'V' => error.severity = text,
                b'C' => error.sqlstate = text,
                b'M' => error.message = text,
                b'D' => error.detail = text,
                b'H' => error.hint = text,
                _ => {}
            }
        }
        error
    }

    /// Everything a user would see, to look for a word in it.
    pub fn full(&self) -> String {
        format!("{} {}: {}\nDETAIL: {}\nHINT: {}", self.severity, self.sqlstate, self.message, self.detail, self.hint)
    }
}

impl std::fmt::Display for PgError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.full())
    }
}

pub type Row = Vec<Option<String>>;

/// What one query string brought: the rows of all its statements, the last command tag, the notices.
#[derive(Debug, Default)]
pub struct Reply {
    pub rows: Vec<Row>,
    pub tag: String,
    pub notices: Vec<PgError>,
}

pub struct Conn {
    stream: BufReader<UnixStream>,
    pub pid: i32,
    label: String,
}

/// The session settings under which scenarios compare: whatever the database was made to default to.
const PLAIN: &str = "-c datestyle=ISO,YMD -c intervalstyle=postgres -c timezone=UTC -c bytea_output=hex \
                     -c extra_float_digits=3 -c search_path=public -c statement_timeout=0 -c standard_conforming_strings=on";

impl Conn {
    pub fn open(socket_dir: &Path, port: u16, db: &str, user: &str) -> Result<Conn, PgError> {
        Self::open_with(socket_dir, port, db, user, PLAIN)
    }

    /// `options` as in PGOPTIONS; empty for what the database's own settings give.
    pub fn open_with(socket_dir: &Path, port: u16, db: &str, user: &str, options: &str) -> Result<Conn, PgError> {
        let stream = UnixStream::connect(socket_dir.join(format!(".s.PGSQL.{port}"))).map_err(PgError::broken)?;
        stream.set_read_timeout(Some(SILENCE)).map_err(PgError::broken)?;
        let mut conn = Conn { stream: BufReader::new(stream), pid: 0, label: format!("{db}@{port}") };
        conn.start(db, user, options)?;
        Ok(conn)
    }

    fn start(&mut self, db: &str, user: &str, options: &str) -> Result<(), PgError> {
        let mut body = 196_608_i32.to_be_bytes().to_vec();
        let wanted = [("user", user), ("database", db), ("client_encoding", "UTF8"), ("options", options)];
        for (name, value) in wanted.iter().chain(&[("application_name", "scenario")]) {
            body.extend_from_slice(name.as_bytes());
            body.push(0);
            body.extend_from_slice(value.as_bytes());
            body.push(0);
        }
        body.push(0);
        let mut packet = (body.len() as i32 + 4).to_be_bytes().to_vec();
        packet.extend_from_slice(&body);
        self.stream.get_mut().write_all(&packet).map_err(PgError::broken)?;
        loop {
            let (kind, body) = self.receive()?;
            match kind {
                b'E' => return Err(PgError::parse(&body)),
                b'R' if body[..4] != [0; 4] => return Err(PgError::broken("the server wants a password")),
                b'K' => self.pid = i32::from_be_bytes([body[0], body[1], body[2], body[3]]),
                b'Z' => return Ok(()),
                _ => {}
            }
        }
    }

    fn message(&mut self, kind: u8, body: &[u8]) -> Result<(), PgError> {
        let mut packet = vec![kind];
        packet.extend_from_slice(&(body.len() as i32 + 4).to_be_bytes());
        packet.extend_from_slice(body);
        match self.stream.get_mut().write_all(&packet) {
            // The server hung up: why, stands in what it sent before, which the reader finds.
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
            done => done.map_err(PgError::broken),
        }
    }

    fn receive(&mut self) -> Result<(u8, Vec<u8>), PgError> {
        let mut head = [0_u8; 5];
        self.stream.read_exact(&mut head).map_err(|e| match e.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => PgError::broken(format!("no answer in {SILENCE:?}")),
            _ => PgError::broken(e),
        })?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let mut body = vec![0_u8; length.saturating_sub(4)];
        self.stream.read_exact(&mut body).map_err(PgError::broken)?;
        Ok((head[0], body))
    }

    /// Sends a query and does not wait: for statements that a scenario wants to see blocked.
    pub fn send(&mut self, sql: &str) -> Result<(), PgError> {
        let mut body = sql.as_bytes().to_vec();
        body.push(0);
        self.message(b'Q', &body)
    }

    /// The answer to what `send` sent.
    pub fn finish(&mut self) -> Result<Reply, PgError> {
        self.collect(&[])
    }

    fn collect(&mut self, copy_data: &[u8]) -> Result<Reply, PgError> {
        let mut reply = Reply::default();
        let mut failure = None;
        loop {
            let (kind, body) = match self.receive() {
                Ok(message) => message,
                // A FATAL is followed by the end of the connection; the FATAL says more.
                Err(broken) => return Err(failure.unwrap_or(broken)),
            };
            match kind {
                b'E' => failure = Some(failure.unwrap_or_else(|| PgError::parse(&body))),
                b'N' => reply.notices.push(PgError::parse(&body)),
                b'D' => reply.rows.push(parse_row(&body)),
                b'C' => reply.tag = String::from_utf8_lossy(&body[..body.len() - 1]).into_owned(),
                b'G' => {
                    for chunk in copy_data.chunks(60_000) {
                        self.message(b'd', chunk)?;
                    }
                    self.message(b'c', &[])?;
                }
                b'Z' => return failure.map_or(Ok(reply), Err),
                _ => {}
            }
        }
    }

    pub fn try_query(&mut self, sql: &str) -> Result<Reply, PgError> {
        self.send(sql)?;
        self.collect(&[])
    }

    /// `COPY … FROM STDIN` with these bytes.
    #[track_caller]
    pub fn copy_in(&mut self, sql: &str, data: &str) {
        let done = self.send(sql).and_then(|()| self.collect(data.as_bytes()));
        if let Err(error) = done {
            panic!("[{}] {sql}\n{error}", self.label);
        }
    }

    #[track_caller]
    pub fn query(&mut self, sql: &str) -> Vec<Row> {
        match self.try_query(sql) {
            Ok(reply) => reply.rows,
            Err(error) => panic!("[{}] {}\n{error}", self.label, shorten(sql)),
        }
    }

    #[track_caller]
    pub fn exec(&mut self, sql: &str) {
        self.query(sql);
    }

    /// The first column of the first row; NULL and no row are both `None`.
    #[track_caller]
    pub fn maybe(&mut self, sql: &str) -> Option<String> {
        self.query(sql).into_iter().next().and_then(|row| row.into_iter().next()).flatten()
    }

    #[track_caller]
    pub fn one(&mut self, sql: &str) -> String {
        match self.maybe(sql) {
            Some(value) => value,
            None => panic!("[{}] {}: no row, or NULL", self.label, shorten(sql)),
        }
    }

    #[track_caller]
    pub fn number(&mut self, sql: &str) -> i64 {
        let text = self.one(sql);
        text.parse().unwrap_or_else(|_| panic!("[{}] {}: {text} is no number", self.label, shorten(sql)))
    }

    /// The statement must fail with this SQLSTATE; the error comes back for a closer look.
    #[track_caller]
    pub fn expect_error(&mut self, sql: &str, sqlstate: &str) -> PgError {
        match self.try_query(sql) {
            Ok(reply) => panic!("[{}] {}: succeeded ({}), expected {sqlstate}", self.label, shorten(sql), reply.tag),
            Err(error) if error.sqlstate == sqlstate => error,
            Err(error) => panic!("[{}] {}: expected {sqlstate}, got\n{error}", self.label, shorten(sql)),
        }
    }
}

fn parse_row(body: &[u8]) -> Row {
    let columns = usize::from(u16::from_be_bytes([body[0], body[1]]));
    let mut rest = &body[2..];
    let mut row = Vec::with_capacity(columns);
    for _ in 0..columns {
        let length = i32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]);
        rest = &rest[4..];
        if length < 0 {
            row.push(None);
            continue;
        }
        let (value, tail) = rest.split_at(length as usize);
        row.push(Some(String::from_utf8_lossy(value).into_owned()));
        rest = tail;
    }
    row
}

pub fn shorten(sql: &str) -> String {
    if sql.chars().count() <= 600 { sql.to_owned() } else { format!("{} …", sql.chars().take(600).collect::<String>()) }
}
