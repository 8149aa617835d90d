-- Tables and sequences, and the named, ordered lists of them. Written by src/api/relgroup.rs, table.rs and tables.rs.
-- A relation stands here once, however many relgroups hold it; its options belong to its place in a relgroup.

CREATE TABLE bucardo.relgroup (
    name    text        PRIMARY KEY,
    created timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE  bucardo.relgroup         IS 'Named, ordered lists of relations.';
COMMENT ON COLUMN bucardo.relgroup.name    IS 'The name.';
COMMENT ON COLUMN bucardo.relgroup.created IS 'When it was added.';

CREATE TABLE bucardo.relation (
    id         integer     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    db         text        REFERENCES bucardo.db ON DELETE SET NULL ON UPDATE CASCADE,
    schemaname text,
    relname    text        NOT NULL,
    kind       text        NOT NULL CHECK (kind IN ('table', 'sequence')),
    created    timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE  bucardo.relation            IS 'Tables and sequences that take part.';
COMMENT ON COLUMN bucardo.relation.id         IS 'Its number.';
COMMENT ON COLUMN bucardo.relation.db         IS 'The member on which it was looked up; null: not yet.';
COMMENT ON COLUMN bucardo.relation.schemaname IS 'Its schema; null: given without one and not looked up yet.';
COMMENT ON COLUMN bucardo.relation.relname    IS 'Its name.';
COMMENT ON COLUMN bucardo.relation.kind       IS 'table or sequence.';
COMMENT ON COLUMN bucardo.relation.created    IS 'When it was added.';
CREATE UNIQUE INDEX relation_name ON bucardo.relation (relname, (COALESCE(schemaname, '')), kind);
CREATE INDEX relation_db ON bucardo.relation (db);

CREATE TABLE bucardo.relmap (
    relgroup          text    NOT NULL REFERENCES bucardo.relgroup ON DELETE CASCADE ON UPDATE CASCADE,
    relation          integer NOT NULL REFERENCES bucardo.relation,
    pkey              text,
    conflict_strategy text,
    makedelta         boolean,
    strict_checking   boolean,
    rebuild_index     boolean,
    autokick          boolean,
    priority          integer NOT NULL DEFAULT 0,
    position          bigint  GENERATED ALWAYS AS IDENTITY,
    PRIMARY KEY (relgroup, relation)
);
COMMENT ON TABLE  bucardo.relmap                   IS 'Which relation is in which relgroup; null options inherit the sync''s.';
COMMENT ON COLUMN bucardo.relmap.relgroup          IS 'The relgroup.';
COMMENT ON COLUMN bucardo.relmap.relation          IS 'The relation''s number.';
COMMENT ON COLUMN bucardo.relmap.pkey              IS 'The unique index that serves as key; null: the primary key, else the narrowest that can.';
COMMENT ON COLUMN bucardo.relmap.conflict_strategy IS 'How conflicts of this relation are decided.';
COMMENT ON COLUMN bucardo.relmap.makedelta         IS 'Whether rows written by replication are captured again.';
COMMENT ON COLUMN bucardo.relmap.strict_checking   IS 'Whether NOT NULL, defaults and extra columns must agree.';
COMMENT ON COLUMN bucardo.relmap.rebuild_index     IS 'Whether a full copy builds the indexes anew.';
COMMENT ON COLUMN bucardo.relmap.autokick          IS 'Whether changes of this relation start a run by themselves.';
COMMENT ON COLUMN bucardo.relmap.priority          IS 'Higher ones come first in a run.';
COMMENT ON COLUMN bucardo.relmap.position          IS 'The order of adding, which decides between equal priorities.';
CREATE INDEX relmap_relation ON bucardo.relmap (relation);
