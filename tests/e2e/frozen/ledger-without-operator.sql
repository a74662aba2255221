-- A ledger as a release without an operator left it: its command line had run 60 rows of takeover/job, run 1, against
-- http://endpoint.takeover.svc:8080/, and was interrupted twice. 23 rows succeeded, row 5 failed for good, four were on
-- their way (25 to 28), the others had not begun. Written by pg_dump; keep it as it is: it stands for data out there.
CREATE SCHEMA rowmill;
CREATE TABLE rowmill.claims (
    digest bytea NOT NULL,
    run integer NOT NULL,
    seq integer NOT NULL,
    owner text NOT NULL,
    state smallint DEFAULT 0 NOT NULL,
    result json,
    error_class text,
    error_message text,
    keep_until timestamp with time zone
);
CREATE TABLE rowmill.counters (
    run integer NOT NULL,
    generation integer NOT NULL,
    worker text NOT NULL,
    succeeded bigint DEFAULT 0 NOT NULL,
    failed bigint DEFAULT 0 NOT NULL,
    deduplicated bigint DEFAULT 0 NOT NULL,
    retried bigint DEFAULT 0 NOT NULL
)
WITH (fillfactor='50');
CREATE TABLE rowmill.migrations (
    version integer NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);
CREATE TABLE rowmill.outcomes (
    seq integer NOT NULL,
    generation integer NOT NULL,
    state smallint NOT NULL,
    attempts integer NOT NULL,
    key text,
    result json,
    error_class text,
    error_message text,
    columns json,
    duplicate_of text,
    worker text NOT NULL,
    finished_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);
