"""rows.py: the measures of test/bench/rows, on servers that it has started.

Sides that are compared take turns within a round, so that what else the machine does hits both; a figure is the median
of the rounds, a ratio the median of the rounds' ratios, and the spread stands beside it. No prompt is used twice unless
that is said: the engine remembers prompts, and would win by it.
"""
import argparse
import re
import statistics
import subprocess
import tempfile
import threading
import time

ROUNDS = 5

# A request that does not end by itself: at this temperature words are drawn almost evenly, and this seed draws no end.
ENDLESS = ("'Describe these countries: France, Japan.'", "max_tokens => 1900, temperature => 100, seed => 1")


class Session:
    """A psql that is fed line by line."""

    def __init__(self, setup="", port=5432):
        self.process = subprocess.Popen(
            [args.bin + "/psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", args.host, "-p", str(port), "-U", "postgres",
             "postgres"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1)
        self.notices = []
        threading.Thread(target=self._read_notices, daemon=True).start()
        if setup:
            self.ask(setup)

    def _read_notices(self):
        for line in self.process.stderr:
            self.notices.append(line.rstrip())

    def begin(self, sql):
        self.process.stdin.write(sql + ";\n\\echo -- end\n")
        self.process.stdin.flush()

    def end(self):
        lines = []
        for line in self.process.stdout:
            if line == "-- end\n":
                return lines
            lines.append(line.rstrip("\n"))
        raise RuntimeError("\n".join(self.notices))

    def ask(self, sql):
        self.begin(sql)
        return self.end()

    def seconds(self, sql):
        """Of a query whose rows are fetched and thrown away."""
        self.ask("\\o /dev/null\nSELECT")
        start = time.perf_counter()
        self.ask(sql)
        took = time.perf_counter() - start
        self.ask("\\o\nSELECT")
        return took

    def wait_until(self, condition):
        deadline = time.monotonic() + 60
        while self.ask("SELECT " + condition) != ["t"]:
            if time.monotonic() > deadline:
                raise RuntimeError("waited in vain for " + condition)
            time.sleep(0.01)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def pgbench(script, clients, transactions, port=5432):
    """Transactions a second, connecting not counted."""
    command = [args.bin + "/pgbench", "-n", "-h", args.host, "-p", str(port), "-U", "postgres"]
    command += ["-c", str(clients), "-j", "2", "-t", str(transactions)]
    command += ["-S"] if script is None else ["-f", script]
    out = subprocess.run(command + ["postgres"], check=True, capture_output=True, text=True).stdout
    return float(re.search(r"tps = ([0-9.]+) \(without", out).group(1))


def file_of(text):
    with tempfile.NamedTemporaryFile("w", dir=args.host, suffix=".sql", delete=False) as f:
        f.write(text)
    return f.name


def p95(values):
    return sorted(values)[int(len(values) * 0.95)]


def spread(values, form="{:.2f}"):
    return "{} .. {}".format(form.format(min(values)), form.format(max(values)))


def row(measure, target, figure, reached, note):
    print("|", " | ".join((measure, target, figure, "yes" if reached else "**no**", note)), "|", flush=True)


def prompts(round_, n):
    """A query for n prompts of a round, none of which begins as one of another round does."""
    return ("(SELECT format('Note %s-{}. %s', i, prompt) AS prompt FROM docs, generate_series(1, {} / 30) i"
            " ORDER BY i, id LIMIT {}) AS prompts".format(round_, n + 60, n))


# ---- a thousand rows ----

def offline_seconds(session, round_, n):
    """What the engine takes for the same prompts by itself, loading not counted."""
    lines = session.ask("SELECT json_build_object('prompt', prompt, 'max_tokens', 64) FROM " + prompts(round_, n))
    took = []
    for part in (lines[:1], lines):
        path = file_of("\n".join(part) + "\n")
        start = time.perf_counter()
        out = subprocess.run([args.engine, "generate", "-m", args.model, path], check=True, capture_output=True).stdout
        took.append(time.perf_counter() - start)
        assert len(out.splitlines()) == len(part)
    return took[1] - took[0]


def measure_batch():
    session = Session()
    n = 1000
    sql, offline = [], []
    for round_ in range(ROUNDS):
        sql.append(n / session.seconds("SELECT qwen_generate(prompt, max_tokens => 64) FROM " + prompts(round_, n)))
        offline.append(n / offline_seconds(session, round_, n))
    ratios = [a / b for a, b in zip(sql, offline)]
    session.close()
    row("1,000 rows in SQL, against `qwen-engine generate` on the same prompts", "≥ 0.9",
        "{:.2f}".format(statistics.median(ratios)), statistics.median(ratios) >= 0.9,
        "{:.0f} and {:.0f} rows/s; {}".format(statistics.median(sql), statistics.median(offline), spread(ratios)))


# ---- many sessions ----

def measure_sessions():
    """
    The prompts of one statement must have no more in common than those of different sessions, or the prefix cache makes
    less work of them: the row's number comes first.  A new connection costs the server as much as a few rows cost the
    engine, whatever its first statement is, so each has many.
    """
    ask = "SELECT qwen_generate(format('Note %s-%s. %s', id, :a, prompt), max_tokens => 64) FROM "
    one = file_of("\\set a random(1, 1000000000)\n\\set i random(1, 30)\n" + ask + "docs WHERE id = :i;\n")
    many = file_of("\\set a random(1, 1000000000)\n" + ask +
                   "(SELECT id + 100 * i AS id, prompt FROM docs, generate_series(1, 3) i LIMIT 64) AS d;\n")
    sessions, single = [], []
    for _ in range(ROUNDS):
        sessions.append(pgbench(one, 64, transactions=32))
        single.append(64 * pgbench(many, 1, transactions=32))
    ratios = [a / b for a, b in zip(sessions, single)]
    row("64 sessions with a row each, against one session with 64 rows", "≥ 0.9",
        "{:.2f}".format(statistics.median(ratios)), statistics.median(ratios) >= 0.9,
        "{:.0f} and {:.0f} rows/s; {}".format(statistics.median(sessions), statistics.median(single), spread(ratios)))


# ---- common beginnings, and equal prompts ----

def counters(session):
    """Answers, tokens of their prompts, and of these the ones that were in the prefix cache."""
    line = session.ask("SELECT sum(answers), sum(prompt_tokens), sum(cached_tokens) FROM qwen_stat")[0]
    return [int(part or 0) for part in line.split("|")]


def counted(session, sql):
    """Runs a query; gives its first line, its seconds, and by how much the counters have risen."""
    before = counters(session)
    start = time.perf_counter()
    line = session.ask(sql)[0]
    took = time.perf_counter() - start
    return [line, took] + [b - a for a, b in zip(before, counters(session))]


def templated(round_, n, templates):
    """A query for the answers, as one, to n rows that each fill one of the templates of about 500 tokens, in turn."""
    template = "repeat('The office in Bern was founded by Maria Santos in 1996. ', 31)"
    prompt = "format('%s-%s. ', {}, i % {}) || {} || format('What is %s + 25?', i)".format(round_, templates, template)
    return ("SELECT md5(string_agg(qwen_generate(p, max_tokens => 8), '|' ORDER BY i))"
            " FROM (SELECT i, {} AS p FROM generate_series(1, {}) AS i) AS s".format(prompt, n)), template


def row_templates(name, session, rounds, n, templates, times):
    """
    Each template is to be computed so many times at most.  Tokens of a block that only part of is common are the row's
    own, so each row may have a block more.
    """
    block = 16
    on, off, share, allowed, equal = [], [], [], [], True
    for round_ in range(rounds):
        sql, template = templated("'{}-{}'".format(templates, round_), n, templates)
        common = int(session.ask("SELECT qwen_token_count({})".format(template))[0])
        answers, took, _, submitted, cached = counted(session, sql)
        session.ask("SET qwen.cache = off")
        plain, plain_took, _, _, none = counted(session, sql)
        session.ask("RESET qwen.cache")
        assert none == 0
        equal = equal and answers == plain
        on.append(took)
        off.append(plain_took)
        share.append(100 * (submitted - cached) / submitted)
        allowed.append(100 * (times * templates * common + submitted - n * common + n * block) / submitted)
    row(name, "≤ {:.1f} %, same answers".format(min(allowed)), "{:.1f} %".format(max(share)),
        equal and all(s <= a for s, a in zip(share, allowed)),
        "of {} tokens; {:.1f} s, {:.1f} s without the cache; answers {}".format(
            submitted, statistics.median(on), statistics.median(off), "equal" if equal else "differ"))


def reload(session, sql, condition):
    session.ask(sql)
    session.ask("SELECT qwen_reload()")
    session.wait_until("state = 'ready' AND (SELECT {} FROM qwen_stat_engine) FROM qwen_status()".format(condition))


def measure_templates():
    session = Session()
    row_templates("1,000 rows of a template of 500 tokens, computed once: tokens computed", session, 3, 1000, 1, 1)
    reload(session, "ALTER SYSTEM SET qwen.kv_memory = '5MB'", "kv_blocks < 250")
    row_templates("240 rows of 8 such templates in turn, cache for 5, computed twice: tokens computed", session, 1, 240,
                  8, 2)
    reload(session, "ALTER SYSTEM RESET qwen.kv_memory", "kv_blocks > 250")
    session.close()


def measure_duplicates():
    session = Session()
    ran, took = [], []
    for round_ in range(ROUNDS):
        _, seconds, answers, _, _ = counted(
            session, "SELECT count(qwen_generate(format('Note %s. What is %s + 25?', {}, i % 100)))"
            " FROM generate_series(1, 10000) AS i".format(round_))
        ran.append(answers)
        took.append(seconds)
    session.close()
    row("10,000 rows with 100 distinct prompts", "100 run", str(max(ran)), max(ran) == min(ran) == 100,
        "{:.2f} s; {}".format(statistics.median(took), spread(took)))


# ---- one call ----

def measure_call():
    """The statement's time, parsed and planned and run inside the server, less what the engine says it took."""
    session = Session(r"""
        CREATE OR REPLACE FUNCTION outside_us(n int) RETURNS SETOF float8 LANGUAGE plpgsql AS $$
        DECLARE start timestamptz; r qwen_result;
        BEGIN
            FOR i IN 1 .. n LOOP
                start := clock_timestamp();
                EXECUTE 'SELECT (r).* FROM (SELECT qwen_try_generate(''What is 17 + 25?'') AS r OFFSET 0) AS x' INTO r;
                RETURN NEXT 1e6 * extract(epoch FROM clock_timestamp() - start) - 1000 * (r.queue_ms + r.run_ms);
            END LOOP;
        END $$""")
    session.ask("SELECT count(*) FROM outside_us(20)")
    medians = [statistics.median(map(float, session.ask("SELECT outside_us(100)"))) for _ in range(ROUNDS)]
    session.close()
    row("one call, empty queue: time outside the engine", "< 300 µs", "{:.0f} µs".format(statistics.median(medians)),
        statistics.median(medians) < 300, spread(medians, "{:.0f}") + ", each the median of 100 calls")


# ---- one row beside ten thousand ----

def latencies(session, n):
    """Of n calls, in ms: all in all, in the engine's queue, and running."""
    lines = session.ask("SELECT * FROM latency_ms({})".format(n))
    return zip(*(map(float, line.split("|")) for line in lines))


def step_ms(session):
    """Of the engine at what it does now, from the counters of two of its heartbeats."""
    beats = []
    while len(beats) < 3:
        steps = int(session.ask("SELECT steps FROM qwen_stat_engine")[0])
        if not beats or steps != beats[-1][1]:
            beats.append((time.perf_counter(), steps))
        time.sleep(0.002)
    (start, first), (end, last) = beats[1:]
    return 1000 * (end - start) / (last - first)


def measure_latency():
    session = Session(r"""
        CREATE OR REPLACE FUNCTION latency_ms(n int, OUT total float8, OUT queue float8, OUT run float8)
        RETURNS SETOF record LANGUAGE plpgsql AS $$
        DECLARE start timestamptz; r qwen_result;
        BEGIN
            FOR i IN 1 .. n LOOP
                start := clock_timestamp();
                r := qwen_try_generate(format('Note %s. What is 17 + 25?', clock_timestamp()), max_tokens => 16);
                total := 1e3 * extract(epoch FROM clock_timestamp() - start);
                queue := r.queue_ms;
                run := r.run_ms;
                RETURN NEXT;
            END LOOP;
        END $$""")
    statement = Session()
    latencies(session, 10)
    idle, busy, queue, run, steps = [], [], [], [], []
    for round_ in range(ROUNDS):
        idle.append(p95(list(latencies(session, 100))[0]))
        pid = statement.ask("SELECT pg_backend_pid()")[0]
        statement.begin("SELECT count(qwen_generate(prompt, max_tokens => 64)) FROM " + prompts(round_, 10000))
        session.wait_until("count(*) > 8 FROM qwen_requests WHERE pid = " + pid)
        steps.append(step_ms(session))
        total, queued, ran = latencies(session, 50)
        busy.append(p95(total))
        queue.append(p95(queued))
        run.append(p95(ran))
        session.ask("SELECT pg_cancel_backend({})".format(pid))
        statement.process.wait()
        statement = Session()
    statement.close()
    session.close()
    limits = [2 * i + s for i, s in zip(idle, steps)]
    ratios = [b / limit for b, limit in zip(busy, limits)]
    row("p95 of a one-row call during a 10,000-row statement, against 2 x idle + a step", "< 1",
        "{:.2f}".format(statistics.median(ratios)), statistics.median(ratios) < 1,
        "{:.1f} ms (p95 of the queue {:.1f}, of running {:.1f}), idle {:.1f} ms, mean step {:.1f} ms; {}".format(
            *(statistics.median(x) for x in (busy, queue, run, idle, steps)), spread(ratios)))


# ---- the library at rest ----

POINT_QUERY = r"""
    CREATE OR REPLACE FUNCTION point_query_us() RETURNS float8 LANGUAGE plpgsql AS $$
    DECLARE start timestamptz := clock_timestamp();
    BEGIN
        FOR i IN 1 .. 2000 LOOP
            EXECUTE 'SELECT abalance FROM pgbench_accounts WHERE aid = 4711';
        END LOOP;
        RETURN 1e6 * extract(epoch FROM clock_timestamp() - start) / 2000;
    END $$"""


def measure_idle():
    """
    Point queries, parsed and planned and run inside the server, and by pgbench.  Both in many short turns of which the
    best are compared: on a machine that others use too, the rest says more about the others.
    """
    ports = (5432, args.plain_port)
    sessions, inside, tps = {}, {port: [] for port in ports}, {port: [] for port in ports}
    for port in ports:
        subprocess.run([args.bin + "/pgbench", "-i", "-q", "-h", args.host, "-p", str(port), "-U", "postgres",
                        "postgres"], check=True, capture_output=True)
        sessions[port] = Session(POINT_QUERY, port)
    for turn in range(40 * ROUNDS):
        for port in ports if turn % 2 else reversed(ports):
            inside[port].append(float(sessions[port].ask("SELECT point_query_us()")[0]))
            if turn % 4 < 2:
                tps[port].append(pgbench(None, 1, transactions=1000, port=port))
    for session in sessions.values():
        session.close()
    cost = 100 * (min(inside[5432]) / min(inside[args.plain_port]) - 1)
    row("library loaded but not used: what a point query loses", "< 1 %", "{:.1f} %".format(cost), cost < 1,
        "{:.2f} and {:.2f} µs at best; `pgbench -S` {:.0f} and {:.0f} transactions/s at best".format(
            *(min(inside[port]) for port in ports), *(max(tps[port]) for port in ports)))


# ---- cancel ----

# Sequences that run at once while cancels are measured.
SEATS = 8

WAITER = r"""SET qwen.priority = 'batch';
    DO $$
    DECLARE start float8 := extract(epoch FROM clock_timestamp()); r qwen_result;
    BEGIN
        r := qwen_try_generate('2 + 3 =');
        RAISE NOTICE '%', start + r.queue_ms / 1000;
    END $$"""


def times(session):
    return [float(line.split()[-1]) for line in session.notices if line.startswith("NOTICE")]


def wait_for_times(session, n):
    deadline = time.monotonic() + 60
    while len(times(session)) < n:
        if time.monotonic() > deadline:
            raise RuntimeError("waited in vain for {} notices".format(n))
        time.sleep(0.01)


def one_cancel(control):
    """
    A statement with 256 requests in flight holds all seats, another call waits.  It starts when the statement is
    cancelled and has given its cache back.  Gives the seconds for that, and those of a step.
    """
    victim, waiter = Session("SET qwen.priority = 'interactive'"), Session("SELECT qwen_generate('1 + 2 =')")
    pid = victim.ask("SELECT pg_backend_pid()")[0]
    victim.begin("SELECT qwen_generate(array_fill({}::text, '{{256}}'), {})".format(*ENDLESS))
    control.wait_until("count(*) = {} FROM qwen_requests WHERE state = 'running'".format(SEATS))
    waiter.begin(WAITER)
    control.wait_until("count(*) = 1 FROM qwen_requests WHERE state = 'queued' AND pid <> " + pid)
    step = step_ms(control) / 1000
    cancelled = float(control.ask("SELECT extract(epoch FROM clock_timestamp()), pg_cancel_backend({})".format(pid))[0]
                      .split("|")[0])
    waiter.end()
    wait_for_times(waiter, 1)
    victim.process.wait()
    took = times(waiter)[0] - cancelled
    waiter.close()
    return took, step


def measure_cancel():
    control = Session("ALTER SYSTEM SET qwen.max_sequences = {}".format(SEATS))
    control.ask("SELECT qwen_reload()")
    control.wait_until("state = 'ready' AND max_sequences = {} FROM qwen_status()".format(SEATS))
    pairs = [one_cancel(control) for _ in range(2 * ROUNDS + 1)]
    control.ask("ALTER SYSTEM RESET qwen.max_sequences")
    control.ask("SELECT qwen_reload()")
    control.wait_until("state = 'ready' AND max_sequences > {} FROM qwen_status()".format(SEATS))
    control.close()
    step = statistics.median(step for _, step in pairs)
    steps = [took / step for took, _ in pairs]
    row("cancel of a statement with 256 requests in flight to its cache being another's", "< 2 steps",
        "{:.1f} steps".format(statistics.median(steps)), statistics.median(steps) < 2,
        "{:.1f} ms at {:.1f} ms a step; {}".format(
            1000 * statistics.median(took for took, _ in pairs), 1000 * step, spread(steps, "{:.1f}")))


MEASURES = {"batch": measure_batch, "sessions": measure_sessions, "templates": measure_templates,
            "duplicates": measure_duplicates, "call": measure_call, "latency": measure_latency, "idle": measure_idle,
            "cancel": measure_cancel}

parser = argparse.ArgumentParser()
for option in ("--bin", "--host", "--engine", "--model"):
    parser.add_argument(option, required=True)
parser.add_argument("--plain-port", type=int, required=True)
parser.add_argument("measures", nargs="*", metavar="MEASURE", help=" ".join(MEASURES))
args = parser.parse_args()
print("| measure | target | figure | reached | |\n|---|---|---|---|---|", flush=True)
for name in args.measures or MEASURES:
    MEASURES[name]()
