-- Every statement of the ledger, by name. {outcomes} is the run's own table.

-- name: find_run
select * from rowmill.runs where installation = $1 and namespace = $2 and name = $3 and run_id = $4

-- name: runs_of_job
-- Every run that this resource ever had, the newest first.
select * from rowmill.runs where installation = $1 and namespace = $2 and name = $3 order by id desc

-- name: insert_run
insert into rowmill.runs (installation, namespace, name, run_id, token, frozen, shards, row_limit)
values ($1, $2, $3, $4, $5, $6, $7, $8)
on conflict (installation, namespace, name, run_id) do nothing
returning *

-- name: hold_run
-- The same, and nobody drops its outcomes before this transaction ends.
select * from rowmill.runs where installation = $1 and namespace = $2 and name = $3 and run_id = $4 for share

-- name: create_outcomes
create table if not exists {outcomes} (like rowmill.outcomes including all)

-- name: take_over
update rowmill.runs set term = term + 1 where id = $1 returning *

-- name: position_of_run
select generation, epoch, phase, shards from rowmill.runs where id = $1

-- name: begin_epoch
update rowmill.runs
set generation = $3, epoch = $4, phase = 'Running', message = '', feed_position = null, counts = null, finished_at = null,
    started_at = coalesce(case when generation = $3 then started_at end, clock_timestamp())
where id = $1 and term = $2
returning *

-- name: restate
-- Before anything was fed a manifest may still change in every way.
update rowmill.runs set frozen = $3, shards = $4, fingerprint = null where id = $1 and term = $2 and epoch = 0 returning *

-- name: save_feed_position
update rowmill.runs set feed_position = $4 where id = $1 and term = $2 and epoch = $3 returning id

-- name: save_fingerprint
update rowmill.runs set fingerprint = $3 where id = $1 and term = $2 and (fingerprint is null or fingerprint = $3) returning id

-- name: save_total
update rowmill.runs set total = $4 where id = $1 and term = $2 and epoch = $3 returning id

-- name: save_source_rows
update rowmill.runs set source_rows = $4 where id = $1 and term = $2 and epoch = $3 returning id

-- name: raise_limit
-- A run that has ended is open again from here on, whatever happens before its next epoch begins.
update rowmill.runs
set row_limit = $3, total = null, phase = 'Running', message = '', counts = null, finished_at = null
where id = $1 and term = $2
returning *

-- name: save_phase
update rowmill.runs
set phase = $3, message = $4, counts = $5,
    finished_at = case when $3 in ('Complete', 'Failed') then clock_timestamp() end
where id = $1 and term = $2
returning id

-- name: progress
select coalesce(sum(succeeded), 0)::bigint as succeeded,
       coalesce(sum(failed) filter (where generation = $2), 0)::bigint as failed,
       coalesce(sum(deduplicated), 0)::bigint as deduplicated,
       coalesce(sum(retried) filter (where generation = $2), 0)::bigint as retried
from rowmill.counters where run = $1

-- name: error_counts
select error_class, count(*) as n, min(seq) as example
from {outcomes} where state = 2 and generation = $1
group by error_class order by n desc, error_class limit 5

-- name: closed_in_range
-- The rows of a range that this generation need not run.
select distinct seq from {outcomes}
where seq between $2 and $3 and (generation = $1 or state in (1, 3))

-- name: count_range
-- One pass for the gap check and the exact counts: the effective outcome of each row of a range.
select count(*) as n,
       count(*) filter (where state = 1) as succeeded,
       count(*) filter (where state = 2) as failed,
       count(*) filter (where state = 3) as deduplicated,
       coalesce(sum(attempts - 1) filter (where attempts > 1), 0)::bigint as retried
from (
    select distinct on (seq) seq, state, attempts from {outcomes}
    where seq between $2 and $3 and (generation = $1 or state in (1, 3))
    order by seq, (state = 2), generation
) effective

-- name: results_page
-- The effective outcome of each row after $1: a success for good, else the newest failure.
select distinct on (seq) seq, state, attempts, key, result::text as result, error_class, error_message,
       columns::text as columns, duplicate_of, input_tokens, output_tokens
from {outcomes}
where seq > $1 and seq <= $2
order by seq, (state = 2), generation desc

