-- The members and the lists of members. Written by the functions of src/api/db.rs and src/api/dbgroup.rs, read by
-- everything that connects anywhere. A password must stand in db_secret and nowhere else.

CREATE TABLE bucardo.control (
    id          text        PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid()::text,
    stopped     boolean     NOT NULL DEFAULT false,
    stop_reason text,
    identity    text,
    created     timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE  bucardo.control             IS 'This control database: one row.';
COMMENT ON COLUMN bucardo.control.id          IS 'Its identity, under which members know it.';
COMMENT ON COLUMN bucardo.control.stopped     IS 'Whether bucardo.stop() was called: holds across restarts until bucardo.start().';
COMMENT ON COLUMN bucardo.control.stop_reason IS 'The reason given to bucardo.stop().';
COMMENT ON COLUMN bucardo.control.identity    IS 'Where its master ran last: system identifier / database''s oid : timeline : file. Null: not known, or confirmed by bucardo.start().';
COMMENT ON COLUMN bucardo.control.created     IS 'When the extension was created.';
CREATE UNIQUE INDEX control_one_row ON bucardo.control ((true));
INSERT INTO bucardo.control DEFAULT VALUES;

CREATE TABLE bucardo.db (
    name      text        PRIMARY KEY,
    conninfo  text        NOT NULL,
    makedelta boolean     NOT NULL DEFAULT false,
    status    text        NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'inactive')),
    identity  text,
    created   timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE  bucardo.db           IS 'The members: databases that take part, by their short names.';
COMMENT ON COLUMN bucardo.db.name      IS 'The short name.';
COMMENT ON COLUMN bucardo.db.conninfo  IS 'How it is reached, passwords masked; empty: the control database itself.';
COMMENT ON COLUMN bucardo.db.makedelta IS 'Whether rows written here by replication are captured again, for syncs that go on from here.';
COMMENT ON COLUMN bucardo.db.status    IS 'active or inactive; syncs leave an inactive member alone.';
COMMENT ON COLUMN bucardo.db.identity  IS 'Which database it is: system identifier / oid. Another one is refused until update_db confirms it. Null: not known yet.';
COMMENT ON COLUMN bucardo.db.created   IS 'When it was added.';

CREATE TABLE bucardo.db_secret (
    db       text PRIMARY KEY REFERENCES bucardo.db ON DELETE CASCADE ON UPDATE CASCADE,
    conninfo text NOT NULL
);
COMMENT ON TABLE  bucardo.db_secret          IS 'The whole conninfos, passwords included; for the owner alone.';
COMMENT ON COLUMN bucardo.db_secret.db       IS 'The member.';
COMMENT ON COLUMN bucardo.db_secret.conninfo IS 'Its conninfo as it was given.';

CREATE TABLE bucardo.dbgroup (
    name    text        PRIMARY KEY,
    created timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE  bucardo.dbgroup         IS 'Named lists of members with roles.';
COMMENT ON COLUMN bucardo.dbgroup.name    IS 'The name.';
COMMENT ON COLUMN bucardo.dbgroup.created IS 'When it was added.';

CREATE TABLE bucardo.dbmap (
    dbgroup  text    NOT NULL REFERENCES bucardo.dbgroup ON DELETE CASCADE ON UPDATE CASCADE,
    db       text    NOT NULL REFERENCES bucardo.db ON UPDATE CASCADE,
    role     text    NOT NULL CHECK (role IN ('source', 'target', 'fullcopy')),
    priority integer NOT NULL DEFAULT 0,
    PRIMARY KEY (dbgroup, db)
);
COMMENT ON TABLE  bucardo.dbmap          IS 'Which member is in which dbgroup, and in what role.';
COMMENT ON COLUMN bucardo.dbmap.dbgroup  IS 'The dbgroup.';
COMMENT ON COLUMN bucardo.dbmap.db       IS 'The member.';
COMMENT ON COLUMN bucardo.dbmap.role     IS 'source, target or fullcopy.';
COMMENT ON COLUMN bucardo.dbmap.priority IS 'Its place in the list, from 0.';
CREATE INDEX dbmap_db ON bucardo.dbmap (db);

CREATE TABLE bucardo.cleanup (
    id        bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    control   text        NOT NULL,
    db        text        NOT NULL,
    conninfo  text        NOT NULL,
    sync      text,
    queued_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE  bucardo.cleanup           IS 'Capture that the master must still take off a member; for the owner alone.';
COMMENT ON COLUMN bucardo.cleanup.id        IS 'Its number.';
COMMENT ON COLUMN bucardo.cleanup.control   IS 'The control database (control.id) whose capture it is.';
COMMENT ON COLUMN bucardo.cleanup.db        IS 'The short name that the member had; it need not be a member any more.';
COMMENT ON COLUMN bucardo.cleanup.conninfo  IS 'The whole conninfo that it had.';
COMMENT ON COLUMN bucardo.cleanup.sync      IS 'Whose capture goes; null: everything of this control database.';
COMMENT ON COLUMN bucardo.cleanup.queued_at IS 'Since when it waits.';
