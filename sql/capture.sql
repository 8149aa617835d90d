-- What stands on every source: where the keys of changed rows are written down, and how far each receiver was served.
-- Part of the extension, and sent as it is to a source that does not have the extension; so nothing here may need more
-- than PostgreSQL 13 and a superuser, and everything may be run again. It must never collide with a Bucardo 5 in the
-- same schema (delta_*, track_*, stage_*, bucardo_*).
--
-- A delta holds one key in k1, k2 and so on, or, where a statement changed many rows, many keys in the arrays ks1, ks2:
-- a thousand keys then cost as much as a few rows. Keys of array types have no such arrays, and composite ones would fall
-- apart in unnest: neither is ever batched.
--
-- A delta is unserved for a receiver iff the reader sees it and its xid was not visible in the snapshot that the
-- receiver was served last: xid >= xmax or xid in xip. Order and time decide nothing.

-- Where the extension comes to a database that is a source already, what stands here becomes part of it. Else its script
-- could not touch it, and DROP EXTENSION would leave it behind. Only what a superuser or the caller owns: anybody who may make a
-- schema could else lay functions here that are called with more rights than his own.
DO $body$
DECLARE
    o record;
BEGIN
    IF to_regclass('bucardo.capture_sync') IS NULL OR NOT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'bucardo') THEN
        RETURN;
    END IF;
    PERFORM pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('bucardo capture', 0));
    IF EXISTS (SELECT FROM (SELECT n.nspowner FROM pg_catalog.pg_namespace n WHERE n.nspname = 'bucardo'
                  UNION SELECT r.relowner FROM pg_catalog.pg_class r WHERE r.relnamespace = 'bucardo'::pg_catalog.regnamespace
                  UNION SELECT p.proowner FROM pg_catalog.pg_proc p WHERE p.pronamespace = 'bucardo'::pg_catalog.regnamespace) x(owner)
               JOIN pg_catalog.pg_roles a ON a.oid = x.owner WHERE NOT a.rolsuper AND a.rolname <> current_user) THEN
        RETURN;
    END IF;
    FOR o IN SELECT CASE r.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind, r.oid::pg_catalog.regclass::text AS name
               FROM pg_catalog.pg_class r WHERE r.relnamespace = 'bucardo'::pg_catalog.regnamespace
                AND CASE r.relkind WHEN 'S' THEN r.relname ~ '^seg[0-9]+_active$' WHEN 'r' THEN r.relname ~ '^(seg[0-9]+_|capture$|capture_)' END
              UNION ALL SELECT 'FUNCTION', p.oid::pg_catalog.regprocedure::text
               FROM pg_catalog.pg_proc p WHERE p.pronamespace = 'bucardo'::pg_catalog.regnamespace AND p.proname LIKE 'capture\_%' LOOP
        EXECUTE pg_catalog.format('ALTER EXTENSION bucardo ADD %s %s', o.kind, o.name);
    END LOOP;
END
$body$;

CREATE TABLE IF NOT EXISTS bucardo.capture (
    id         integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    relid      oid     NOT NULL UNIQUE,
    schemaname text    NOT NULL,
    relname    text    NOT NULL,
    keys       text[]  NOT NULL,
    key_types  text[]  NOT NULL,
    native     boolean NOT NULL,
    by_row     boolean NOT NULL,
    batched    boolean NOT NULL,
    active     oid     NOT NULL,
    segments   oid[]   NOT NULL
);
COMMENT ON TABLE bucardo.capture IS 'The captured tables of this database, with the segments that hold their deltas.';
-- Each run asks whether there are any.
CREATE INDEX IF NOT EXISTS capture_plain ON bucardo.capture (id) WHERE NOT native;

CREATE TABLE IF NOT EXISTS bucardo.capture_sync (
    capture integer NOT NULL REFERENCES bucardo.capture ON DELETE CASCADE,
    control text    NOT NULL,
    sync    text    NOT NULL,
    since   text    NOT NULL,
    PRIMARY KEY (capture, control, sync)
);
COMMENT ON TABLE bucardo.capture_sync IS 'Which syncs of which control databases need a captured table.';
CREATE INDEX IF NOT EXISTS capture_sync_sync ON bucardo.capture_sync (control, sync);

CREATE TABLE IF NOT EXISTS bucardo.capture_track (
    control  text        NOT NULL,
    sync     text        NOT NULL,
    source   text        NOT NULL,
    member   text        NOT NULL,
    served   text        NOT NULL,
    identity text,
    at       timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (control, sync, source, member)
) WITH (fillfactor = 50);
COMMENT ON TABLE bucardo.capture_track IS 'How far each receiver has been served: the snapshot of its last run.';
-- Whether the receiver gets whole tables in its next run, whatever is captured; 'empty': only those that are empty there.
ALTER TABLE bucardo.capture_track ADD COLUMN IF NOT EXISTS copy text CHECK (copy IN ('all', 'empty'));
-- Which database the receiver was and where its log was when it had committed that: "identity place". The control database has
-- that too, but fails over with a receiver that stands beside it, and forgets then what the receiver has lost.
ALTER TABLE bucardo.capture_track ADD COLUMN IF NOT EXISTS place text;

-- For a receiver that is itself a source: written in the transaction that brings the rows, so that what has arrived is
-- never decided again, whatever dies when. It goes before the source's own capture_track, unless that source has become
-- another server (identity).
CREATE TABLE IF NOT EXISTS bucardo.capture_progress (
    control  text   NOT NULL,
    sync     text   NOT NULL,
    source   text   NOT NULL,
    member   text   NOT NULL,
    served   text   NOT NULL,
    identity text   NOT NULL,
    run      bigint NOT NULL,
    PRIMARY KEY (control, sync, source, member)
) WITH (fillfactor = 50);
COMMENT ON TABLE bucardo.capture_progress IS 'How far this database has been served by the other sources of a sync.';

