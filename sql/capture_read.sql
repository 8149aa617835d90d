-- What kids and the master ask of a source: what is captured that is news for whom. Stands on every source, with or without the
-- extension, beside the objects of sql/capture.sql. Reads only; what a run asks, in the run's own snapshot.

-- Of the origins of deltas, those that are no news for a sync: what its own living sources wrote here through it. First stands
-- what the origins of those begin with that it keeps itself, for members that are away. Like all that each run calls in
-- plpgsql, which keeps its plans; a function in SQL is planned at every call.
CREATE OR REPLACE FUNCTION bucardo.capture_echoes(p_control text, p_sync text) RETURNS text[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    RETURN concat('kept:', p_control, ':', p_sync, ':') || (SELECT coalesce(array_agg(DISTINCT k.kept || concat_ws(':', t.control, t.sync, m.name)), '{}')
        FROM bucardo.capture_track t, LATERAL (VALUES (t.source), (t.member)) m(name), (VALUES (''), ('kept:')) k(kept)
        WHERE t.control = p_control AND t.sync = p_sync);
END
$body$;

-- Whether what has an origin is news for the sync with these echoes. What another sync keeps for its members is not. It has no
-- settings of its own, so that it becomes part of the statement.
CREATE OR REPLACE FUNCTION bucardo.capture_is_news(p_origin text, p_echoes text[]) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $body$
    SELECT p_origin <> ALL (p_echoes) AND (NOT pg_catalog.starts_with(p_origin, 'kept:') OR pg_catalog.starts_with(p_origin, p_echoes[1]))
$body$;

-- The same of a column `origin` as text, for statements that are made anew in each run: there a function in SQL would be parsed
-- and planned every time. p_echoes: the parameter that holds them.
CREATE OR REPLACE FUNCTION bucardo.capture_news(p_echoes text) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    RETURN format('(origin IS NULL OR origin <> ALL (%1$s) AND (NOT starts_with(origin, ''kept:'') OR starts_with(origin, (%1$s)[1])))', p_echoes);
END
$body$;

-- Whether a captured table's segments hold anything, by their files.
CREATE OR REPLACE FUNCTION bucardo.capture_filled(p_segments oid[]) RETURNS boolean
LANGUAGE sql STABLE AS $body$
    SELECT pg_catalog.pg_relation_size(p_segments[1]) > 0 OR pg_catalog.pg_relation_size(p_segments[2]) > 0 OR pg_catalog.pg_relation_size(p_segments[3]) > 0
$body$;

-- The captured tables that may have anything pending, of all or of one sync. What is pending on others is nothing, whoever asks.
-- Only the plain capture's segments are asked one by one: those of other syncs are not.
DROP FUNCTION IF EXISTS bucardo.capture_candidates();
CREATE OR REPLACE FUNCTION bucardo.capture_candidates(p_control text DEFAULT NULL, p_sync text DEFAULT NULL) RETURNS SETOF bucardo.capture
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    RETURN QUERY SELECT k.* FROM bucardo.capture k
     WHERE CASE WHEN p_sync IS NULL OR k.id IN (SELECT s.capture FROM bucardo.capture_sync s WHERE s.control = p_control AND s.sync = p_sync)
           THEN CASE WHEN k.native THEN k.id IN (SELECT t.capture FROM bucardo.capture_touched t) ELSE bucardo.capture_filled(k.segments) END
               OR k.relid IN (SELECT m.relid FROM bucardo.capture_mark m)
               OR (k.by_row AND bucardo.capture_renewed(k.id, k.relid)) END;
END
$body$;

-- The distinct snapshots that receivers of a captured table were served last, as the numbers that windows compare with.
CREATE OR REPLACE FUNCTION bucardo.capture_served(p_capture integer) RETURNS TABLE (control text, sync text, member text, xmax bigint, xip bigint[])
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    RETURN QUERY SELECT t.control, t.sync, t.member, pg_snapshot_xmax(t.served::pg_snapshot)::text::bigint,
           ARRAY(SELECT x::text::bigint FROM pg_snapshot_xip(t.served::pg_snapshot) x)
      FROM bucardo.capture_sync s JOIN bucardo.capture_track t ON t.control = s.control AND t.sync = s.sync WHERE s.capture = p_capture;
END
$body$;

-- Which receivers of which syncs have something pending; the last column is the same in every row: the bytes of the
-- fullest table's segments, all of which each run reads. Cheap at rest: only segments that hold anything are looked at. Always
-- at least one row. p_quiet: tables that are not looked at, as [{"sync": ..., "schema": ..., "table": ...}, ...].
DROP FUNCTION IF EXISTS bucardo.capture_pending(text);
CREATE OR REPLACE FUNCTION bucardo.capture_pending(p_control text, p_quiet jsonb DEFAULT '[]') RETURNS TABLE (sync text, member text, bytes bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    c record;
    w record;
    segment oid;
    size bigint;
    most bigint := 0;
    found_one boolean;
    seen text[] := '{}';
BEGIN
    FOR c IN SELECT k.id, k.relid, k.schemaname AS s, k.relname AS r, k.segments, EXISTS (SELECT FROM bucardo.capture_mark m WHERE m.relid = k.relid) AS marked,
                    (SELECT sum(pg_relation_size(g)) FROM unnest(k.segments) g) AS size
               FROM bucardo.capture_candidates() k LOOP
        CONTINUE WHEN NOT c.marked AND coalesce(c.size, 0) = 0;
        most := greatest(most, c.size);
        FOR w IN SELECT v.xmax, v.xip, v.sync AS of_sync, bucardo.capture_echoes(p_control, v.sync) AS echoes, array_agg(v.sync) AS syncs, array_agg(v.member) AS members
                   FROM bucardo.capture_served(c.id) v WHERE v.control = p_control
                    AND NOT p_quiet @> jsonb_build_array(jsonb_build_object('sync', v.sync, 'schema', c.s, 'table', c.r)) GROUP BY v.xmax, v.xip, v.sync LOOP
            found_one := c.marked AND EXISTS (SELECT FROM bucardo.capture_mark m WHERE m.relid = c.relid AND (m.xid >= w.xmax OR m.xid = ANY (w.xip))
                AND (m.origin IS NULL OR bucardo.capture_is_news(m.origin, w.echoes)));
            FOREACH segment IN ARRAY c.segments LOOP
                EXIT WHEN found_one;
                CONTINUE WHEN coalesce(pg_relation_size(segment), 0) = 0;
                EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE (xid >= $1 OR xid = ANY ($2)) AND %s)',
                    segment::regclass, bucardo.capture_news('$3')) INTO found_one USING w.xmax, w.xip, w.echoes;
            END LOOP;
            IF found_one THEN
                FOR i IN 1 .. array_length(w.syncs, 1) LOOP
                    IF NOT (w.syncs[i] || E'\x01' || w.members[i]) = ANY (seen) THEN
                        seen := seen || (w.syncs[i] || E'\x01' || w.members[i]);
                    END IF;
                END LOOP;
            END IF;
        END LOOP;
    END LOOP;
    IF seen = '{}' THEN
        RETURN QUERY SELECT NULL::text, NULL::text, most;
    ELSE
        RETURN QUERY SELECT split_part(x, E'\x01', 1), split_part(x, E'\x01', 2), most FROM unnest(seen) x;
    END IF;