CREATE TABLE rowmill.outcomes_1 (
    seq integer CONSTRAINT outcomes_seq_not_null NOT NULL,
    generation integer CONSTRAINT outcomes_generation_not_null NOT NULL,
    state smallint CONSTRAINT outcomes_state_not_null NOT NULL,
    attempts integer CONSTRAINT outcomes_attempts_not_null NOT NULL,
    key text,
    result json,
    error_class text,
    error_message text,
    columns json,
    duplicate_of text,
    worker text CONSTRAINT outcomes_worker_not_null NOT NULL,
    finished_at timestamp with time zone DEFAULT clock_timestamp() CONSTRAINT outcomes_finished_at_not_null NOT NULL
);
CREATE TABLE rowmill.runs (
    id integer NOT NULL,
    installation text NOT NULL,
    namespace text NOT NULL,
    name text NOT NULL,
    run_id text NOT NULL,
    token text NOT NULL,
    frozen json NOT NULL,
    shards integer NOT NULL,
    fingerprint text,
    row_limit bigint,
    total bigint,
    generation integer DEFAULT 0 NOT NULL,
    epoch integer DEFAULT 0 NOT NULL,
    term bigint DEFAULT 0 NOT NULL,
    phase text DEFAULT 'Pending'::text NOT NULL,
    message text DEFAULT ''::text NOT NULL,
    feed_position json,
    counts json,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    started_at timestamp with time zone,
    finished_at timestamp with time zone
);
ALTER TABLE rowmill.runs ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME rowmill.runs_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
INSERT INTO rowmill.counters VALUES (1, 0, 'w0-6c9ca413-bdbb88a8', 23, 1, 0, 0);
INSERT INTO rowmill.migrations VALUES (1, '2026-11-22 06:15:35.318893+00');
INSERT INTO rowmill.outcomes_1 VALUES (1, 0, 1, 1, NULL, '{"row":"1","ok":true}', NULL, NULL, NULL, NULL, 'w0-6c9ca413-bdbb88a8', '2026-11-22 06:15:37.093454+00');
INSERT INTO rowmill.outcomes_1 VALUES (2, 0, 1, 1, NULL, '{"row":"2","ok":true}', NULL, NULL, NULL, NULL, 'w0-6c9ca413-bdbb88a8', '2026-11-22 06:15:37.09363+00');
INSERT INTO rowmill.outcomes_1 VALUES (3, 0, 1, 1, NULL, '{"row":"3","ok":true}', NULL, NULL, NULL, NULL, 'w0-6c9ca413-bdbb88a8', '2026-11-22 06:15:37.093635+00');
INSERT INTO rowmill.outcomes_1 VALUES (4, 0, 1, 1, NULL, '{"row":"4","ok":true}', NULL, NULL, NULL, NULL, 'w0-6c9ca413-bdbb88a8', '2026-11-22 06:15:37.093638+00');
INSERT INTO rowmill.outcomes_1 VALUES (8, 0, 1, 1, NULL, '{"row":"8","ok":true}', NULL, NULL, NULL, NULL, 'w0-6c9ca413-bdbb88a8', '2026-11-22 06:15:37.093639+00');
INSERT INTO rowmill.outcomes_1 VALUES (5, 0, 2, 1, NULL, NULL, 'HTTP400', 'http://endpoint.takeover.svc:8080 answered 400 Bad Request; the endpoint refuses the request as malformed; check spec.executor.http.body and headers; its answer began: {"error":"played 400"}', NULL, NULL, 'w0-6c9ca413-bdbb88a8', '2026-11-22 06:15:37.106879+00');
INSERT INTO rowmill.outcomes_1 VALUES (6, 0, 1, 1, NULL, '{"row":"6","ok":true}', NULL, NULL, NULL, NULL, 'w0-6c9ca413-bdbb88a8', '2026-11-22 06:15:37.106986+00');
INSERT INTO rowmill.outcomes_1 VALUES (7, 0, 1, 1, NULL, '{"row":"7","ok":true}', NULL, NULL, NULL, NULL, 'w0-6c9ca413-bdbb88a8', '2026-11-22 06:15:37.106995+00');
INSERT INTO rowmill.outcomes_1 VALUES (9, 0, 1, 1, NULL, '{"row":"9","ok":true}', NULL, NULL, NULL, NULL, 'w0-6c9ca413-bdbb88a8', '2026-11-22 06:15:37.106998+00');
INSERT INTO rowmill.outcomes_1 VALUES (10, 0, 1, 1, NULL, '{"row":"10","ok":true}', NULL, NULL, NULL, NULL, 'w0-6c9ca413-bdbb88a8', '2026-11-22 06:15:37.107+00');
INSERT INTO rowmill.outcomes_1 VALUES (11, 0, 1, 1, NULL, '{"row":"11","ok":true}', NULL, NULL, NULL, NULL, 'w0-6c9ca413-bdbb88a8', '2026-11-22 06:15:37.107002+00');
INSERT INTO rowmill.outcomes_1 VALUES (12, 0, 1, 1, NULL, '{"row":"12","ok":true}', NULL, NULL, NULL, NULL, 'w0-6c9ca413-bdbb88a8', '2026-11-22 06:15:37.107003+00');
INSERT INTO rowmill.outcomes_1 VALUES (13, 0, 1, 1, NULL, '{"row":"13","ok":true}', NULL, NULL, NULL, NULL, 'w0-6c9ca413-bdbb88a8', '2026-11-22 06:15:37.107005+00');
INSERT INTO rowmill.outcomes_1 VALUES (14, 0, 1, 1, NULL, '{"row":"14","ok":true}', NULL, NULL, NULL, NULL, 'w0-6c9ca413-bdbb88a8', '2026-11-22 06:15:37.107006+00');
INSERT INTO rowmill.outcomes_1 VALUES (15, 0, 1, 1, NULL, '{"row":"15","ok":true}', NULL, NULL, NULL, NULL, 'w0-6c9ca413-bdbb88a8', '2026-11-22 06:15:37.107008+00');
INSERT INTO rowmill.outcomes_1 VALUES (16, 0, 1, 1, NULL, '{"row":"16","ok":true}', NULL, NULL, NULL, NULL, 'w0-6c9ca413-bdbb88a8', '2026-11-22 06:15:37.10701+00');
INSERT INTO rowmill.outcomes_1 VALUES (17, 0, 1, 1, NULL, '{"row":"17","ok":true}', NULL, NULL, NULL, NULL, 'w0-6c9ca413-bdbb88a8', '2026-11-22 06:15:37.107011+00');
INSERT INTO rowmill.outcomes_1 VALUES (18, 0, 1, 1, NULL, '{"row":"18","ok":true}', NULL, NULL, NULL, NULL, 'w0-6c9ca413-bdbb88a8', '2026-11-22 06:15:37.107013+00');
INSERT INTO rowmill.outcomes_1 VALUES (19, 0, 1, 1, NULL, '{"row":"19","ok":true}', NULL, NULL, NULL, NULL, 'w0-6c9ca413-bdbb88a8', '2026-11-22 06:15:37.107014+00');
INSERT INTO rowmill.outcomes_1 VALUES (20, 0, 1, 1, NULL, '{"row":"20","ok":true}', NULL, NULL, NULL, NULL, 'w0-6c9ca413-bdbb88a8', '2026-11-22 06:15:37.107016+00');
INSERT INTO rowmill.outcomes_1 VALUES (21, 0, 1, 1, NULL, '{"row":"21","ok":true}', NULL, NULL, NULL, NULL, 'w0-6c9ca413-bdbb88a8', '2026-11-22 06:15:37.116877+00');
INSERT INTO rowmill.outcomes_1 VALUES (22, 0, 1, 1, NULL, '{"row":"22","ok":true}', NULL, NULL, NULL, NULL, 'w0-6c9ca413-bdbb88a8', '2026-11-22 06:15:37.116916+00');
INSERT INTO rowmill.outcomes_1 VALUES (23, 0, 1, 1, NULL, '{"row":"23","ok":true}', NULL, NULL, NULL, NULL, 'w0-6c9ca413-bdbb88a8', '2026-11-22 06:15:37.11692+00');
INSERT INTO rowmill.outcomes_1 VALUES (24, 0, 1, 1, NULL, '{"row":"24","ok":true}', NULL, NULL, NULL, NULL, 'w0-6c9ca413-bdbb88a8', '2026-11-22 06:15:37.116922+00');
INSERT INTO rowmill.runs OVERRIDING SYSTEM VALUE VALUES (1, 'local', 'takeover', 'job', '1', '5ca6c31a0b9c', '{"mode": "Run", "source": {"rows": {"count": 60, "digest": "4f7f1329f22b9dfade63aff9d1a325cf"}}, "key": [], "executor": {"http": {"url": "http://endpoint.takeover.svc:8080/", "method": "POST", "headers": [], "body": {"row": "{{ row.id }}"}}}, "shards": 4, "timeoutSeconds": 10}', 4, 'blake2b:aa55772df5f56700ec6067f16fb8d7380633f985b3f3e48ced142ed3790bfc40', NULL, 60, 0, 1, 1, 'Running', '', '{"seq": 61, "hint": {}, "last_seqs": [60, 57, 58, 59]}', NULL, '2026-11-22 06:15:35.350832+00', '2026-11-22 06:15:35.390225+00', NULL);
SELECT pg_catalog.setval('rowmill.runs_id_seq', 1, true);
ALTER TABLE ONLY rowmill.claims
    ADD CONSTRAINT claims_pkey PRIMARY KEY (digest);
