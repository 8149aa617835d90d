-- Forgets what everybody has been served, after the runs: a segment becomes an empty file again. Stands on every source, beside
-- the objects of sql/capture.sql. It must never throw away what anybody still needs, nor make a writer wait.

-- Gives a table of places (how far somebody was served) a new file with its rows alone, at once or not at all. Each run writes
-- a new version of its row, and while anybody holds an old snapshot none of them goes: each run would read them all.
-- A run whose snapshot is older than the new file finds it empty: it takes such an answer for none, and begins again.
CREATE OR REPLACE FUNCTION bucardo.capture_renew_places(p_table regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    places json;
BEGIN
    IF pg_relation_size(p_table) < 128 * 1024 THEN
        RETURN;
    END IF;
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE NOWAIT', p_table);
    EXECUTE format('SELECT json_agg(t) FROM %s t', p_table) INTO places;
    EXECUTE format('TRUNCATE %s', p_table);
    EXECUTE format('INSERT INTO %1$s SELECT * FROM json_populate_recordset(NULL::%1$s, $1)', p_table) USING coalesce(places, '[]');
EXCEPTION WHEN lock_not_available THEN
    NULL;
END
$body$;

-- Which deltas of a captured table anybody still needs, as a condition; null: nobody says how far he was served. What one sync
-- keeps for members that are away waits for no other one.
CREATE OR REPLACE FUNCTION bucardo.capture_unserved(p_capture integer) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    RETURN (SELECT format('CASE WHEN starts_with(origin, ''kept:'') THEN %s ELSE %s END',
               string_agg(DISTINCT format('starts_with(origin, %L) AND (%s)', concat('kept:', v.control, ':', v.sync, ':'), w.beyond), ' OR '),
               string_agg(DISTINCT w.beyond, ' OR '))
          FROM bucardo.capture_served(p_capture) v CROSS JOIN LATERAL (SELECT format('xid >= %s OR xid = ANY (%L::bigint[])', v.xmax, v.xip)) w(beyond)
        HAVING count(*) > 0);
END
$body$;

-- Empties the segments that everybody has been served from, of tables with so many bytes of them. Never waits for a writer
-- and lets none wait: it switches writers to an empty segment first, and locks only segments that they have left, where no
-- transaction that wrote, or whose statement had no row to write, is open. One that was left just now waits for the next purge: somebody may be on his way to it. Where
-- all is wanted (0 bytes), only a large one does.
--
-- Readers, of which there is always one when runs follow one another, are waited for, but for milliseconds (up to 200 of a
-- large segment), and only while no segment is kept from any of them, so that nobody who waits for the purge is waited for by
-- it. The fullest table comes first, as it is the first lock that is got by waiting; others are then free for a moment too,
-- if it was one run that held them.
--
-- How many deltas nobody needs any more; of some tables only, because each takes a subtransaction and locks, which all others
-- share: below zero, by one less than that, where others were left and it is worth while to go on at once.
CREATE OR REPLACE FUNCTION bucardo.capture_purge(p_least bigint) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    c bucardo.capture;
    freed bigint := 0;
    n bigint;
    unserved boolean;
    active bigint;
    empty integer;
    left_now bigint;
    condition text;
    counting text;
    -- The segments to be emptied, with what was found in them.
    wanted oid[] := '{}';
    owners integer[] := '{}';
    conditions text[] := '{}';
    deltas bigint[] := '{}';
    locked integer[] := '{}';
    j integer;
    waits integer := 2;
    more boolean := false;
    at_once CONSTANT integer := 30;
    as_before CONSTANT text := current_setting('lock_timeout');
    large CONSTANT bigint := 64 * 1024 * 1024;
BEGIN
    -- With one snapshot for all it would not see what was written since, and throw it away.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RETURN 0;
    END IF;
    -- Who installs capture may have given a receiver its place already, which nobody sees before he commits.
    IF NOT pg_try_advisory_xact_lock(hashtextextended('bucardo capture', 0)) THEN
        RETURN 0;
    END IF;
    DELETE FROM bucardo.capture_settled g WHERE NOT EXISTS (SELECT FROM bucardo.capture_track t WHERE t.control = g.control AND t.sync = g.sync
        AND t.served <> g.snapshot AND pg_snapshot_xmin(t.served::pg_snapshot) < pg_snapshot_xmax(g.snapshot::pg_snapshot));
    DELETE FROM bucardo.capture_root r WHERE NOT EXISTS (SELECT FROM pg_class o WHERE o.oid = r.relid);
    -- By the files, not by what is noted of them: a writer that rolled back, or a crash, has left deltas of which nobody knows.
    FOR c IN SELECT k.* FROM bucardo.capture k CROSS JOIN LATERAL (SELECT coalesce(sum(pg_relation_size(g)), 0) FROM unnest(k.segments) g) z(size)
              WHERE z.size >= p_least
                AND (z.size > 0 OR k.id IN (SELECT t.capture FROM bucardo.capture_touched t) OR k.relid IN (SELECT m.relid FROM bucardo.capture_mark m))
              ORDER BY z.size DESC, k.id LOOP
        more := cardinality(wanted) >= at_once;
        EXIT WHEN more;
        -- A table that is gone: the run, or the master's comparison with its catalog, sees to it.
        CONTINUE WHEN NOT EXISTS (SELECT FROM pg_class WHERE oid = c.relid);
        condition := bucardo.capture_unserved(c.id);
        CONTINUE WHEN condition IS NULL;
        EXECUTE format('DELETE FROM bucardo.capture_mark WHERE relid = %s AND NOT (%s)', c.relid, condition);
        IF NOT bucardo.capture_filled(c.segments) THEN
            -- Nobody relies on a file that is gone: only somebody else than us could have rewritten the segment.
            DELETE FROM bucardo.capture_touched t WHERE t.capture = c.id AND t.file <> ALL (ARRAY(SELECT pg_relation_filenode(g) FROM unnest(c.segments) g));
            CONTINUE;
        END IF;
        EXECUTE format('SELECT last_value FROM %s', c.active::regclass) INTO active;
        left_now := NULL;
        IF pg_relation_size(c.segments[active]) > 0 THEN
            SELECT min(i) INTO empty FROM generate_series(1, 3) i WHERE pg_relation_size(c.segments[i]) = 0;
            IF empty IS NOT NULL THEN
                PERFORM setval(c.active::regclass, empty);
                left_now := active;
                active := empty;
            END IF;
        END IF;
        -- Also where nothing was switched: a purge that was ended in between has told nobody.
        IF to_regprocedure('bucardo.capture_switched()') IS NOT NULL THEN
            EXECUTE 'SELECT bucardo.capture_switched()';
        END IF;
        counting := format('SELECT coalesce(sum(%s), 0), coalesce(bool_or(%%s), false) FROM %%s',
            CASE WHEN c.batched THEN 'coalesce(array_length(ks1, 1), 1)' ELSE '1' END);
        FOR i IN 1 .. 3 LOOP
            CONTINUE WHEN i = active OR pg_relation_size(c.segments[i]) = 0;
            CONTINUE WHEN i = left_now AND p_least > 0;
            IF pg_relation_size(c.segments[i]) > large THEN
                CONTINUE WHEN i = left_now;
                -- What is still wanted is found soon, and without keeping anybody out.
                EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE %s)', c.segments[i]::regclass, condition) INTO unserved;
                CONTINUE WHEN unserved;
            END IF;
            BEGIN
                -- Keeps out who writes, and nobody who reads.
                EXECUTE format('LOCK TABLE %s IN SHARE MODE NOWAIT', c.segments[i]::regclass);
                -- Each statement of a volatile function has its own snapshot: it sees all who wrote here before the lock.
                EXECUTE format(counting, condition, c.segments[i]::regclass) INTO n, unserved;
                IF unserved THEN
                    RAISE lock_not_available;
                END IF;
                wanted := wanted || c.segments[i]; owners := owners || c.id; conditions := conditions || condition; deltas := deltas || n;
            EXCEPTION WHEN lock_not_available THEN
                NULL;
            END;
        END LOOP;
    END LOOP;
    FOR i IN 1 .. cardinality(wanted) LOOP
        BEGIN
            IF locked = '{}' AND waits > 0 THEN
                waits := waits - 1;
                -- Who reads a large one needs longer.
                PERFORM set_config('lock_timeout', least(200, 20 + pg_relation_size(wanted[i]) / 262144) || 'ms', true);
                EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', wanted[i]::regclass);
                PERFORM set_config('lock_timeout', as_before, true);
            ELSE
                EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE NOWAIT', wanted[i]::regclass);
            END IF;
            locked := locked || i;
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            NULL;
        END;
    END LOOP;
    FOREACH j IN ARRAY locked LOOP
        -- How far receivers were served may have been taken back meanwhile, by somebody who has read the segment.
        condition := bucardo.capture_unserved(owners[j]);
        IF condition IS DISTINCT FROM conditions[j] THEN
            CONTINUE WHEN condition IS NULL;
            EXECUTE format('SELECT coalesce(bool_or(%s), false) FROM %s', condition, wanted[j]::regclass) INTO unserved;
            CONTINUE WHEN unserved;
        END IF;
        DELETE FROM bucardo.capture_touched t WHERE t.capture = owners[j] AND t.file = pg_relation_filenode(wanted[j]);
        EXECUTE format('TRUNCATE %s', wanted[j]::regclass);
        freed := freed + deltas[j];
    END LOOP;
    -- Last, because runs wait for these.
    PERFORM bucardo.capture_renew_places('bucardo.capture_track');
    PERFORM bucardo.capture_renew_places('bucardo.capture_progress');
    RETURN CASE WHEN more AND locked <> '{}' THEN -freed - 1 ELSE freed END;
END
$body$;