-- name: failures_page
-- The same of rows whose effective outcome is a failure; these have no result.
select seq, state, attempts, key, null::text as result, error_class, error_message, columns::text as columns, duplicate_of,
       input_tokens, output_tokens
from (
    select distinct on (seq) * from {outcomes} where seq > $1 and seq <= $2 order by seq, (state = 2), generation desc
) effective
where state = 2

-- name: page_ends
-- Where to end pages of about $3 bytes among the rows after $1, by what they hold: a page has more by at most one row.
-- The length of a value that is not compressed is known without reading it. With $4 only failures count.
select max(seq) as seq from (
    select seq, sum(size) over (order by seq, generation rows unbounded preceding) / $3::bigint as page
    from (
        select seq, generation,
               100 + coalesce(octet_length(key), 0) + coalesce(octet_length(error_message), 0)
               + coalesce(case when pg_column_compression(result) is null then pg_column_size(result) else octet_length(result::text) end, 0)
               + coalesce(case when pg_column_compression(columns) is null then pg_column_size(columns) else octet_length(columns::text) end, 0)
               as size
        from {outcomes} where seq > $1 and seq <= $2 and (state = 2 or not $4)
    ) sized
) paged
group by page order by seq

-- name: last_seq
select coalesce(max(seq), 0) from {outcomes}

-- name: range_state
-- What a range holds: effective outcomes, how many of them are this generation's last word, and a print that any
-- outcome that comes, goes or is recorded anew changes.
with here as (
    select seq, generation, state, finished_at from {outcomes} where seq between $2 and $3
), effective as (
    select distinct on (seq) generation, state from here order by seq, (state = 2), generation desc
)
select count(*) filter (where generation = $1 or state in (1, 3)) as closed,
       count(*) filter (where state = 1) as succeeded,
       count(*) filter (where state = 2) as failed,
       count(*) filter (where state = 3) as deduplicated,
       (select count(*) || '-' || coalesce(sum((date_part('epoch', finished_at) * 1000000)::bigint), 0) from here) as print
from effective

-- name: open_row
-- Some row of a range that this generation has yet to run; the look-up stops at the first that it finds.
select s from generate_series($2::int, $3::int) s
left join lateral (
    select 1 as closed from {outcomes} o where o.seq = s and (o.generation = $1 or o.state in (1, 3)) limit 1
) known on true
where known.closed is null limit 1

-- name: lock_rows
-- The lock's result is selected, never filtered on: WHERE and LIMIT lock rows that they then drop.
select coalesce(array_agg(pg_try_advisory_lock($1, s)), '{{}}') from unnest($2::text::int[]) s

-- name: look_up_rows
-- A statement of its own, after the locks are held: in one statement the snapshot would be older than the lock.
select s as seq from unnest($2::text::int[]) s
cross join lateral (
    select 1 from {outcomes} o where o.seq = s and (o.generation = $1 or o.state in (1, 3)) limit 1
) known

-- name: unlock_rows
select count(*) filter (where not pg_advisory_unlock($1, s)) from unnest($2::text::int[]) s

-- name: lock_keys
select coalesce(array_agg(pg_try_advisory_lock(k)), '{{}}') from unnest($1::bigint[]) k

-- name: unlock_keys
select count(*) filter (where not pg_advisory_unlock(k)) from unnest($1::bigint[]) k

