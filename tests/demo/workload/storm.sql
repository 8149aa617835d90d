-- One transaction over two tables: a gust at one airport, and every flight of that hour from there is late.
\set hour random(0, 8700)
\set airport random(1, 3)
BEGIN;
UPDATE weather SET wind_gust = coalesce(wind_gust, 20) + 1
 WHERE origin = (ARRAY['EWR', 'JFK', 'LGA'])[:airport]
   AND time_hour = timestamptz '2013-01-01 10:00+00' + :hour * interval '1 hour';
UPDATE flights SET dep_delay = coalesce(dep_delay, 0) + 30
 WHERE origin = (ARRAY['EWR', 'JFK', 'LGA'])[:airport]
   AND time_hour = timestamptz '2013-01-01 10:00+00' + :hour * interval '1 hour';
COMMIT;