END
$body$;

-- What is captured and not yet served to all receivers, exactly: for bucardo.pending().
CREATE OR REPLACE FUNCTION bucardo.capture_backlog(p_control text)
RETURNS TABLE (sync text, schemaname text, relname text, changes bigint, oldest timestamptz)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    c record;
    parts text;
    condition text;
BEGIN
    FOR c IN SELECT k.id, k.relid, k.schemaname AS s, k.relname AS r, k.segments, k.batched, u.sync AS name
               FROM bucardo.capture_candidates() k JOIN bucardo.capture_sync u ON u.capture = k.id WHERE u.control = p_control ORDER BY u.sync, k.id LOOP
        SELECT string_agg(format('xid >= %s OR xid = ANY (%L::bigint[])', v.xmax, v.xip), ' OR ') INTO condition
          FROM (SELECT DISTINCT x.xmax, x.xip FROM bucardo.capture_served(c.id) x WHERE x.control = p_control AND x.sync = c.name) v;
        CONTINUE WHEN condition IS NULL;
        SELECT string_agg(format('SELECT xid, at, %s AS n FROM %s WHERE origin IS NULL OR bucardo.capture_is_news(origin, $1)',
            CASE WHEN c.batched THEN 'coalesce(array_length(ks1, 1), 1)' ELSE '1' END, g::regclass), ' UNION ALL ') INTO parts
          FROM unnest(c.segments) g WHERE pg_relation_size(g) > 0;
        parts := concat_ws(' UNION ALL ', parts, format('SELECT xid, at, 1 AS n FROM bucardo.capture_mark WHERE relid = %s AND (origin IS NULL OR bucardo.capture_is_news(origin, $1))', c.relid));
        sync := c.name; schemaname := c.s; relname := c.r;
        EXECUTE format('SELECT coalesce(sum(n), 0), min(at) FROM (%s) d WHERE %s', parts, condition) INTO changes, oldest
            USING bucardo.capture_echoes(p_control, c.name);
        IF changes > 0 THEN
            RETURN NEXT;
        END IF;
    END LOOP;
END
$body$;

