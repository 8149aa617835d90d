-- What happened: the runs, and the conflicts that they decided. Written by master and kid, emptied by age, and by
-- remove_sync. Nothing decides by these tables, but by bucardo.doubt: a run's progress is kept at the members. No foreign
-- keys: a kid must not wait for whoever changes the catalog.

CREATE SEQUENCE bucardo.syncrun_run_seq;

CREATE TABLE bucardo.syncrun (
    run       bigint      PRIMARY KEY DEFAULT pg_catalog.nextval('bucardo.syncrun_run_seq'),
    sync      text        NOT NULL,
    state     text        NOT NULL,
    started   timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    ended     timestamptz,
    upserts   bigint      NOT NULL DEFAULT 0,
    deletes   bigint      NOT NULL DEFAULT 0,
    truncates bigint      NOT NULL DEFAULT 0,
    conflicts bigint      NOT NULL DEFAULT 0,
    error     text,
    sqlstate  text,
    details   jsonb
);
ALTER SEQUENCE bucardo.syncrun_run_seq OWNED BY bucardo.syncrun.run;
COMMENT ON TABLE  bucardo.syncrun           IS 'The runs, for as long as bucardo.history_retention says.';
COMMENT ON COLUMN bucardo.syncrun.run       IS 'Its number.';
COMMENT ON COLUMN bucardo.syncrun.sync      IS 'The sync.';
COMMENT ON COLUMN bucardo.syncrun.state     IS 'running, good, empty, bad, …';
COMMENT ON COLUMN bucardo.syncrun.started   IS 'When it began.';
COMMENT ON COLUMN bucardo.syncrun.ended     IS 'When it ended.';
COMMENT ON COLUMN bucardo.syncrun.upserts   IS 'Rows inserted and updated, summed over the members.';
COMMENT ON COLUMN bucardo.syncrun.deletes   IS 'Rows deleted, summed over the members.';
COMMENT ON COLUMN bucardo.syncrun.truncates IS 'Tables truncated, summed over the members.';
COMMENT ON COLUMN bucardo.syncrun.conflicts IS 'Conflicts decided.';
COMMENT ON COLUMN bucardo.syncrun.error     IS 'Why it is bad: member, relation, message.';
COMMENT ON COLUMN bucardo.syncrun.sqlstate  IS 'The SQLSTATE of that error.';
COMMENT ON COLUMN bucardo.syncrun.details   IS 'Where the time went, by phase and relation.';
CREATE INDEX syncrun_sync ON bucardo.syncrun (sync, run DESC);

CREATE TABLE bucardo.seen (
    sync     integer NOT NULL,
    db       text    NOT NULL,
    identity text    NOT NULL,
    place    text    NOT NULL,
    run      bigint,
    PRIMARY KEY (sync, db)
) WITH (fillfactor = 50);
COMMENT ON TABLE  bucardo.seen          IS 'Where each member was when a run of a sync had committed there: what it has lost since is recognised by that.';
COMMENT ON COLUMN bucardo.seen.sync     IS 'The sync.';
COMMENT ON COLUMN bucardo.seen.db       IS 'The member.';
COMMENT ON COLUMN bucardo.seen.identity IS 'Which database it was: system identifier / oid.';
COMMENT ON COLUMN bucardo.seen.place    IS 'Up to where its log was safe, and when: timeline:location:seconds; empty: it was removed.';
COMMENT ON COLUMN bucardo.seen.run      IS 'The last run in which it and all other members have committed.';

CREATE TABLE bucardo.conflict (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run        bigint      NOT NULL,
    sync       text        NOT NULL,
    relation   text        NOT NULL,
    key        jsonb       NOT NULL,
    strategy   text        NOT NULL,
    winner     text,
    rows       jsonb       NOT NULL,
    decided_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
COMMENT ON TABLE  bucardo.conflict            IS 'Every decision of a conflict; holds images of rows, so nobody is granted it.';
COMMENT ON COLUMN bucardo.conflict.id         IS 'Its number.';
COMMENT ON COLUMN bucardo.conflict.run        IS 'The run that decided it.';
COMMENT ON COLUMN bucardo.conflict.sync       IS 'The sync.';
COMMENT ON COLUMN bucardo.conflict.relation   IS 'The relation, as schema.name.';
COMMENT ON COLUMN bucardo.conflict.key        IS 'An object of the key columns.';
COMMENT ON COLUMN bucardo.conflict.strategy   IS 'What decided.';
COMMENT ON COLUMN bucardo.conflict.winner     IS 'The source that won; null: nobody.';
COMMENT ON COLUMN bucardo.conflict.rows       IS 'Each contending source''s row as it was; null for a deletion.';
COMMENT ON COLUMN bucardo.conflict.decided_at IS 'When.';
CREATE TABLE bucardo.doubt (
    id      bigint GENERATED ALWAYS AS IDENTITY,
    sync    text   NOT NULL,
    run     bigint NOT NULL,
    since   bigint NOT NULL,
    sources jsonb  NOT NULL,
    made    jsonb  NOT NULL,
    PRIMARY KEY (sync, run, id)
);
COMMENT ON TABLE  bucardo.doubt         IS 'Runs that have decided conflicts and that not all sources are known to have committed.';
COMMENT ON COLUMN bucardo.doubt.id      IS 'The part: many decisions are recorded in several.';
COMMENT ON COLUMN bucardo.doubt.sync    IS 'The sync.';
COMMENT ON COLUMN bucardo.doubt.run     IS 'The run, as in bucardo.conflict.';
COMMENT ON COLUMN bucardo.doubt.since   IS 'The newest decision before its first.';
COMMENT ON COLUMN bucardo.doubt.sources IS 'The sources that took part, with their snapshots and where their logs were; in no part any: nobody was told to commit.';
COMMENT ON COLUMN bucardo.doubt.made    IS 'Rows that it has written beside the winners'' changes.';
