-- An insert: the flight of last year is put on next year's timetable.
\set hour random(0, 8700)
\set skip random(0, 15)
INSERT INTO flights (year, month, day, sched_dep_time, sched_arr_time, carrier, flight, origin, dest, distance, hour, minute, time_hour)
SELECT year + 1, month, day, sched_dep_time, sched_arr_time, carrier, flight, origin, dest, distance, hour, minute, time_hour + interval '1 year'
  FROM flights
 WHERE time_hour >= timestamptz '2013-01-01 10:00+00' + :hour * interval '1 hour' AND year = 2013
 ORDER BY time_hour, carrier, flight OFFSET :skip LIMIT 1
    ON CONFLICT DO NOTHING;