CREATE TABLE IF NOT EXISTS bucardo.capture_settled (
    control  text   NOT NULL,
    sync     text   NOT NULL,
    relid    oid    NOT NULL,
    snapshot text   NOT NULL,
    keys     jsonb  NOT NULL
);
COMMENT ON TABLE bucardo.capture_settled IS 'Changes of this database that lost a conflict: they are handled for everybody, also for who was away.';
-- Sources that were away when nobody won: against what they have changed themselves, such a change still contends.
ALTER TABLE bucardo.capture_settled ADD COLUMN IF NOT EXISTS open text[] NOT NULL DEFAULT '{}';

-- Of a source that is away: its changes of these keys up to what it had served to who gave the rows. Kept until the source
-- has served this database itself, and nobody who is away waits there for these changes.
CREATE TABLE IF NOT EXISTS bucardo.capture_heard (
    control  text    NOT NULL,
    sync     text    NOT NULL,
    relid    oid     NOT NULL,
    source   text    NOT NULL,
    served   text    NOT NULL,
    identity text    NOT NULL,
    keys     jsonb   NOT NULL,
    -- Whether who gave the rows has written upon these changes what their author has not got.
    older    boolean NOT NULL
);
COMMENT ON TABLE bucardo.capture_heard IS 'Changes of other sources that this database has got by way of a third one.';

CREATE TABLE IF NOT EXISTS bucardo.capture_mark (
    id     bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    relid  oid         NOT NULL,
    kind   text        NOT NULL CHECK (kind IN ('truncate', 'whole')),
    xid    bigint      NOT NULL,
    at     timestamptz NOT NULL,
    origin text
);
CREATE INDEX IF NOT EXISTS capture_mark_relid ON bucardo.capture_mark (relid, xid);
COMMENT ON TABLE bucardo.capture_mark IS 'What concerns a whole table: it was truncated, or every row of it may have changed.';
-- Of a TRUNCATE that a run has brought: in which database it began, and the number of its mark there.
ALTER TABLE bucardo.capture_mark ADD COLUMN IF NOT EXISTS root text, ADD COLUMN IF NOT EXISTS serial bigint;

-- What came from one database came in its order: a TRUNCATE that is older than the last one of its root has nothing to
-- empty any more. So there is one row for each table and root, also when all marks are purged.
CREATE TABLE IF NOT EXISTS bucardo.capture_root (
    relid  oid    NOT NULL,
    root   text   NOT NULL,
    serial bigint NOT NULL,
    PRIMARY KEY (relid, root)
);
COMMENT ON TABLE bucardo.capture_root IS 'The last TRUNCATE of each table that runs have brought from each database, so that it comes once, whichever ways syncs take.';

-- Native capture names here each segment that it writes into, in the transaction that does, so that idle tables cost a
-- reader nothing: no row here, no delta there. A writer leaves it out only when it sees a committed row for the file
-- that it writes into (a TRUNCATE gives the segment another file), so whoever sees a delta sees such a row too.
CREATE TABLE IF NOT EXISTS bucardo.capture_touched (
    capture integer NOT NULL,
    file    oid     NOT NULL
);
CREATE INDEX IF NOT EXISTS capture_touched_capture ON bucardo.capture_touched (capture, file);
COMMENT ON TABLE bucardo.capture_touched IS 'The files of segments that native capture has written into.';

-- Where a publication publishes deletes, they are refused on tables that have no replica identity.
DO $body$
DECLARE
    o record;
BEGIN
    FOR o IN SELECT r.oid::pg_catalog.regclass AS name FROM pg_catalog.pg_class r WHERE r.relnamespace = 'bucardo'::pg_catalog.regnamespace
              AND r.relname IN ('capture_settled', 'capture_heard', 'capture_touched') AND r.relreplident <> 'f' LOOP
        EXECUTE pg_catalog.format('ALTER TABLE %s REPLICA IDENTITY FULL', o.name);
    END LOOP;
END
$body$;

-- The version of these objects, so that an older set is brought up to date.
CREATE OR REPLACE FUNCTION bucardo.capture_version() RETURNS integer
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $body$ SELECT 20 $body$;

-- A name that fits into 63 bytes, cut at a character.
CREATE OR REPLACE FUNCTION bucardo.capture_clip(p_name text) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    WHILE octet_length(p_name) > 63 LOOP
        p_name := left(p_name, -1);
    END LOOP;
    RETURN p_name;
END
$body$;

-- Makes an object belong to the extension, if it is here: then DROP EXTENSION takes it along.
CREATE OR REPLACE FUNCTION bucardo.capture_adopt(p_kind text, p_name text, p_adopt boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'bucardo') THEN
        EXECUTE format('ALTER EXTENSION bucardo %s %s %s', CASE WHEN p_adopt THEN 'ADD' ELSE 'DROP' END, p_kind, p_name);
    END IF;
END
$body$;

-- Tells the master here, if there is one, that something is captured.
CREATE OR REPLACE FUNCTION bucardo.capture_tell() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    IF to_regprocedure('bucardo.capture_wake()') IS NOT NULL THEN
        EXECUTE 'SELECT bucardo.capture_wake()';
    END IF;
END
$body$;

-- Every row of the table may have changed, in a way that single deltas cannot say. Once for each transaction, unless it
-- truncates the table in between: what marks may be called for each row.
CREATE OR REPLACE FUNCTION bucardo.capture_whole(p_rel oid) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    INSERT INTO bucardo.capture_mark (relid, kind, xid, at)
    SELECT c.relid, 'whole', pg_current_xact_id()::text::bigint, clock_timestamp() FROM bucardo.capture c
     WHERE (c.relid = p_rel OR c.relid IN (SELECT a.relid FROM pg_partition_ancestors(p_rel) a))
       AND (SELECT m.kind FROM bucardo.capture_mark m WHERE m.relid = c.relid AND m.xid = pg_current_xact_id()::text::bigint AND m.origin IS NULL
             ORDER BY m.id DESC LIMIT 1) IS DISTINCT FROM 'whole'
$body$;

-- Captures what a run writes here, for whom else it concerns: other syncs, or members that its source cannot reach any
-- more. p_query gives the columns k1, k2, ... of p_keys, and the time of each change as "at". Nothing is written for a
-- table that is not captured. How many were. p_xid: the transaction that it is to be taken for; null: this one.
CREATE OR REPLACE FUNCTION bucardo.capture_note_as(p_rel oid, p_keys text[], p_query text, p_origin text, p_xid bigint) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    c bucardo.capture;
    active integer;
    n bigint;
