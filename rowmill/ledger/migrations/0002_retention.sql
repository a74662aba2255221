-- How long outcomes are kept, and that they were dropped. The run itself stays: applied again, it is known to be over.

alter table rowmill.runs
    add column retention_seconds bigint,                        -- of the manifest; null where none was seen since: kept
    add column output_pending    boolean not null default false, -- results are still to be written: kept until they are
    add column dropped_at        timestamptz,                   -- since then the run has no table of outcomes
    add column errors            json,                          -- the classes of its failures, from before that
    -- Whatever release works on it: the rows of a dropped run must never look as if they were open.
    add constraint dropped_is_ended check (dropped_at is null or phase in ('Complete', 'Failed'));

-- Intervals are added to a timestamp without a zone: only that is the same in every session, and can be indexed.
create index runs_expiry on rowmill.runs
    (installation, ((finished_at at time zone 'UTC') + retention_seconds * interval '1 second')) where dropped_at is null;
