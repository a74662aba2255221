-- What is to be told of a run to others, and what was acknowledged: kept here so that whoever drives the run next
-- neither forgets a notice nor tells one again that was heard.
create table rowmill.notices (
    id             bigint generated always as identity primary key,
    run            int      not null references rowmill.runs on delete cascade,
    generation     int      not null,
    event          text     not null,                -- Complete | Failed | Suspended | Stalled
    occasion       text     not null,                -- tells this one from an earlier one of the same event
    body           json     not null,
    created_at     timestamptz not null default clock_timestamp(),
    tries          int      not null default 0,
    try_at         timestamptz not null default clock_timestamp(),
    ended_at       timestamptz,                      -- acknowledged or given up; null: to be told
    delivered      boolean  not null default false,
    problem        text,                             -- of the last try that was not acknowledged
    unique (run, generation, event, occasion)
);
create index on rowmill.notices (run) where ended_at is null;