-- Whether segments hold anything of a window, news or not.
CREATE OR REPLACE FUNCTION bucardo.capture_stirred(p_segments oid[], p_xmax bigint, p_xip bigint[]) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    segment oid;
    stirred boolean := false;
BEGIN
    FOREACH segment IN ARRAY p_segments LOOP
        CONTINUE WHEN coalesce(pg_relation_size(segment), 0) = 0;
        EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE xid >= $1 OR xid = ANY ($2))', segment::regclass) INTO stirred USING p_xmax, p_xip;
        EXIT WHEN stirred;
    END LOOP;
    RETURN stirred;
END
$body$;

-- The relations of a sync with anything in the windows of the given receivers, one row for each relation and each
-- distinct snapshot that receivers were served last.
DROP FUNCTION IF EXISTS bucardo.capture_changes(text, text, text, text[], oid[]);
CREATE OR REPLACE FUNCTION bucardo.capture_changes(p_control text, p_sync text, p_source text, p_members text[])
RETURNS TABLE (served text, relid oid, keys text, segments text, batched boolean, changes bigint, existed bigint, truncated boolean,
    whole boolean)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    w record;
    c record;
    segment oid;
    n bigint;
    e bigint;
    echoes text[];
BEGIN
    FOR w IN
        SELECT t.served AS snapshot,
               pg_snapshot_xmax(t.served::pg_snapshot)::text::bigint AS xmax,
               ARRAY(SELECT x::text::bigint FROM pg_snapshot_xip(t.served::pg_snapshot) x) AS xip
          FROM bucardo.capture_track t
         WHERE t.control = p_control AND t.sync = p_sync AND t.source = p_source AND t.member = ANY (p_members)
         GROUP BY t.served
    LOOP
        FOR c IN
            SELECT k.relid AS table_oid, k.keys AS key_columns, k.segments AS parts, k.batched AS in_batches,
                   k.by_row AND bucardo.capture_renewed(k.id, k.relid) AS renewed,
                   EXISTS (SELECT FROM bucardo.capture_mark b WHERE b.relid = k.relid AND (b.xid >= w.xmax OR b.xid = ANY (w.xip))) AS marked
              FROM bucardo.capture_candidates(p_control, p_sync) k
              JOIN bucardo.capture_sync s ON s.capture = k.id
             WHERE s.control = p_control AND s.sync = p_sync
        LOOP
            served := w.snapshot; relid := c.table_oid; keys := to_json(c.key_columns); segments := to_json(c.parts::regclass[]::text[]);
            batched := c.in_batches; changes := 0; existed := 0;
            truncated := false; whole := c.renewed;
            echoes := coalesce(echoes, bucardo.capture_echoes(p_control, p_sync));
            IF c.marked THEN
                SELECT coalesce(bool_or(b.kind = 'truncate'), false), coalesce(bool_or(b.kind = 'whole'), false) OR c.renewed
                  INTO truncated, whole FROM bucardo.capture_mark b
                 WHERE b.relid = c.table_oid AND (b.xid >= w.xmax OR b.xid = ANY (w.xip))
                   AND (b.origin IS NULL OR bucardo.capture_is_news(b.origin, echoes));
            END IF;
            FOREACH segment IN ARRAY c.parts LOOP
                CONTINUE WHEN coalesce(pg_relation_size(segment), 0) = 0;
                EXECUTE format('SELECT coalesce(sum(n), 0), coalesce(sum(n) FILTER (WHERE d.existed), 0) '
                    'FROM (SELECT existed, %s AS n FROM %s WHERE (xid >= $1 OR xid = ANY ($2)) AND %s) d',
                    CASE WHEN c.in_batches THEN 'coalesce(array_length(ks1, 1), 1)' ELSE '1' END, segment::regclass, bucardo.capture_news('$3'))
                   INTO n, e USING w.xmax, w.xip, echoes;
                changes := changes + n; existed := existed + e;
            END LOOP;
            IF changes > 0 OR truncated OR whole THEN
                RETURN NEXT;
            END IF;
        END LOOP;
    END LOOP;
END
$body$;

-- What one source of several has for the others: the captured relations of a sync with anything in a window, which is given
-- as the numbers that it compares with. Times are microseconds since 1970, of the commit where the server keeps it. A row without
-- a relation says that there are changes of other sources in the window, which are no news: they were kept for who was away.
CREATE OR REPLACE FUNCTION bucardo.capture_gather(p_control text, p_sync text, p_xmax bigint, p_xip bigint[], p_latest boolean)
RETURNS TABLE (relid oid, keys text, segments text, batched boolean, changes bigint, existed bigint, truncated bigint, whole boolean,
    latest bigint)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    c record;
    segment oid;
    n bigint;
    e bigint;
    l timestamptz;
    newest timestamptz;
    echoes text[] := bucardo.capture_echoes(p_control, p_sync);
    echoed boolean;
    kept boolean := false;
    committed text := CASE WHEN current_setting('track_commit_timestamp')::boolean
        THEN 'CASE WHEN origin IS NULL THEN coalesce(pg_xact_commit_timestamp((xid % 4294967296)::text::xid), at) ELSE at END' ELSE 'at' END;