-- name: commit
-- A text array that is null stands for one of nulls.
with given as (
    select * from unnest($3::text::int[], $4::text::smallint[], $5::text::int[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[],
                         $13::text::bigint[], $14::text::bigint[])
        as g (seq, state, attempts, key, result, error_class, error_message, columns, duplicate_of, input_tokens, output_tokens)
), inserted as (
    insert into {outcomes} (seq, generation, state, attempts, key, result, error_class, error_message, columns, duplicate_of, worker,
                            input_tokens, output_tokens)
    select g.seq, $2, g.state, g.attempts, g.key, g.result::json, g.error_class, g.error_message, g.columns::json, g.duplicate_of, $12,
           g.input_tokens, g.output_tokens
    from given g
    where $2 = 0 or not exists (select 1 from {outcomes} o where o.seq = g.seq and o.state in (1, 3))
    {on_conflict}
    returning state, attempts
), n as (
    select count(*) filter (where state = 1) as succeeded, count(*) filter (where state = 2) as failed,
           count(*) filter (where state = 3) as deduplicated, coalesce(sum(greatest(attempts - 1, 0)), 0) as retried, count(*) as rows
    from inserted
), counted as (
    insert into rowmill.counters as c (run, generation, worker, succeeded, failed, deduplicated, retried)
    select $1, $2, $12, succeeded, failed, deduplicated, retried from n where rows > 0
    on conflict (run, generation, worker) do update
    set succeeded = c.succeeded + excluded.succeeded, failed = c.failed + excluded.failed,
        deduplicated = c.deduplicated + excluded.deduplicated, retried = c.retried + excluded.retried
), told as (
    -- What the worker has used in all: with its outcomes, so that nobody who sees these misses what they cost.
    insert into rowmill.spend as s (run, worker, requests, input_tokens, output_tokens, cost)
    select $1, $12, $15::bigint, $16::bigint, $17::bigint, $18::numeric where $15 > 0
    on conflict (run, worker) do update
    set requests = greatest(s.requests, excluded.requests), input_tokens = greatest(s.input_tokens, excluded.input_tokens),
        output_tokens = greatest(s.output_tokens, excluded.output_tokens), cost = greatest(s.cost, excluded.cost),
        told_at = clock_timestamp()
)
select rows from n

-- name: term_holds
select 1 from rowmill.runs where id = $1 and term = $2 and epoch = $3 for share

-- name: probe_liveness
-- True where nobody holds the consumer's liveness lock; taken shared and for the transaction only.
select coalesce(array_agg(pg_try_advisory_xact_lock_shared(k)), '{{}}') from unnest($1::bigint[]) k

-- name: capacity
-- What the server's lock table and its clients may take in all; see rowmill.ledger.budget.
select current_setting('max_locks_per_transaction')::int * slots as locks, total - reserved as connections, slots, reserved
from (
    select current_setting('max_connections')::int as total,
           current_setting('max_connections')::int + current_setting('max_prepared_transactions')::int as slots,
           current_setting('superuser_reserved_connections')::int + coalesce(current_setting('reserved_connections', true)::int, 0)
           as reserved
) settings

-- name: our_sessions
-- Every session of Rowmill's on this server, in whatever database, with the runs that it leads. The numbers of the
-- leaders' locks: see rowmill.ledger.keys.
select a.pid, a.datid::bigint as database, a.application_name as name, coalesce(l.runs, '{{}}') as runs,
       a.datid = (select oid from pg_database where datname = current_database()) as here
from pg_stat_activity a
left join (
    select pid, array_agg(objid::bigint) as runs from pg_locks
    where locktype = 'advisory' and granted and objsubid = 1 and classid = $1::bigint::oid
    group by pid
) l on l.pid = a.pid
where a.application_name like 'rowmill %'

-- name: other_workers
-- What the other lock sessions on this server say of themselves.
select coalesce(array_agg(application_name), '{{}}') from pg_stat_activity
where application_name like 'rowmill worker %' and pid <> pg_backend_pid()

-- name: declare
select pg_backend_pid() from (select set_config('application_name', $1, false) offset 0) said

-- name: try_lock
select pg_try_advisory_lock($1)

-- name: unlock
select pg_advisory_unlock($1)

-- name: take_claims
-- With the keys' locks held: become the owner of each key that is free, ours already, expired, or failed and to be run again.
insert into rowmill.claims as c (digest, run, seq, owner)
select d, $2, s, o from unnest($1::bytea[], $3::int[], $4::text[]) as g (d, s, o)
on conflict (digest) do update
set run = excluded.run, seq = excluded.seq, owner = excluded.owner, state = 0, result = null, error_class = null,
    error_message = null, keep_until = null
where (c.run = excluded.run and c.seq = excluded.seq)
   or (c.state = 0 and coalesce(c.keep_until, '-infinity') < clock_timestamp())
   or (c.state <> 0 and c.keep_until < clock_timestamp())
   or (c.state = 2 and $5)
returning digest

-- name: read_claims
select digest, owner, state, result::text as result, error_class, error_message from rowmill.claims where digest = any($1::bytea[])

-- name: extend_claims
-- The owner waits for its next attempt: nobody else starts the key before it had its turn.
update rowmill.claims c set keep_until = clock_timestamp() + g.s * interval '1 second'
from unnest($1::bytea[], $3::int[], $4::float8[]) as g (d, seq, s)
where c.digest = g.d and c.run = $2 and c.seq = g.seq and c.state = 0

-- name: finish_claims
-- Once: where two executed the row, the ledger keeps the outcome that came first, and duplicates are told the same.
update rowmill.claims c
set state = g.state, result = g.result::json, error_class = g.error_class, error_message = g.error_message,
    keep_until = clock_timestamp() + $3 * interval '1 second'
from unnest($1::bytea[], $4::int[], $5::smallint[], $6::text[], $7::text[], $8::text[])
    as g (digest, seq, state, result, error_class, error_message)
where c.digest = g.digest and c.run = $2 and c.seq = g.seq and c.state = 0

-- name: expire_claims
-- Ended ones whose time is over, and those whose owner did not come back for its next attempt. Answers how many.
with gone as (
    delete from rowmill.claims where digest in (
        select digest from rowmill.claims where keep_until < clock_timestamp() limit 10000 for update skip locked)
    returning 1)
select count(*) from gone

-- name: keep_results
-- What the manifest says of the results: how long they are kept, whether somebody has yet to write them elsewhere.
update rowmill.runs set retention_seconds = $3, output_pending = $4 where id = $1 and term = $2 and dropped_at is null
returning *

-- name: output_written
update rowmill.runs set output_pending = false where id = $1 and term = $2 and output_pending

-- name: note_retention
-- Of runs of which it is not known, or ($6) of all that are given. Answers those that are dropped already.
with given as (
    select * from unnest($2::text[], $3::text[], $4::text[], $5::bigint[]) as g (namespace, name, run_id, seconds)
), noted as (
    update rowmill.runs r set retention_seconds = g.seconds from given g
    where r.installation = $1 and r.namespace = g.namespace and r.name = g.name and r.run_id = g.run_id
      and (r.retention_seconds is null or $6) and r.dropped_at is null
)
select r.namespace, r.name, r.run_id, r.dropped_at from rowmill.runs r join given g using (namespace, name, run_id)
where r.installation = $1 and r.dropped_at is not null

-- name: expired_runs
-- By the clock of this server, as the end was.
select * from rowmill.runs
where installation = $1 and id > $2 and dropped_at is null and phase in ('Complete', 'Failed') and not output_pending
  and (finished_at at time zone 'UTC') + retention_seconds * interval '1 second' <= now() at time zone 'UTC'
order by id limit $3

-- name: try_lock_in_transaction
select pg_try_advisory_xact_lock($1)

-- name: lock_shared
select pg_advisory_lock_shared($1)

-- name: still_expired
-- In a statement of its own, after the locks are held.
select 1 from rowmill.runs
where id = $1 and term = $2 and dropped_at is null and phase in ('Complete', 'Failed') and not output_pending
  and (finished_at at time zone 'UTC') + retention_seconds * interval '1 second' <= clock_timestamp() at time zone 'UTC'
for update

-- name: drop_outcomes
drop table if exists {outcomes}

-- name: fold_counters
-- One row a generation for all its workers: they are gone, what they counted is told for good.
with gone as (delete from rowmill.counters where run = $1 returning *)
insert into rowmill.counters (run, generation, worker, succeeded, failed, deduplicated, retried)
select run, generation, '(all)', sum(succeeded), sum(failed), sum(deduplicated), sum(retried) from gone group by run, generation

-- name: fold_spend
with gone as (delete from rowmill.spend where run = $1 returning *)
insert into rowmill.spend (run, worker, requests, input_tokens, output_tokens, cost)
select run, '(all)', sum(requests + held_requests), sum(input_tokens + held_tokens), sum(output_tokens), sum(cost + held_cost)
from gone group by run

-- name: narrow_outcomes
-- Tables of runs that were made before a row's tokens were recorded.
select quote_ident(c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = 'rowmill' and c.relkind = 'r' and c.relname ~ '^outcomes_[0-9]+$' and not exists (
    select 1 from pg_attribute a where a.attrelid = c.oid and a.attname = 'output_tokens' and not a.attisdropped)

-- name: mark_dropped
-- A new term: whoever drove the run and was paused writes nothing any more.
update rowmill.runs
set dropped_at = clock_timestamp(), term = term + 1, errors = $2, feed_position = null
where id = $1
returning *

-- name: record_notice
insert into rowmill.notices (run, generation, event, occasion, body)
select id, $5, $6, $7, $8::json from rowmill.runs
where installation = $1 and namespace = $2 and name = $3 and run_id = $4
on conflict (run, generation, event, occasion) do nothing
returning run

-- name: trim_notices
delete from rowmill.notices n where n.run = $1 and n.ended_at is not null and n.id not in (
    select k.id from rowmill.notices k where k.run = $1 and k.ended_at is not null order by k.id desc limit $2)

-- name: open_notices
-- Those that are due first: a new one never waits behind many that are refused.
select n.id, r.run_id, r.token, n.generation, n.event, n.occasion, n.body::text as body, n.tries, n.problem,
       extract(epoch from clock_timestamp() - n.created_at)::float8 as age,
       extract(epoch from n.try_at - clock_timestamp())::float8 as wait
from rowmill.notices n join rowmill.runs r on r.id = n.run
where r.installation = $1 and r.namespace = $2 and r.name = $3 and n.ended_at is null
order by n.try_at, n.id limit $4

-- name: end_notice
-- Acknowledged is the last word: an operator that gave up meanwhile does not take it back.
update rowmill.notices
set ended_at = coalesce(ended_at, clock_timestamp()), delivered = delivered or $2, tries = tries + 1,
    problem = coalesce($3, problem)
where id = $1

-- name: postpone_notice
update rowmill.notices
set tries = tries + 1, try_at = clock_timestamp() + $2 * interval '1 second', problem = $3
where id = $1 and ended_at is null

-- name: tell_spend
select granted, what, need, room, for_good from rowmill.tell_spend($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)

-- name: leave_spend
-- Told once: what a worker that left has used is added up in one row. What it may still have held was perhaps sent.
with gone as (delete from rowmill.spend where run = $1 and worker = $2 returning *)
insert into rowmill.spend as s (run, worker, requests, input_tokens, output_tokens, cost)
select run, '(left)', requests + held_requests, input_tokens + held_tokens, output_tokens, cost + held_cost from gone
on conflict (run, worker) do update
set requests = s.requests + excluded.requests, input_tokens = s.input_tokens + excluded.input_tokens,
    output_tokens = s.output_tokens + excluded.output_tokens, cost = s.cost + excluded.cost,
    told_at = clock_timestamp()

-- name: spend_of_run
-- Of a worker that has said nothing for $2 seconds what it holds counts too: it may have been sent. What it complained of
-- counts no more: one that lives says it again.
select coalesce(sum(requests + case when silent then held_requests else 0 end), 0)::bigint as requests,
       coalesce(sum(input_tokens + case when silent then held_tokens else 0 end), 0)::bigint as input_tokens,
       coalesce(sum(output_tokens), 0)::bigint as output_tokens,
       coalesce(sum(cost + case when silent then held_cost else 0 end), 0) as cost,
       (array_agg(shortage::text) filter (where shortage is not null and not silent))[1] as shortage,
       (array_agg(refused) filter (where refused is not null and not silent))[1] as refused
from (
    select *, told_at < clock_timestamp() - $2::float8 * interval '1 second' as silent from rowmill.spend where run = $1
) said

-- name: forget_complaints
update rowmill.spend set shortage = null, refused = null
where run = $1 and (shortage is not null or refused is not null)
  and exists (select 1 from rowmill.runs where id = $1 and term = $2)

-- name: save_budget
update rowmill.runs set budget = $3 where id = $1 and term = $2 returning *

-- name: save_pause
-- Standing still, for the reason given; null: nothing is in the way any more.
update rowmill.runs
set pause = $3, phase = case when $3::json is null then phase else 'Suspended' end,
    message = case when $3::json is null then message else $3::json ->> 'message' end
where id = $1 and term = $2
returning *