BEGIN
    SELECT * INTO c FROM bucardo.capture k WHERE k.relid = p_rel;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    EXECUTE format('SELECT last_value FROM %s', c.active::regclass) INTO active;
    EXECUTE format('INSERT INTO %s (%s, xid, at, origin, existed) SELECT %s, $2, q.at, $1, true FROM (%s) q',
        c.segments[active]::regclass,
        (SELECT string_agg('k' || ord, ', ' ORDER BY ord) FROM unnest(c.keys) WITH ORDINALITY u(k, ord)),
        (SELECT string_agg('q.k' || array_position(p_keys, k), ', ' ORDER BY ord) FROM unnest(c.keys) WITH ORDINALITY u(k, ord)),
        p_query) USING p_origin, coalesce(p_xid, pg_current_xact_id()::text::bigint);
    GET DIAGNOSTICS n = ROW_COUNT;
    IF n > 0 AND c.native THEN
        INSERT INTO bucardo.capture_touched VALUES (c.id, pg_relation_filenode(c.segments[active]));
    END IF;
    IF n > 0 THEN
        PERFORM bucardo.capture_tell();
    END IF;
    RETURN n;
END
$body$;

CREATE OR REPLACE FUNCTION bucardo.capture_note(p_rel oid, p_keys text[], p_query text, p_origin text) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $body$ SELECT bucardo.capture_note_as(p_rel, p_keys, p_query, p_origin, NULL) $body$;