BEGIN
    FOR c IN
        SELECT k.id, k.relid AS table_oid, k.keys AS key_columns, k.segments AS parts, k.batched AS in_batches
          FROM bucardo.capture_candidates(p_control, p_sync) k JOIN bucardo.capture_sync s ON s.capture = k.id
         WHERE s.control = p_control AND s.sync = p_sync
    LOOP
        relid := c.table_oid; keys := to_json(c.key_columns); segments := to_json(c.parts::regclass[]::text[]);
        batched := c.in_batches; changes := 0; existed := 0; newest := NULL;
        EXECUTE format('SELECT (extract(epoch FROM max(%s) FILTER (WHERE news AND kind = ''truncate'')) * 1000000)::bigint, '
            'coalesce(bool_or(news AND kind = ''whole''), false), max(%1$s) FILTER (WHERE news), coalesce(bool_or(NOT news), false) '
            'FROM (SELECT *, %2$s AS news FROM bucardo.capture_mark '
            'WHERE relid = $1 AND (xid >= $2 OR xid = ANY ($3))) m', committed, bucardo.capture_news('$4'))
            INTO truncated, whole, newest, echoed USING c.table_oid, p_xmax, p_xip, echoes;
        kept := kept OR echoed;
        FOREACH segment IN ARRAY c.parts LOOP
            CONTINUE WHEN coalesce(pg_relation_size(segment), 0) = 0;
            EXECUTE format('SELECT coalesce(sum(n) FILTER (WHERE news), 0), coalesce(sum(n) FILTER (WHERE news AND d.existed), 0), '
                'max(d.time) FILTER (WHERE news), coalesce(bool_or(NOT news), false) '
                'FROM (SELECT existed, %s AS n, %s AS time, %s AS news FROM %s '
                'WHERE xid >= $1 OR xid = ANY ($2)) d',
                CASE WHEN c.in_batches THEN 'coalesce(array_length(ks1, 1), 1)' ELSE '1' END,
                CASE WHEN p_latest THEN committed ELSE 'NULL::timestamptz' END, bucardo.capture_news('$3'), segment::regclass)
               INTO n, e, l, echoed USING p_xmax, p_xip, echoes;
            changes := changes + n; existed := existed + e; newest := greatest(newest, l); kept := kept OR echoed;
        END LOOP;
        latest := (extract(epoch FROM newest) * 1000000)::bigint;
        IF changes > 0 OR truncated IS NOT NULL OR whole THEN
            RETURN NEXT;
        END IF;
    END LOOP;
    IF kept THEN
        relid := NULL;
        RETURN NEXT;
    END IF;
END
$body$;

-- The marks of tables, with what tells a TRUNCATE from all others, wherever it comes: its root, and its number there. p_name: as in
-- capture_self. Times are as in capture_gather.
CREATE OR REPLACE FUNCTION bucardo.capture_marks(p_rels oid[], p_name text)
RETURNS TABLE (relid oid, kind text, xid bigint, origin text, root text, serial bigint, at bigint)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $body$
    SELECT m.relid, m.kind, m.xid, m.origin, coalesce(m.root, concat(bucardo.capture_self(p_name), substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8), '/',
               'bucardo.capture_mark'::regclass::oid)), coalesce(m.serial, m.id),
           (extract(epoch FROM CASE WHEN m.origin IS NULL AND current_setting('track_commit_timestamp')::boolean
               THEN coalesce(pg_xact_commit_timestamp((m.xid % 4294967296)::text::xid), m.at) ELSE m.at END) * 1000000)::bigint
      FROM bucardo.capture_mark m WHERE m.relid = ANY (p_rels) ORDER BY m.id
$body$;

-- The TRUNCATEs of tables that are known here; and what the root of any begins with that began here.
CREATE OR REPLACE FUNCTION bucardo.capture_known(p_rels oid[], p_name text) RETURNS TABLE (relid oid, root text, serial bigint)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $body$
    SELECT NULL::oid, bucardo.capture_self(p_name), NULL::bigint
    UNION ALL SELECT r.relid, r.root, r.serial FROM bucardo.capture_root r WHERE r.relid = ANY (p_rels)
$body$;

-- Whether a key can be written in another encoding. What cannot be there need not be deleted there.
CREATE OR REPLACE FUNCTION bucardo.capture_fits(p_key text, p_encoding name) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    PERFORM convert_to(p_key, p_encoding);
    RETURN true;
EXCEPTION WHEN untranslatable_character OR undefined_function THEN
    RETURN false;
END
$body$;
