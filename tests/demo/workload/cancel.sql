-- A delete: one flight does not take place.
\set hour random(0, 8700)
\set skip random(0, 15)
DELETE FROM flights f
 USING (SELECT time_hour, carrier, flight FROM flights
         WHERE time_hour >= timestamptz '2013-01-01 10:00+00' + :hour * interval '1 hour'
         ORDER BY time_hour, carrier, flight OFFSET :skip LIMIT 1) one
 WHERE (f.time_hour, f.carrier, f.flight) = (one.time_hour, one.carrier, one.flight);
