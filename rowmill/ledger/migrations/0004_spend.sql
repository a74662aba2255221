-- What runs use, and how much they may. Every worker has a row of its own and always writes the whole sums: a reply that
-- is lost is repeated and changes nothing. What was used never becomes less.
create table rowmill.spend (
    run            int     not null references rowmill.runs on delete cascade,
    worker         text    not null,
    requests       bigint  not null default 0,        -- calls that are over, since this worker began
    input_tokens   bigint  not null default 0,
    output_tokens  bigint  not null default 0,
    cost           numeric not null default 0,
    held_requests  bigint  not null default 0,        -- reserved for calls that are under way
    held_tokens    bigint  not null default 0,
    held_cost      numeric not null default 0,
    shortage       json,                              -- a call that nothing under way can make room for
    refused        text,                              -- a sentence: the endpoint takes none of this worker's calls
    telling        bigint  not null default 0,        -- its number: one that comes late, after a younger one, is not heard
    told_at        timestamptz not null default clock_timestamp(),
    primary key (run, worker)
) with (fillfactor = 50);

alter table rowmill.runs
    add column budget json,                           -- of the manifest as the engine has it; null: no bound
    add column pause  json,                           -- why it stands still though nobody suspended it
    add column source_rows bigint;                    -- of the whole source, where row_limit lets fewer in; null: not counted

alter table rowmill.outcomes
    add column input_tokens  bigint,                  -- that the row's last call used, where its endpoint tells
    add column output_tokens bigint;                  -- runs of before: see `migrate.widen`

-- What a worker has used and holds, and the calls that it wants to send. Answers how many of them it may, from the
-- first on, and of the next one what it lacks; `for_good` when nothing that is under way could make room for it.
--
-- Two statements where one would do: the second sees what was written before the lock was had. A worker that has said
-- nothing for `silent` seconds may have sent what it holds, and never says so: that counts as used.
create function rowmill.tell_spend(
    of_run int, of_worker text, lock bigint, silent float8,
    used_requests bigint, used_input bigint, used_output bigint, used_cost numeric,
    holds_requests bigint, holds_tokens bigint, holds_cost numeric,
    want_tokens bigint[], want_costs numeric[], is_refused text, number bigint
) returns table (granted int, what text, need numeric, room numeric, for_good boolean)
language plpgsql volatile as $$
declare
    bound json;
    others record;
    free_requests numeric; free_tokens numeric; free_cost numeric;
    wanted int := coalesce(cardinality(want_tokens), 0);
    one int;
    short json;
begin
    granted := 0;
    for_good := false;
    if wanted > 0 then
        perform pg_advisory_xact_lock(lock);
    end if;
    select runs.budget into bound from rowmill.runs where runs.id = of_run;
    if wanted > 0 and bound is null then
        granted := wanted;
    elsif wanted > 0 then
        select coalesce(sum(s.requests + s.held_requests), 0) as requests,
               coalesce(sum(s.input_tokens + s.output_tokens + s.held_tokens), 0) as tokens,
               coalesce(sum(s.cost + s.held_cost), 0) as cost,
               coalesce(sum(s.held_requests) filter (where s.told_at > clock_timestamp() - silent * interval '1 second'), 0) as under_way
        into others from rowmill.spend s where s.run = of_run and s.worker <> of_worker;
        free_requests := (bound ->> 'requests')::numeric - others.requests - used_requests - holds_requests;
        free_tokens := (bound ->> 'tokens')::numeric - others.tokens - used_input - used_output - holds_tokens;
        free_cost := (bound ->> 'cost')::numeric - others.cost - used_cost - holds_cost;
        for one in 1 .. wanted loop
            if free_requests < 1 then
                what := 'requests'; need := 1; room := greatest(free_requests, 0);
            elsif free_tokens < want_tokens[one] then
                what := 'tokens'; need := want_tokens[one]; room := greatest(free_tokens, 0);
            elsif free_cost < want_costs[one] then
                what := 'cost'; need := want_costs[one]; room := greatest(free_cost, 0);
            end if;
            exit when what is not null;
            granted := granted + 1;
            free_requests := free_requests - 1;
            free_tokens := free_tokens - want_tokens[one];
            free_cost := free_cost - want_costs[one];
        end loop;
        for_good := what is not null and granted = 0 and holds_requests = 0 and others.under_way = 0;
        if for_good then
            short := json_build_object('what', what, 'need', need::text, 'left', room::text);
        end if;
    end if;
    insert into rowmill.spend as mine (run, worker, requests, input_tokens, output_tokens, cost,
                                       held_requests, held_tokens, held_cost, shortage, refused, telling)
    values (of_run, of_worker, used_requests, used_input, used_output, used_cost,
            holds_requests + granted,
            holds_tokens + coalesce((select sum(t) from unnest(want_tokens[1:granted]) t), 0),
            holds_cost + coalesce((select sum(c) from unnest(want_costs[1:granted]) c), 0), short, is_refused, number)
    on conflict (run, worker) do update
    set requests = greatest(mine.requests, excluded.requests), input_tokens = greatest(mine.input_tokens, excluded.input_tokens),
        output_tokens = greatest(mine.output_tokens, excluded.output_tokens), cost = greatest(mine.cost, excluded.cost),
        held_requests = excluded.held_requests, held_tokens = excluded.held_tokens,
        held_cost = excluded.held_cost, refused = excluded.refused, telling = excluded.telling,
        shortage = case when wanted = 0 then mine.shortage else excluded.shortage end, told_at = clock_timestamp()
    where mine.telling < excluded.telling;
    if not found then
        granted := 0; what := null; need := null; room := null; for_good := false;
    end if;
    return next;
end $$;
