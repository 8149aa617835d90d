-- Customcode, customname and customcols: what a user changes of a run's way. Customcode is written by src/api/customcode.rs
-- and read by src/catalog/customcode.rs; the other two are empty, until there is something that obeys them. Functions, roles and
-- a customcode's relation stand here by name, not by number, so that a dump means the same elsewhere.
-- A null db or sync means every one; the narrowest row wins.

CREATE TABLE bucardo.customcode (
    name     text        PRIMARY KEY,
    whenrun  text        NOT NULL CHECK (whenrun IN (
        'before_sync', 'before_txn', 'before_check_rows', 'before_trigger_disable', 'after_trigger_disable',
        'after_table_sync', 'conflict', 'exception', 'before_trigger_enable', 'after_trigger_enable',
        'after_txn', 'after_sync')),
    code     text,
    sql      text,
    db       text        REFERENCES bucardo.db ON DELETE CASCADE ON UPDATE CASCADE,
    sync     text        REFERENCES bucardo.sync ON DELETE CASCADE ON UPDATE CASCADE,
    relation text,
    priority integer     NOT NULL DEFAULT 0,
    status   text        NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'inactive')),
    owner    text        NOT NULL,
    created  timestamptz NOT NULL DEFAULT pg_catalog.now(),
    CHECK ((code IS NULL) <> (sql IS NULL))
);
COMMENT ON TABLE  bucardo.customcode          IS 'Code of the user''s that runs at named places of a run.';
COMMENT ON COLUMN bucardo.customcode.name     IS 'The name.';
COMMENT ON COLUMN bucardo.customcode.whenrun  IS 'The place of a run.';
COMMENT ON COLUMN bucardo.customcode.code     IS 'The function, with its schema and its argument types, quoted where needed; or null.';
COMMENT ON COLUMN bucardo.customcode.sql      IS 'The statements that run as they are; or null.';
COMMENT ON COLUMN bucardo.customcode.db       IS 'The member on which sql runs; null: all.';
COMMENT ON COLUMN bucardo.customcode.sync     IS 'The sync; null: all.';
COMMENT ON COLUMN bucardo.customcode.relation IS 'The relation, as schema.table, quoted where needed; null: all.';
COMMENT ON COLUMN bucardo.customcode.priority IS 'Lower ones run first.';
COMMENT ON COLUMN bucardo.customcode.status   IS 'active or inactive.';
COMMENT ON COLUMN bucardo.customcode.owner    IS 'The role that registered it, with whose rights it runs.';
COMMENT ON COLUMN bucardo.customcode.created  IS 'When it was added.';

CREATE TABLE bucardo.customname (
    id       integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    relation integer NOT NULL REFERENCES bucardo.relation ON DELETE CASCADE,
    newname  text    NOT NULL,
    db       text    REFERENCES bucardo.db ON DELETE CASCADE ON UPDATE CASCADE,
    sync     text    REFERENCES bucardo.sync ON DELETE CASCADE ON UPDATE CASCADE
);
COMMENT ON TABLE  bucardo.customname          IS 'Relations that have another name on members that are not sources.';
COMMENT ON COLUMN bucardo.customname.id       IS 'Its number.';
COMMENT ON COLUMN bucardo.customname.relation IS 'The relation''s number.';
COMMENT ON COLUMN bucardo.customname.newname  IS 'The name there.';
COMMENT ON COLUMN bucardo.customname.db       IS 'The member; null: all.';
COMMENT ON COLUMN bucardo.customname.sync     IS 'The sync; null: all.';
CREATE UNIQUE INDEX customname_place ON bucardo.customname (relation, (COALESCE(db, '')), (COALESCE(sync, '')));

CREATE TABLE bucardo.customcols (
    id       integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    relation integer NOT NULL REFERENCES bucardo.relation ON DELETE CASCADE,
    clause   text    NOT NULL,
    db       text    REFERENCES bucardo.db ON DELETE CASCADE ON UPDATE CASCADE,
    sync     text    REFERENCES bucardo.sync ON DELETE CASCADE ON UPDATE CASCADE
);
COMMENT ON TABLE  bucardo.customcols          IS 'Relations of which other columns than the table''s own are sent.';
COMMENT ON COLUMN bucardo.customcols.id       IS 'Its number.';
COMMENT ON COLUMN bucardo.customcols.relation IS 'The relation''s number.';
COMMENT ON COLUMN bucardo.customcols.clause   IS 'The select list.';
COMMENT ON COLUMN bucardo.customcols.db       IS 'The member; null: all.';
COMMENT ON COLUMN bucardo.customcols.sync     IS 'The sync; null: all.';
CREATE UNIQUE INDEX customcols_place ON bucardo.customcols (relation, (COALESCE(db, '')), (COALESCE(sync, '')));
