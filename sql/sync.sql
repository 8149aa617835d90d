-- The syncs. Written by src/api/sync.rs, read by the master as a whole (src/catalog/sync.rs).
-- Every option of add_sync has its column here, with the same name and default.

CREATE TABLE bucardo.sync (
    id                 integer     GENERATED ALWAYS AS IDENTITY UNIQUE,
    name               text        PRIMARY KEY,
    dbgroup            text        NOT NULL REFERENCES bucardo.dbgroup ON UPDATE CASCADE,
    relgroup           text        NOT NULL REFERENCES bucardo.relgroup ON UPDATE CASCADE,
    own_dbgroup        boolean     NOT NULL DEFAULT false,
    own_relgroup       boolean     NOT NULL DEFAULT false,
    conflict_strategy  text        NOT NULL DEFAULT 'bucardo_latest',
    onetimecopy        integer     NOT NULL DEFAULT 0 CHECK (onetimecopy BETWEEN 0 AND 2),
    autokick           boolean     NOT NULL DEFAULT true,
    checktime          interval    CHECK (checktime > interval '0'),
    stayalive          boolean     NOT NULL DEFAULT true,
    kidsalive          boolean     NOT NULL DEFAULT true,
    lifetime           interval    CHECK (lifetime > interval '0'),
    maxkicks           integer     NOT NULL DEFAULT 0 CHECK (maxkicks >= 0),
    isolation_level    text        NOT NULL DEFAULT 'repeatable read' CHECK (isolation_level IN ('repeatable read', 'serializable')),
    deletemethod       text        NOT NULL DEFAULT 'delete' CHECK (deletemethod IN ('delete', 'truncate', 'truncate_cascade')),
    rebuild_index      boolean     NOT NULL DEFAULT false,
    analyze_after_copy boolean     NOT NULL DEFAULT true,
    vacuum_after_copy  boolean     NOT NULL DEFAULT false,
    strict_checking    boolean     NOT NULL DEFAULT true,
    priority           integer     NOT NULL DEFAULT 0,
    status             text        NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'inactive')),
    paused             boolean     NOT NULL DEFAULT false,
    created            timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE  bucardo.sync                    IS 'The syncs: what goes between which members, and how.';
COMMENT ON COLUMN bucardo.sync.id                 IS 'Its number.';
COMMENT ON COLUMN bucardo.sync.name               IS 'The name.';
COMMENT ON COLUMN bucardo.sync.dbgroup            IS 'Its members.';
COMMENT ON COLUMN bucardo.sync.relgroup           IS 'Its relations.';
COMMENT ON COLUMN bucardo.sync.own_dbgroup        IS 'Whether the dbgroup was made by add_sync and goes with the sync, or with the last that uses it.';
COMMENT ON COLUMN bucardo.sync.own_relgroup       IS 'Whether the relgroup was made by add_sync and goes with the sync, or with the last that uses it.';
COMMENT ON COLUMN bucardo.sync.conflict_strategy  IS 'How conflicts are decided.';
COMMENT ON COLUMN bucardo.sync.onetimecopy        IS '1 or 2: the next run copies all rows; then it is 0 again.';
COMMENT ON COLUMN bucardo.sync.autokick           IS 'Whether changes start a run by themselves.';
COMMENT ON COLUMN bucardo.sync.checktime          IS 'It runs at least this often; null: only when kicked.';
COMMENT ON COLUMN bucardo.sync.stayalive          IS 'Whether the member connections are kept between runs.';
COMMENT ON COLUMN bucardo.sync.kidsalive          IS 'Whether the kid is kept between runs.';
COMMENT ON COLUMN bucardo.sync.lifetime           IS 'The kid is replaced after this time; null: never.';
COMMENT ON COLUMN bucardo.sync.maxkicks           IS 'The kid is replaced after so many runs; 0: never.';
COMMENT ON COLUMN bucardo.sync.isolation_level    IS 'Of the transactions on the members: repeatable read or serializable.';
COMMENT ON COLUMN bucardo.sync.deletemethod       IS 'How a full copy empties a table: delete, truncate or truncate_cascade.';
COMMENT ON COLUMN bucardo.sync.rebuild_index      IS 'Whether a full copy builds the indexes anew.';
COMMENT ON COLUMN bucardo.sync.analyze_after_copy IS 'Whether ANALYZE follows a full copy.';
COMMENT ON COLUMN bucardo.sync.vacuum_after_copy  IS 'Whether VACUUM follows a full copy.';
COMMENT ON COLUMN bucardo.sync.strict_checking    IS 'Whether NOT NULL, defaults and extra columns must agree.';
COMMENT ON COLUMN bucardo.sync.priority           IS 'Higher ones run first when kids are scarce.';
COMMENT ON COLUMN bucardo.sync.status             IS 'active or inactive.';
COMMENT ON COLUMN bucardo.sync.paused             IS 'Whether it is paused: by bucardo.pause(), or by itself after bucardo_abort.';
COMMENT ON COLUMN bucardo.sync.created            IS 'When it was added.';
CREATE INDEX sync_dbgroup ON bucardo.sync (dbgroup);
CREATE INDEX sync_relgroup ON bucardo.sync (relgroup);
