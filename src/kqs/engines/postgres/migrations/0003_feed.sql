-- Journals of servers that accept jobs before they are here. upto: all its jobs with a number up to that are here or
-- were; last: no number of it is higher; server: who delivers from it.
CREATE SEQUENCE feed_number AS integer MINVALUE 1 MAXVALUE 2047;
CREATE TABLE feed (
    number integer PRIMARY KEY,
    journal text NOT NULL UNIQUE,
    upto bigint NOT NULL DEFAULT 0,
    last bigint NOT NULL DEFAULT 0,
    server integer NOT NULL DEFAULT 0
);
