-- What a kid asks of a source at the start of a run. Stands on every source, with or without the extension, beside
-- the objects of sql/capture.sql. Reads only; in the run's own snapshot.

-- The relations of a sync with anything in the windows of the given receivers, one row for each relation and each
-- distinct snapshot that receivers were served last.
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
                   coalesce(m.truncated, false) AS truncated, coalesce(m.whole, false) OR p.renewed AS whole
              FROM bucardo.capture k
              JOIN bucardo.capture_sync s ON s.capture = k.id
             CROSS JOIN LATERAL (SELECT bucardo.capture_renewed(k.id, k.relid) AS renewed) p
              LEFT JOIN (SELECT b.relid AS marked, bool_or(b.kind = 'truncate') AS truncated, bool_or(b.kind = 'whole') AS whole
                           FROM bucardo.capture_mark b
                          WHERE b.xid >= w.xmax OR b.xid = ANY (w.xip)
                          GROUP BY b.relid) m ON m.marked = k.relid
             WHERE s.control = p_control AND s.sync = p_sync
               AND (m.marked IS NOT NULL OR p.renewed OR EXISTS (SELECT FROM unnest(k.segments) g WHERE pg_relation_size(g) > 0))
        LOOP
            served := w.snapshot; relid := c.table_oid; keys := to_json(c.key_columns); segments := to_json(c.parts::regclass[]::text[]);
            batched := c.in_batches; changes := 0; existed := 0;
            truncated := c.truncated; whole := c.whole;
            FOREACH segment IN ARRAY c.parts LOOP
                CONTINUE WHEN coalesce(pg_relation_size(segment), 0) = 0;
                EXECUTE format('SELECT coalesce(sum(n), 0), coalesce(sum(n) FILTER (WHERE d.existed), 0) '
                    'FROM (SELECT existed, %s AS n FROM %s WHERE xid >= $1 OR xid = ANY ($2)) d',
                    CASE WHEN c.in_batches THEN 'coalesce(array_length(ks1, 1), 1)' ELSE '1' END, segment::regclass)
                   INTO n, e USING w.xmax, w.xip;
                changes := changes + n; existed := existed + e;
            END LOOP;
            IF changes > 0 OR truncated OR whole THEN
                RETURN NEXT;
            END IF;
        END LOOP;
    END LOOP;
END
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
REVOKE ALL ON FUNCTION bucardo.capture_fits(text, name) FROM PUBLIC;
REVOKE ALL ON FUNCTION bucardo.capture_changes(text, text, text, text[]) FROM PUBLIC;
