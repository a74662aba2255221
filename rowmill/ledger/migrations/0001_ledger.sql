-- The ledger: the truth about every run. Expand first, contract later: a migration never breaks the release before it.

create table rowmill.runs (
    id             int generated always as identity primary key,
    installation   text not null,
    namespace      text not null,
    name           text not null,
    run_id         text not null,
    token          text not null,                    -- names the run's keys in Redis; random, so that a restored ledger never meets old keys
    frozen         json not null,                    -- what shapes a request; a run keeps it
    shards         int  not null,
    fingerprint    text,                             -- of the source
    row_limit      bigint,                           -- source.limit: may be raised, never lowered
    total          bigint,                           -- rows of the source; null until it was read to its end
    generation     int  not null default 0,
    epoch          int  not null default 0,          -- 0: nothing was ever fed
    term           bigint not null default 0,        -- raised by each engine that takes the run over; fences every engine's write
    phase          text not null default 'Pending',
    message        text not null default '',
    feed_position  json,                             -- advisory: where feeding can go on within this epoch
    counts         json,                             -- exact, written with the phase that ends the run
    created_at     timestamptz not null default clock_timestamp(),
    started_at     timestamptz,
    finished_at    timestamptz,
    unique (installation, namespace, name, run_id)
);

-- The pattern that each run's own table is made from (CREATE TABLE ... LIKE): a plain table a run, dropped when its
-- retention ends. Partitions would lock all jobs on DDL.
create table rowmill.outcomes (
    seq            int      not null,
    generation     int      not null,
    state          smallint not null,                -- 1 Succeeded, 2 Failed, 3 Deduplicated
    attempts       int      not null,
    key            text,                             -- JSON text
    result         json,
    error_class    text,
    error_message  text,
    columns        json,
    duplicate_of   text,
    worker         text     not null,
    finished_at    timestamptz not null default clock_timestamp(),
    primary key (seq, generation)
);
create index on rowmill.outcomes (generation, error_class, seq) where state = 2;

-- One row a worker, so that commits of different workers never wait for each other.
create table rowmill.counters (
    run            int    not null references rowmill.runs on delete cascade,
    generation     int    not null,
    worker         text   not null,
    succeeded      bigint not null default 0,
    failed         bigint not null default 0,
    deduplicated   bigint not null default 0,
    retried        bigint not null default 0,
    primary key (run, generation, worker)
) with (fillfactor = 50);

-- Who executes a declared key. Row and winner of a duplicate are told from here.
create table rowmill.claims (
    digest         bytea primary key,                -- 128 bits of scope, key and executor
    run            int      not null,
    seq            int      not null,
    owner          text     not null,                -- namespace/name/runId#seq, for people
    state          smallint not null default 0,      -- 0 while it runs, then the winner's State
    result         json,
    error_class    text,
    error_message  text,
    keep_until     timestamptz                       -- running: the owner's backoff ends then; ended: the claim does
);
create index on rowmill.claims (keep_until);