-- What the root of a TRUNCATE that began here begins with. p_name: the control database and its name for this one, by which
-- databases that were made from one backup differ.
CREATE OR REPLACE FUNCTION bucardo.capture_self(p_name text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $body$
    SELECT concat(p_name, ':', (SELECT s.system_identifier FROM pg_control_system() s), '/', (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()), '/')
$body$;

-- The same for a TRUNCATE, once for each of the origins; none: it shall only be known here. False: it began here, or has been
-- here, or a later one of that root. p_at: the time of the original one, in microseconds since 1970.
DROP FUNCTION IF EXISTS bucardo.capture_note_truncate(oid, text);
CREATE OR REPLACE FUNCTION bucardo.capture_note_truncate(p_rel oid, p_root text, p_serial bigint, p_at bigint, p_origins text[], p_name text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    IF starts_with(p_root, bucardo.capture_self(p_name)) THEN
        RETURN false;
    END IF;
    IF NOT EXISTS (SELECT FROM bucardo.capture c WHERE c.relid = p_rel) THEN
        RETURN true;
    END IF;
    INSERT INTO bucardo.capture_root AS r VALUES (p_rel, p_root, p_serial)
        ON CONFLICT (relid, root) DO UPDATE SET serial = excluded.serial WHERE r.serial < excluded.serial;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO bucardo.capture_mark (relid, kind, xid, at, origin, root, serial)
        SELECT p_rel, 'truncate', pg_current_xact_id()::text::bigint, 'epoch'::timestamptz + p_at * '1 microsecond'::interval, o, p_root, p_serial
          FROM unnest(p_origins) o;
    IF FOUND THEN
        PERFORM bucardo.capture_tell();
    END IF;
    RETURN true;
END
$body$;

-- The same for a table of which a run has changed what single keys cannot say.
CREATE OR REPLACE FUNCTION bucardo.capture_note_whole(p_rel oid, p_origin text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    INSERT INTO bucardo.capture_mark (relid, kind, xid, at, origin)
        SELECT c.relid, 'whole', pg_current_xact_id()::text::bigint, clock_timestamp(), p_origin FROM bucardo.capture c WHERE c.relid = p_rel;
    IF FOUND THEN
        PERFORM bucardo.capture_tell();
    END IF;
END
$body$;

-- The TRUNCATE trigger of every captured table, and of the partitions of a captured one.
CREATE OR REPLACE FUNCTION bucardo.capture_truncated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    IF TG_NAME LIKE 'bucardo\_capture\_t%' THEN
        INSERT INTO bucardo.capture_mark (relid, kind, xid, at)
            VALUES (TG_RELID, 'truncate', pg_current_xact_id()::text::bigint, clock_timestamp());
    ELSE
        PERFORM bucardo.capture_whole(TG_RELID);
    END IF;
    PERFORM bucardo.capture_tell();
    RETURN NULL;
END
$body$;

-- Whether rows of a table can change by statements on another one, its parent: then only row triggers notice.
CREATE OR REPLACE FUNCTION bucardo.capture_needs_rows(p_rel oid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $body$
    SELECT r.relkind = 'p' OR r.relispartition OR EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = r.oid OR i.inhparent = r.oid)
      FROM pg_class r WHERE r.oid = p_rel
$body$;

-- Puts the triggers on a captured table, and the function that they call, if it is not the extension's.
CREATE OR REPLACE FUNCTION bucardo.capture_triggers(c bucardo.capture) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    called text; event record; names text[];
BEGIN
    IF c.native THEN
        names := format('seg%s_active', c.id) || ARRAY(SELECT s.relname::text FROM unnest(c.segments) WITH ORDINALITY u(o, ord) JOIN pg_class s ON s.oid = o ORDER BY ord) || c.keys;
        -- In one argument, if no name has a space in it: each statement copies all arguments of all triggers.
        called := (SELECT format('bucardo.capture(%s)', CASE WHEN bool_or(n LIKE '% %') THEN string_agg(quote_literal(n), ', ' ORDER BY ord)
                          ELSE quote_literal(string_agg(n, ' ' ORDER BY ord)) END)
                     FROM unnest(names) WITH ORDINALITY u(n, ord));
    ELSE
        called := bucardo.capture_function(c);
    END IF;
    FOR event IN SELECT * FROM (VALUES ('i', 'INSERT', 'NEW TABLE AS bucardo_new'), ('u', 'UPDATE', 'OLD TABLE AS bucardo_old NEW TABLE AS bucardo_new'),
            ('d', 'DELETE', 'OLD TABLE AS bucardo_old'), ('t', 'TRUNCATE', NULL)) v(letter, name, tables) LOOP
        EXECUTE format('CREATE TRIGGER bucardo_capture_%s%s AFTER %s ON %s %s EXECUTE FUNCTION %s', event.letter, c.id, event.name, c.relid::regclass,
            CASE WHEN event.name = 'TRUNCATE' THEN 'FOR EACH STATEMENT' WHEN c.by_row THEN 'FOR EACH ROW'
                 ELSE 'REFERENCING ' || event.tables || ' FOR EACH STATEMENT' END,
            CASE event.name WHEN 'TRUNCATE' THEN 'bucardo.capture_truncated()' ELSE called END);
        PERFORM bucardo.capture_bind(format('bucardo_capture_%s%s', event.letter, c.id), c.relid);
    END LOOP;
END
$body$;

-- Makes a table that is captured by plain SQL be captured by the extension from now on, into the same segments: the table
-- is locked meanwhile, so that nothing is lost and nothing travels again.
CREATE OR REPLACE FUNCTION bucardo.capture_convert(c bucardo.capture) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    o record;
BEGIN
    EXECUTE format('LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE', c.relid::regclass);
    FOR o IN SELECT format('bucardo_capture_%s%s', x, c.id) AS name FROM unnest(ARRAY['i', 'u', 'd', 't']) x LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', o.name, c.relid::regclass);
    END LOOP;
    FOR o IN SELECT p.oid::regprocedure AS name FROM pg_proc p
             WHERE p.pronamespace = 'bucardo'::regnamespace AND p.proname LIKE format('seg%s\_capture\_%%', c.id) LOOP
        EXECUTE format('DROP FUNCTION %s', o.name);
    END LOOP;
    UPDATE bucardo.capture SET native = true WHERE id = c.id RETURNING * INTO c;
    INSERT INTO bucardo.capture_touched SELECT c.id, pg_relation_filenode(g) FROM unnest(c.segments) g;
    PERFORM bucardo.capture_triggers(c);
    -- What watches a partition must be younger than the triggers, or the partition would look like one that came back.
    FOR o IN SELECT g.tgname, g.tgrelid, g.tgrelid IN (SELECT t.relid FROM pg_partition_tree(c.relid) t) AS here
               FROM pg_trigger g WHERE g.tgname = format('bucardo_capture_root%s', c.id) LOOP
        IF o.here THEN
            EXECUTE format('DROP TRIGGER %I ON %s', o.tgname, o.tgrelid::regclass);
            PERFORM bucardo.capture_guard(c.id, o.tgrelid);
        ELSE
            PERFORM bucardo.capture_bind(o.tgname, o.tgrelid);
        END IF;
    END LOOP;
END
$body$;

-- The type under a domain. Segments have that one: a domain in them would be in the way of whoever alters it.
CREATE OR REPLACE FUNCTION bucardo.capture_base(p_type oid) RETURNS oid
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    base oid;
BEGIN
    LOOP
        SELECT t.typbasetype INTO base FROM pg_type t WHERE t.oid = p_type AND t.typtype = 'd';
        EXIT WHEN NOT FOUND;
        p_type := base;
    END LOOP;
    RETURN p_type;
END
$body$;

-- By which operator two values of a key column are equal: its unique index knows. Other types than the server's own have
-- theirs in any schema, which no search_path of ours names.
CREATE OR REPLACE FUNCTION bucardo.capture_equal(p_rel oid, p_key text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $body$
    SELECT coalesce((SELECT format('OPERATOR(%I.%s)', n.nspname, o.oprname)
          FROM pg_attribute a JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisunique
         CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[]) u(attnum, class)
          JOIN pg_opclass c ON c.oid = u.class
          JOIN pg_amop p ON p.amopfamily = c.opcfamily AND p.amopstrategy = 3 AND p.amoplefttype = c.opcintype AND p.amoprighttype = c.opcintype
          JOIN pg_operator o ON o.oid = p.amopopr JOIN pg_namespace n ON n.oid = o.oprnamespace
         WHERE a.attrelid = p_rel AND a.attname = p_key AND u.attnum = a.attnum ORDER BY i.indisprimary DESC, i.indexrelid LIMIT 1),
        'OPERATOR(pg_catalog.=)')
$body$;

-- Makes the segments, the sequence that names the active one, the function and the triggers of a captured table.
CREATE OR REPLACE FUNCTION bucardo.capture_build(p_rel oid, p_keys text[]) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    c bucardo.capture;
    kind "char";
    columns text; arrays text; stored text; base text; made oid[] := '{}'; event record; leafs oid;
BEGIN
    SELECT n.nspname, r.relname, r.relkind, bucardo.capture_needs_rows(r.oid) INTO STRICT c.schemaname, c.relname, kind, c.by_row
      FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace WHERE r.oid = p_rel;
    c.relid := p_rel;
    c.keys := p_keys;
    c.key_types := bucardo.capture_key_types(p_rel, p_keys);
    c.native := to_regprocedure('bucardo.capture()') IS NOT NULL;
    -- A restored dump has the triggers, but not what they write into.
    FOR event IN SELECT g.tgname FROM pg_trigger g WHERE g.tgrelid = p_rel AND g.tgparentid = 0 AND g.tgname ~ '^bucardo_capture_[iudt][0-9]+$' LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', event.tgname, p_rel::regclass);
    END LOOP;
    SELECT bool_and(t.typarray <> 0 AND t.typcategory <> 'C') INTO c.batched FROM unnest(p_keys) k
      JOIN pg_attribute a ON a.attrelid = p_rel AND a.attname = k JOIN pg_type t ON t.oid = bucardo.capture_base(a.atttypid);
    INSERT INTO bucardo.capture (relid, schemaname, relname, keys, key_types, native, by_row, batched, active, segments)
        VALUES (c.relid, c.schemaname, c.relname, c.keys, c.key_types, c.native, c.by_row, c.batched, 0, '{}') RETURNING id INTO c.id;
    -- Without a length: capture does not fail a statement because the key has become longer than it was.
    SELECT string_agg(format('k%s %s%s, ', ord, plain, collated), '' ORDER BY ord), string_agg(format(', ks%s %s[]%s', ord, plain, collated), '' ORDER BY ord),
           string_agg(format('ALTER k%s SET STATISTICS 0', ord) || CASE WHEN c.batched THEN format(', ALTER ks%1$s SET STORAGE EXTERNAL, ALTER ks%1$s SET STATISTICS 0', ord)
               ELSE '' END, ', ' ORDER BY ord)
      INTO columns, arrays, stored FROM unnest(p_keys) WITH ORDINALITY u(k, ord)
      JOIN pg_attribute a ON a.attrelid = p_rel AND a.attname = u.k CROSS JOIN LATERAL (SELECT format_type(bucardo.capture_base(a.atttypid), -1),
           coalesce(' COLLATE ' || nullif(a.attcollation, 0)::regcollation, '')) v(plain, collated);
    FOR i IN 1 .. 3 LOOP
        base := format('bucardo.%I', bucardo.capture_clip(format('seg%s_%s_%s_%s', c.id, i, c.schemaname, c.relname)));
        -- Arrays stay in the row as far as a page goes, and are never compressed; no statistics of values, for which functions of their
        -- type would be called. The native writer knows heaps only.
        EXECUTE format('CREATE TABLE %s (%sxid bigint, at timestamptz, origin text, existed boolean%s) USING heap '
            'WITH (autovacuum_enabled = false, toast_tuple_target = 8160)', base, columns, CASE WHEN c.batched THEN arrays ELSE '' END);
        EXECUTE format('ALTER TABLE %s %s', base, stored);
        PERFORM bucardo.capture_adopt('TABLE', base, true);
        made := made || base::regclass::oid;
    END LOOP;
    base := format('bucardo.seg%s_active', c.id);
    EXECUTE format('CREATE SEQUENCE %s MINVALUE 1 MAXVALUE 3 CYCLE', base);
    PERFORM bucardo.capture_adopt('SEQUENCE', base, true);
    UPDATE bucardo.capture SET active = base::regclass, segments = made WHERE id = c.id RETURNING * INTO c;
    PERFORM bucardo.capture_triggers(c);
    IF kind = 'p' THEN
        FOR leafs IN SELECT t.relid FROM pg_partition_tree(p_rel) t WHERE t.relid <> p_rel LOOP
            PERFORM bucardo.capture_guard(c.id, leafs);
        END LOOP;
    END IF;
    RETURN c.id;
END
$body$;

-- Watches a partition of a captured table for TRUNCATE: unlike row triggers, the trigger for that is not inherited.
CREATE OR REPLACE FUNCTION bucardo.capture_guard(p_id integer, p_partition oid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    EXECUTE format('CREATE TRIGGER bucardo_capture_root%s AFTER TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION bucardo.capture_truncated()',
        p_id, p_partition::regclass);
    PERFORM bucardo.capture_bind(format('bucardo_capture_root%s', p_id), p_partition);
END
$body$;

-- Whether a partition that was not there when its table was captured came to it with rows of its own, rather than being
-- made as a partition. The copies of the capture trigger tell when it came, the row of a system column, which nothing
-- ever changes, when the table was made. Within one transaction: an ATTACH writes the rows of all its columns anew.
CREATE OR REPLACE FUNCTION bucardo.capture_attached(p_id integer, p_root oid, p_partition oid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $body$
    SELECT coalesce(bool_or(CASE WHEN a.relid = p_partition AND g.xmin <> s.xmin THEN true
               ELSE g.xmin = o.xmin AND NOT EXISTS (SELECT FROM pg_attribute c
                    WHERE c.attrelid = a.relid AND c.attnum > 0 AND c.xmin = s.xmin AND c.cmin = s.cmin) END), true)
      FROM pg_partition_ancestors(p_partition) a
      JOIN pg_trigger g ON g.tgrelid = a.relid AND g.tgname = format('bucardo_capture_i%s', p_id)
      JOIN pg_trigger o ON o.tgrelid = p_partition AND o.tgname = g.tgname
      JOIN pg_attribute s ON s.attrelid = a.relid AND s.attnum = -1
     WHERE a.relid <> p_root AND p_root IN (SELECT b.relid FROM pg_partition_ancestors(a.relid) b)
$body$;

-- Does the same for partitions that were made or attached since; also for one that has left and come back, whose triggers
-- are younger than the one that watches it. One that came with rows, or that has another file than it was made with and so
-- may have been truncated before: then the whole table travels once. A partition that is busy waits for the next call.
CREATE OR REPLACE FUNCTION bucardo.capture_guard_new(p_control text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' AS $body$
DECLARE
    p record;
    filled boolean;
BEGIN
    FOR p IN SELECT c.id, c.relid AS root, t.relid, l.relkind, g.tgname AS guard FROM bucardo.capture c
               JOIN pg_class r ON r.oid = c.relid AND r.relkind = 'p'
              CROSS JOIN LATERAL pg_partition_tree(c.relid) t
               JOIN pg_class l ON l.oid = t.relid AND l.relkind IN ('r', 'p')
               LEFT JOIN pg_trigger g ON g.tgrelid = t.relid AND g.tgname = format('bucardo_capture_root%s', c.id)
              WHERE t.relid <> c.relid AND EXISTS (SELECT FROM bucardo.capture_sync s WHERE s.capture = c.id AND s.control = p_control)
                AND (g.oid IS NULL OR EXISTS (SELECT FROM pg_trigger i
                     WHERE i.tgrelid = t.relid AND i.tgname = format('bucardo_capture_i%s', c.id) AND i.oid > g.oid)) LOOP
        BEGIN
            IF p.guard IS NOT NULL THEN
                EXECUTE format('DROP TRIGGER %I ON %s', p.guard, p.relid::regclass);
            END IF;
            PERFORM bucardo.capture_guard(p.id, p.relid);
            -- All of this is asked under the trigger's lock, the file past all snapshots.
            filled := false;
            IF p.relkind = 'r' THEN
                EXECUTE format('SELECT EXISTS (SELECT FROM ONLY %s)', p.relid::regclass) INTO filled;
            END IF;
            IF pg_relation_filenode(p.relid) <> p.relid OR p.guard IS NOT NULL
                OR (filled AND bucardo.capture_attached(p.id, p.root, p.relid)) THEN
                PERFORM bucardo.capture_whole(p.relid);
                PERFORM bucardo.capture_tell();
            END IF;
        EXCEPTION WHEN lock_not_available OR deadlock_detected OR undefined_table OR duplicate_object THEN
            NULL;
        END;
    END LOOP;
END
$body$;

-- Whether a partition may have been truncated before it was watched.
CREATE OR REPLACE FUNCTION bucardo.capture_renewed(p_id integer, p_rel oid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $body$
    SELECT EXISTS (SELECT FROM pg_class r CROSS JOIN LATERAL pg_partition_tree(r.oid) t
        WHERE r.oid = p_rel AND r.relkind = 'p' AND t.isleaf AND pg_relation_filenode(t.relid) <> t.relid
          AND NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = t.relid AND g.tgname = format('bucardo_capture_root%s', p_id)))
$body$;

-- Makes DROP EXTENSION take the trigger along.
CREATE OR REPLACE FUNCTION bucardo.capture_bind(p_trigger text, p_rel oid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'bucardo') THEN
        EXECUTE format('ALTER TRIGGER %I ON %s DEPENDS ON EXTENSION bucardo', p_trigger, p_rel::regclass);
    END IF;
END
$body$;

-- What a segment and a capture function were made for. An operator in another schema is named in the function.
CREATE OR REPLACE FUNCTION bucardo.capture_key_types(p_rel oid, p_keys text[]) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $body$
    SELECT array_agg(a.atttypid || ':' || a.atttypmod || ':' || a.attcollation || CASE WHEN a.atttypid >= 16384
               THEN coalesce(':' || nullif(bucardo.capture_equal(p_rel, u.k), 'OPERATOR(pg_catalog.=)'), '') ELSE '' END ORDER BY u.ord)
      FROM unnest(p_keys) WITH ORDINALITY u(k, ord) JOIN pg_attribute a ON a.attrelid = p_rel AND a.attname = u.k AND NOT a.attisdropped
$body$;

-- Whether what a captured table's changes are written into is there. By name: in a restored dump the numbers may be those of other
-- objects.
CREATE OR REPLACE FUNCTION bucardo.capture_intact(c bucardo.capture) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $body$
    SELECT count(*) FILTER (WHERE s.oid = ANY (c.segments) AND s.relkind = 'r') = 3 AND count(*) FILTER (WHERE s.oid = c.active AND s.relkind = 'S') = 1
      FROM pg_class s WHERE s.oid = ANY (c.segments || c.active) AND s.relnamespace = 'bucardo'::regnamespace AND starts_with(s.relname, format('seg%s_', c.id))
$body$;

-- Takes capture off a table: triggers first, then what they wrote into.
CREATE OR REPLACE FUNCTION bucardo.capture_drop(p_id integer) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    c bucardo.capture;
    t record;
    o record;
BEGIN
    SELECT * INTO STRICT c FROM bucardo.capture WHERE id = p_id;
    FOR t IN SELECT g.tgname, g.tgrelid FROM pg_trigger g
             WHERE g.tgparentid = 0 AND g.tgname = ANY (ARRAY(SELECT format('bucardo_capture_%s%s', w, p_id) FROM unnest(ARRAY['i', 'u', 'd', 't', 'root']) w))
               AND (g.tgrelid = c.relid OR g.tgrelid = to_regclass(format('%I.%I', c.schemaname, c.relname)) OR g.tgrelid IN (SELECT s.relid FROM pg_partition_tree(c.relid) s)
                    -- A detached partition keeps this one.
                    OR (g.tgname LIKE '%root%' AND g.tgfoid = 'bucardo.capture_truncated()'::regprocedure))
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', t.tgname, t.tgrelid::regclass);
    END LOOP;
    FOR o IN SELECT p.oid::regprocedure AS name FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
             WHERE n.nspname = 'bucardo' AND p.proname LIKE format('seg%s\_capture\_%%', p_id) LOOP
        EXECUTE format('DROP FUNCTION %s', o.name);
    END LOOP;
    -- By name: in a restored dump the numbers are those of other objects.
    FOR o IN SELECT s.oid::regclass AS name, s.relkind FROM pg_class s WHERE s.relnamespace = 'bucardo'::regnamespace
              AND s.relkind IN ('r', 'S') AND s.relname LIKE format('seg%s\_%%', p_id) LOOP
        PERFORM bucardo.capture_adopt(CASE o.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, o.name::text, false);
        EXECUTE format('DROP %s %s', CASE o.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, o.name);
    END LOOP;
    DELETE FROM bucardo.capture_mark WHERE relid = c.relid;
    -- Keys as they were: whoever captures the table again sends all of it.
    DELETE FROM bucardo.capture_settled WHERE relid = c.relid;
    DELETE FROM bucardo.capture_heard WHERE relid = c.relid;
    DELETE FROM bucardo.capture_touched WHERE capture = p_id;
    DELETE FROM bucardo.capture WHERE id = p_id;
END
$body$;

-- What is wrong with the capture of a table; null: nothing. What ends in "disabled" somebody did on purpose.
CREATE OR REPLACE FUNCTION bucardo.capture_fault(p_capture bucardo.capture) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    t record;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_class WHERE oid = p_capture.relid) THEN
        RETURN 'the captured table is gone';
    END IF;
    -- Another table may have its name now, which is the one that members know.
    IF NOT EXISTS (SELECT FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace
                    WHERE r.oid = p_capture.relid AND r.relname = p_capture.relname AND n.nspname = p_capture.schemaname) THEN
        RETURN 'the captured table has another name now';
    END IF;
    IF NOT bucardo.capture_intact(p_capture) THEN
        RETURN 'what the changes of the captured table are written into is gone';
    END IF;
    IF p_capture.key_types IS DISTINCT FROM bucardo.capture_key_types(p_capture.relid, p_capture.keys) THEN
        RETURN 'the key of the captured table has changed';
    END IF;
    IF EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = p_capture.relid AND a.attname = ANY (p_capture.keys) AND NOT a.attnotnull) THEN
        RETURN 'the key of the captured table may be null';
    END IF;
    IF NOT p_capture.by_row AND bucardo.capture_needs_rows(p_capture.relid) THEN
        RETURN 'the captured table has got a parent or a child';
    END IF;
    IF p_capture.native AND to_regprocedure('bucardo.capture()') IS NULL THEN
        RETURN 'the native capture function is gone';
    END IF;
    FOR t IN SELECT w.name, g.tgenabled FROM (SELECT format('bucardo_capture_%s%s', x, p_capture.id) FROM unnest(ARRAY['i', 'u', 'd', 't']) x) w(name)
               LEFT JOIN pg_trigger g ON g.tgrelid = p_capture.relid AND g.tgname = w.name LOOP
        IF t.tgenabled IS NULL THEN
            RETURN format('the trigger %s is missing', t.name);
        ELSIF t.tgenabled IN ('D', 'R') THEN
            RETURN format('the trigger %s is disabled', t.name);
        END IF;
    END LOOP;
    IF NOT p_capture.native AND to_regprocedure('bucardo.capture()') IS NOT NULL THEN
        RETURN 'the extension has come, and does not capture the table';
    END IF;
    RETURN NULL;
END
$body$;

-- The captured tables of a sync with what is wrong with them.
CREATE OR REPLACE FUNCTION bucardo.capture_state(p_control text, p_sync text) RETURNS TABLE (relid oid, keys text, fault text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $body$
    SELECT c.relid, to_json(c.keys), bucardo.capture_fault(c)
      FROM bucardo.capture c JOIN bucardo.capture_sync s ON s.capture = c.id WHERE s.control = p_control AND s.sync = p_sync
$body$;

-- The syncs whose capture is broken in a way that a run mends. What needs no run for it is mended here.
CREATE OR REPLACE FUNCTION bucardo.capture_broken(p_control text) RETURNS SETOF text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    PERFORM bucardo.capture_guard_new(p_control);
    RETURN QUERY SELECT DISTINCT s.sync FROM bucardo.capture c JOIN bucardo.capture_sync s ON s.capture = c.id
        WHERE s.control = p_control AND bucardo.capture_fault(c) NOT LIKE '% disabled';
END
$body$;

-- Captures a table for a sync. Idempotent; p_whole: somebody may have written to it while it was not captured.
-- The caller sets lock_timeout: triggers need SHARE ROW EXCLUSIVE.
CREATE OR REPLACE FUNCTION bucardo.capture_add(p_control text, p_sync text, p_rel oid, p_keys text[], p_whole boolean)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    c bucardo.capture;
    gone bucardo.capture;
    users bucardo.capture_sync[];
    whole boolean := p_whole;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('bucardo capture', 0));
    -- A table of that name that was captured and dropped, or renamed: whoever needed it needs this one.
    FOR gone IN SELECT k.* FROM bucardo.capture k JOIN pg_class r ON r.oid = p_rel AND r.relname = k.relname
                  JOIN pg_namespace n ON n.oid = r.relnamespace AND n.nspname = k.schemaname
                 WHERE k.relid <> p_rel LOOP
        SELECT users || array_agg(s) INTO users FROM bucardo.capture_sync s WHERE s.capture = gone.id;
        PERFORM bucardo.capture_drop(gone.id);
        whole := true;
    END LOOP;
    SELECT * INTO c FROM bucardo.capture WHERE relid = p_rel;
    IF FOUND AND (c.keys <> p_keys OR c.native <> (to_regprocedure('bucardo.capture()') IS NOT NULL)
        OR coalesce(bucardo.capture_fault(c) NOT LIKE '% disabled', false)) THEN
        -- What was captured in the old form may be unserved: everybody gets the whole table once.
        SELECT users || array_agg(s) INTO users FROM bucardo.capture_sync s WHERE s.capture = c.id;
        PERFORM bucardo.capture_drop(c.id);
        c.id := bucardo.capture_build(p_rel, p_keys);
        whole := true;
    ELSIF c.id IS NULL THEN
        c.id := bucardo.capture_build(p_rel, p_keys);
    END IF;
    INSERT INTO bucardo.capture_sync SELECT c.id, u.control, u.sync, u.since FROM unnest(users) u ON CONFLICT DO NOTHING;
    IF whole THEN
        INSERT INTO bucardo.capture_mark (relid, kind, xid, at) VALUES (p_rel, 'whole', pg_current_xact_id()::text::bigint, clock_timestamp());
        PERFORM bucardo.capture_tell();
    END IF;
    INSERT INTO bucardo.capture_sync VALUES (c.id, p_control, p_sync, pg_current_snapshot()::text)
        ON CONFLICT (capture, control, sync) DO UPDATE SET since = excluded.since;
END
$body$;

-- Makes sure that it is known how far each receiver of a sync was served. A new one begins here: with all that has not
-- ended yet, this transaction included, which a snapshot of its own would leave out; and with all that any other receiver
-- still waits for, because what that one has not got may not have reached where the new one's rows came from.
CREATE OR REPLACE FUNCTION bucardo.capture_receivers(p_control text, p_sync text, p_source text, p_receivers text[]) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $body$
    -- In a copy of another source that one's progress stands, and in a restored dump snapshots of another server.
    DELETE FROM bucardo.capture_track t WHERE t.control = p_control AND t.sync = p_sync AND (t.source <> p_source
        OR pg_snapshot_xmax(t.served::pg_snapshot)::text::bigint > pg_snapshot_xmax(pg_current_snapshot())::text::bigint);
    DELETE FROM bucardo.capture_progress g WHERE g.control = p_control AND g.sync = p_sync AND g.member <> p_source;
    DELETE FROM bucardo.capture_heard h WHERE h.control = p_control AND h.sync = p_sync AND h.source <> ALL (p_receivers);
    INSERT INTO bucardo.capture_track AS t (control, sync, source, member, served)
        SELECT p_control, p_sync, p_source, m, format('%1$s:%1$s:', least(pg_snapshot_xmin(pg_current_snapshot())::text::bigint,
                (SELECT min(pg_snapshot_xmin(o.served::pg_snapshot)::text::bigint) FROM bucardo.capture_track o
                  WHERE o.control = p_control AND o.sync = p_sync AND o.source = p_source AND o.member = ANY (p_receivers))))
          FROM unnest(p_receivers) m
        ON CONFLICT (control, sync, source, member) DO UPDATE SET at = clock_timestamp()
$body$;

-- After this source has failed over and lost commits: its receivers have all that p_served shows, a snapshot from before.
-- Numbers of lost transactions are given again: whatever was captured after p_since, or still runs, counts as not served.
CREATE OR REPLACE FUNCTION bucardo.capture_rewind(p_control text, p_sync text, p_source text, p_served text, p_since timestamptz) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    bound bigint := least(pg_snapshot_xmax(p_served::pg_snapshot)::text::bigint, pg_snapshot_xmin(pg_current_snapshot())::text::bigint);
    -- What these rows know has survived.
    sure bigint;
    segment oid;
    first bigint;
BEGIN
    SELECT max(pg_snapshot_xmax(t.served::pg_snapshot)::text::bigint) INTO sure FROM bucardo.capture_track t
     WHERE t.control = p_control AND t.sync = p_sync AND t.source = p_source;
    FOR segment IN SELECT unnest(c.segments) FROM bucardo.capture c JOIN bucardo.capture_sync s ON s.capture = c.id
                    WHERE s.control = p_control AND s.sync = p_sync LOOP
        EXECUTE format('SELECT min(xid) FROM %s WHERE xid >= $1 AND at > $2', segment::regclass) INTO first USING sure, p_since;
        bound := least(bound, first);
    END LOOP;
    SELECT least(bound, min(m.xid)) INTO bound FROM bucardo.capture_mark m WHERE m.xid >= sure AND m.at > p_since;
    UPDATE bucardo.capture_track t
       SET served = (SELECT format('%s:%s:%s', coalesce(min(x), bound), bound, string_agg(x::text, ',' ORDER BY x))
                       FROM (SELECT x::text::bigint AS x FROM pg_snapshot_xip(p_served::pg_snapshot) x) r WHERE x < bound)
     WHERE t.control = p_control AND t.sync = p_sync AND t.source = p_source AND bound > sure;
END
$body$;

-- All that a control database has here, for it to compare with its catalog. `since` and `at` make sure that what is
-- released afterwards is what was listed, and not what somebody has added since.
CREATE OR REPLACE FUNCTION bucardo.capture_listing(p_control text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $body$
    SELECT json_build_object(
        'tables', coalesce((SELECT json_agg(json_build_object('capture', s.capture, 'sync', s.sync, 'since', s.since,
                'schema', c.schemaname, 'name', c.relname))
            FROM bucardo.capture_sync s JOIN bucardo.capture c ON c.id = s.capture WHERE s.control = p_control), '[]'),
        'receivers', coalesce((SELECT json_agg(json_build_object('sync', t.sync, 'source', t.source, 'member', t.member, 'at', t.at::text))
            FROM bucardo.capture_track t WHERE t.control = p_control), '[]'))::text
$body$;

-- Takes listed capture off again, of some tables at once: until the end of its transaction each is closed to everybody, and takes
-- some twenty locks of those that the server has for all. How many tables are left: too busy; or, as a negative number, there was
-- no more time for them, and it is to be called again at once.
CREATE OR REPLACE FUNCTION bucardo.capture_release(p_control text, p_stale json) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms' AS $body$
DECLARE
    s record;
    off integer := 0;
    left_over integer := 0;
    until CONSTANT timestamptz := clock_timestamp() + '1 second'::interval;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('bucardo capture', 0));
    -- In any order: always the same busy ones first would let nobody else have his turn.
    FOR s IN SELECT u.capture, u.sync, u.since FROM json_to_recordset(p_stale -> 'tables') x(capture integer, sync text, since text)
               JOIN bucardo.capture_sync u ON u.capture = x.capture AND u.control = p_control AND u.sync = x.sync AND u.since = x.since
              ORDER BY random() LOOP
        IF off >= 20 OR clock_timestamp() > until THEN
            left_over := left_over + 1;
            CONTINUE;
        END IF;
        BEGIN
            DELETE FROM bucardo.capture_sync u WHERE u.capture = s.capture AND u.control = p_control AND u.sync = s.sync AND u.since = s.since;
            IF FOUND AND NOT EXISTS (SELECT FROM bucardo.capture_sync u WHERE u.capture = s.capture) THEN
                PERFORM bucardo.capture_drop(s.capture);
                off := off + 1;
                -- While tables are closed nobody is waited for.
                PERFORM set_config('lock_timeout', '1ms', true);
            END IF;
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            left_over := left_over + 1;
        END;
    END LOOP;
    DELETE FROM bucardo.capture_track t USING json_to_recordset(p_stale -> 'receivers') x(sync text, source text, member text, at text)
     WHERE t.control = p_control AND t.sync = x.sync AND t.source = x.source AND t.member = x.member AND t.at::text = x.at;
    RETURN CASE WHEN off > 0 THEN -left_over ELSE left_over END;
END
$body$;

-- Takes a sync (null: all of the control database) off, for good. How many tables are left, as capture_release tells it.
CREATE OR REPLACE FUNCTION bucardo.capture_forget(p_control text, p_sync text) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    stale json;
BEGIN
    SELECT json_build_object(
        'tables', coalesce((SELECT json_agg(json_build_object('capture', s.capture, 'sync', s.sync, 'since', s.since))
            FROM bucardo.capture_sync s WHERE s.control = p_control AND (p_sync IS NULL OR s.sync = p_sync)), '[]'),
        'receivers', coalesce((SELECT json_agg(json_build_object('sync', t.sync, 'source', t.source, 'member', t.member, 'at', t.at::text))
            FROM bucardo.capture_track t WHERE t.control = p_control AND (p_sync IS NULL OR t.sync = p_sync)), '[]')) INTO stale;
    DELETE FROM bucardo.capture_progress g WHERE g.control = p_control AND (p_sync IS NULL OR g.sync = p_sync);
    DELETE FROM bucardo.capture_settled g WHERE g.control = p_control AND (p_sync IS NULL OR g.sync = p_sync);
    DELETE FROM bucardo.capture_heard g WHERE g.control = p_control AND (p_sync IS NULL OR g.sync = p_sync);
    RETURN bucardo.capture_release(p_control, stale);
END
$body$;
