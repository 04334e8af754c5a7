-- What ids of this database begin with.
CREATE TABLE cluster (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    prefix text NOT NULL
);
INSERT INTO cluster (prefix) VALUES (substr(md5(random()::text || clock_timestamp()::text), 1, 8));

-- Servers take numbers in blocks.
CREATE SEQUENCE job_number AS bigint INCREMENT BY 1000;
-- One for each life of a server; while it lives, its connection holds the advisory lock of that number.
CREATE SEQUENCE server_number AS integer;

-- Live jobs only: one that is done leaves at once. Times are microseconds since 1970, ttr is milliseconds.
-- state: 1 delayed, 2 ready, 3 reserved, 4 buried. fair: '' for none. overdue: 0 for never.
CREATE TABLE job (
    id bigint PRIMARY KEY,
    inserted bigint NOT NULL,
    due bigint NOT NULL,
    overdue bigint NOT NULL DEFAULT 0,
    leased bigint NOT NULL DEFAULT 0,
    expires bigint NOT NULL DEFAULT 0,
    nonce bigint NOT NULL DEFAULT 0,
    settled bigint NOT NULL DEFAULT 0,
    ttr bigint NOT NULL,
    attempt integer NOT NULL DEFAULT 0,
    deaths integer NOT NULL DEFAULT 0,
    server integer NOT NULL DEFAULT 0,
    prio smallint NOT NULL CHECK (prio BETWEEN 0 AND 4),
    state smallint NOT NULL CHECK (state BETWEEN 1 AND 4),
    is_binary boolean NOT NULL,
    local boolean NOT NULL DEFAULT false,
    cancelled boolean NOT NULL DEFAULT false,
    unique_queued boolean NOT NULL DEFAULT false,
    type text NOT NULL,
    fair text NOT NULL DEFAULT '',
    unique_key text,
    holder text NOT NULL DEFAULT '',
    settled_as text NOT NULL DEFAULT '',
    options text,
    error text,
    progress text,
    data bytea NOT NULL
) WITH (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 20000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 100000,
    autovacuum_analyze_scale_factor = 0.2,
    autovacuum_vacuum_cost_delay = 0
);
CREATE INDEX job_ready ON job (type, fair, prio, id) WHERE state = 2;
CREATE INDEX job_due ON job (due) WHERE state = 1;
CREATE INDEX job_expires ON job (expires) WHERE state = 3;
CREATE INDEX job_overdue ON job (overdue) WHERE overdue > 0 AND state IN (1, 2);
-- Of unique jobs of a type and key one stands at a time.
CREATE UNIQUE INDEX job_unique ON job (type, unique_key)
    WHERE unique_key IS NOT NULL AND (state IN (1, 2) OR (state = 3 AND NOT unique_queued));

-- Idempotency keys.
CREATE TABLE key (
    key text PRIMARY KEY,
    job bigint NOT NULL,
    at bigint NOT NULL
);
CREATE INDEX key_at ON key USING brin (at);

CREATE TABLE pause (
    type text PRIMARY KEY,
    by text NOT NULL DEFAULT '',
    at bigint NOT NULL
);

CREATE TABLE cron (
    name text PRIMARY KEY,
    at bigint NOT NULL,
    last bigint NOT NULL DEFAULT 0
);

CREATE TABLE result (
    id bigint PRIMARY KEY,
    type text NOT NULL,
    at bigint NOT NULL,
    until bigint NOT NULL,
    value text NOT NULL,
    bulk text
);
CREATE INDEX result_until ON result (until);

-- What lately ended, for the same settlement said again after a lost reply, and for people.
CREATE TABLE done (
    id bigint PRIMARY KEY,
    finished bigint NOT NULL,
    inserted bigint NOT NULL,
    due bigint NOT NULL,
    leased bigint NOT NULL,
    nonce bigint NOT NULL,
    ttr bigint NOT NULL,
    size bigint NOT NULL,
    attempt integer NOT NULL,
    deaths integer NOT NULL,
    prio smallint NOT NULL,
    is_binary boolean NOT NULL,
    type text NOT NULL,
    fair text NOT NULL,
    outcome text NOT NULL,
    said text NOT NULL,
    options text,
    error text
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000);
CREATE INDEX done_finished ON done USING brin (finished) WITH (autosummarize = on);