ALTER TABLE ONLY rowmill.counters
    ADD CONSTRAINT counters_pkey PRIMARY KEY (run, generation, worker);
ALTER TABLE ONLY rowmill.migrations
    ADD CONSTRAINT migrations_pkey PRIMARY KEY (version);
ALTER TABLE ONLY rowmill.outcomes_1
    ADD CONSTRAINT outcomes_1_pkey PRIMARY KEY (seq, generation);
ALTER TABLE ONLY rowmill.outcomes
    ADD CONSTRAINT outcomes_pkey PRIMARY KEY (seq, generation);
ALTER TABLE ONLY rowmill.runs
    ADD CONSTRAINT runs_installation_namespace_name_run_id_key UNIQUE (installation, namespace, name, run_id);
ALTER TABLE ONLY rowmill.runs
    ADD CONSTRAINT runs_pkey PRIMARY KEY (id);
CREATE INDEX claims_keep_until_idx ON rowmill.claims USING btree (keep_until);
CREATE INDEX outcomes_1_generation_error_class_seq_idx ON rowmill.outcomes_1 USING btree (generation, error_class, seq) WHERE (state = 2);
CREATE INDEX outcomes_generation_error_class_seq_idx ON rowmill.outcomes USING btree (generation, error_class, seq) WHERE (state = 2);
ALTER TABLE ONLY rowmill.counters
    ADD CONSTRAINT counters_run_fkey FOREIGN KEY (run) REFERENCES rowmill.runs(id) ON DELETE CASCADE;
