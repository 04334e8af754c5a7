-- Limits that all servers share. A row is the lock of one; full_at: when its bucket is full again, nanoseconds.
CREATE TABLE gate (
    kind text NOT NULL,
    name text NOT NULL,
    full_at bigint NOT NULL,
    PRIMARY KEY (kind, name)
) WITH (fillfactor = 50);
-- What runs, by lane.
CREATE INDEX job_running ON job (type, fair) WHERE state = 3;
