#!/usr/bin/env python3
"""cpu.py: what the engine does on this machine's processor, beside other programs and beside what the machine allows.

    python3 test/bench/cpu.py [--peer DIR[:DIR...]] [--rounds 5] [--minutes 25] [--only WORD...]

Models are of random weights in the true shapes (make_checkpoint), kept with everything else in --cache. A peer is a
folder with llama-bench, llama-batched-bench and llama-quantize; it gets the same weights as GGUF, in its own formats of
as many bits. Which of its settings are best for a row is tried once and remembered in the cache; with several peers
only those go on that come within 15 % of the best one of that row.

Sides take turns: in a round every row is measured once by each. Rounds are repeated until there are --rounds or the
--minutes are over. Every run is appended to runs.jsonl in the cache as soon as it is done, so a run that was
interrupted still reports, and --continue goes on from there; --report only reports. Figures are medians, with lowest
and highest; a ratio is one of medians. On a machine with other load, --under 'chrt -f 1' lets every run have the cores
for itself for its few seconds.

Prints Markdown; progress goes to standard error. --plot FILE.svg draws the rows as well.
"""
import argparse
import dataclasses
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import time

import gauges
import plots

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FORMATS = {"bf16": "none", "int8": "int8", "int4": "int4"}  # ours: value of --quantization
PEER_FORMATS = {"bf16": "bf16", "int8": "q8_0", "int4": "q4_0"}
DECODE = 48
PROMPT, GENERATED = 128, 16  # of each of several sequences
WARM_UP = 16  # tokens of a prompt before the one that counts
CLOSE = 0.85  # of the best peer: the others that are measured in full


@dataclasses.dataclass(frozen=True)
class Work:
    """A row of the table: one sequence with a prompt or a continuation, or several sequences."""
    name: str
    prompt: int = 0
    sequences: int = 0

    @property
    def batched(self):
        return self.sequences > 0


DECODE_1 = Work("decode, 1 sequence")
PREFILL = Work("prefill 512", prompt=512)
LONG = Work("prefill 2048", prompt=2048)
WORKS = [DECODE_1, PREFILL, LONG, Work("8 sequences, decode", sequences=8), Work("32 sequences, decode", sequences=32)]
MODELS = {"Qwen3-0.6B": WORKS, "Qwen3-1.7B": [DECODE_1, PREFILL]}

# Least ratio to the best peer: performance.md 2. Without AMX the same for every row.
BARS = {(DECODE_1, "bf16"): 1.2, (DECODE_1, "int8"): 1.25, (DECODE_1, "int4"): 1.6, (PREFILL, "bf16"): 8,
        (PREFILL, "int8"): 4, (PREFILL, "int4"): 4, **{(WORKS[4], form): 6 for form in FORMATS}}
BAR_WITHOUT_AMX = 1


def progress(*words):
    print(*words, file=sys.stderr, flush=True)


def run(command, errors=False, **more):
    """Standard output of a command that must succeed; with errors, what it said on standard error as well."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **more)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip()[-400:]}")
    return done.stdout + (done.stderr if errors else "")


# ---- what is measured ----


class Engine:
    """Ours."""
    name = "qwen"

    def __init__(self, program, kernels, cache, under):
        self.program, self.kernels, self.cache, self.under = program, kernels, cache, under

    def prepare(self, model, _):
        run([HERE / "make_checkpoint", model, self.cache / model])

    def measure(self, model, form, work, _=None):
        command = [*self.under, self.program, "bench", "-m", self.cache / model, "--kernels", self.kernels]
        command += ["--quantization", FORMATS[form], "-r", 1, "--json"]
        if work.batched:
            command += ["-p", 0, "-n", 0, "-b", work.sequences, "--pb", PROMPT, "--nb", GENERATED]
        else:
            command += ["-p", work.prompt, "-n", 0 if work.prompt else DECODE, "-b", 0]
        whole = json.loads(run(command))
        return whole["rows"][0]["tokens_per_second"], whole


class Peer:
    """A llama.cpp or a descendant of it."""

    def __init__(self, folder, cache, under):
        self.folder, self.cache, self.under = pathlib.Path(folder).resolve(), cache.resolve(), under
        parts = [part for part in self.folder.parts if part not in ("/", "bin", "build")]
        self.name = parts[-1]
        self.threads = len(os.sched_getaffinity(0))
        self.usage = self._help()
        self.repacks = "--run-time-repack" in self.usage

    def _help(self):
        done = subprocess.run([self.folder / "llama-bench", "--help"], capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def settings(self):
        """All that are worth a try."""
        repack = (" rtr=1", " rtr=0") if self.repacks else ("",)
        return [f"fa={fa}{rtr}" for fa in (1, 0) for rtr in repack]

    def _file(self, model, form):
        return self.cache / f"{model}-{PEER_FORMATS[form]}.gguf"

    def prepare(self, model, form):
        """Files are the same for all peers: the older formats, which all of them read."""
        source, target = self._file(model, "bf16"), self._file(model, form)
        if not source.exists():
            run([HERE / "make_gguf", self.cache / model, source])
        if not target.exists():
            part = target.with_suffix(".part")
            run([self.folder / "llama-quantize", source, part, PEER_FORMATS[form].upper(), self.threads])
            part.rename(target)

    def measure(self, model, form, work, settings):
        chosen = dict(word.split("=") for word in settings.split())
        repack = chosen.get("rtr") == "1"
        common = ["-m", self._file(model, form), "-t", self.threads, "-fa", chosen["fa"]]
        if work.batched:
            return self._batched(common + (["-rtr"] if repack else []), work)
        return self._single(common + (["-rtr", 1] if repack else []), work)

    def _single(self, common, work):
        """Its own way of warming up is to run everything twice."""
        size = ["-p", f"{WARM_UP},{work.prompt}", "-n", 0] if work.prompt else ["-p", WARM_UP, "-n", DECODE]
        cold = ["--no-warmup"] if "--no-warmup" in self.usage else ["-w", 0]
        out = run([*self.under, self.folder / "llama-bench", *common, *size, *cold, "-r", 1, "-o", "json"])
        return json.loads(out[out.index("["):])[-1]["avg_ts"], {}

    def _batched(self, common, work):
        """Some print the table on standard error, and some leave a log in the folder where they run."""
        room = work.sequences * (PROMPT + GENERATED + 96)  # some keep each sequence's cache in multiples of 256
        out = run([*self.under, self.folder / "llama-batched-bench", *common, "-c", room, "-b", 2048, "-ub", 512,
                   "-npp", PROMPT, "-ntg", GENERATED, "-npl", work.sequences], errors=True, cwd=self.cache)
        rows = re.findall(rf"^\|\s*{PROMPT} \|\s*{GENERATED} \|\s*{work.sequences} \|.*$", out, re.MULTILINE)
        if not rows:
            raise RuntimeError(f"{self.name} gave no figure for {work.name}")
        return float(rows[-1].split("|")[8]), {}


# ---- runs ----


class Runs:
    """Every run so far, also on disk."""

    def __init__(self, path, keep):
        self.path = path
        if not keep:
            path.unlink(missing_ok=True)
        self.all = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def add(self, **record):
        self.all.append(record)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def of(self, side, row):
        return [r for r in self.all if r["side"] == side and r["row"] == list(row)]

    def values(self, side, row):
        return [r["value"] for r in self.of(side, row)]

    def sides(self, row):
        return sorted({r["side"] for r in self.all if r["row"] == list(row)})


def key(model, form, work):
    return model, form, work.name


class Tuning:
    """The best settings of each peer for each row, and what they gave when they were tried."""

    def __init__(self, path):
        self.path = path
        self.known = json.loads(path.read_text()) if path.exists() else {}

    def best(self, peer, model, form, work):
        name = " / ".join((peer.name, *key(model, form, work)))
        if name not in self.known:
            tried = []
            for settings in peer.settings():
                progress("trying", name, settings)
                try:
                    tried.append((peer.measure(model, form, work, settings)[0], settings))
                except RuntimeError as error:
                    progress(error)
            self.known[name] = max(tried, default=(0, ""))
            self.path.write_text(json.dumps(self.known, indent=1))
        return self.known[name]


def plan(engine, peers, tuning, rows):
    """Which sides measure which row, with their settings. Makes the files."""
    sides = []
    for model, form, work in rows:
        engine.prepare(model, form)
        tried = []
        for peer in peers:
            peer.prepare(model, form)
            tried.append((*tuning.best(peer, model, form, work), peer))
        best = max((value for value, _, _ in tried), default=0)
        sides.append([(engine, None)] + [(peer, settings) for value, settings, peer in tried
                                         if value and value >= CLOSE * best])
    return sides


def turns(runs, rows, sides, rounds):
    """Round by round, so that whatever else goes on here hits all sides alike; what is there already is left out."""
    for i in range(rounds):
        for row, row_sides in zip(rows, sides):
            for side, settings in row_sides:
                if len(runs.of(side.name, key(*row))) <= i:
                    yield f"{i + 1}/{rounds}", row, side, settings


def measure(runs, rows, sides, rounds, deadline):
    for turn, row, side, settings in turns(runs, rows, sides, rounds):
        if time.monotonic() > deadline:
            progress("time is over")
            return
        try:
            value, details = side.measure(*row, settings)
        except RuntimeError as error:  # the others go on
            progress(error)
            continue
        progress(turn, *key(*row), side.name, f"{value:.1f}", settings or "")
        runs.add(side=side.name, row=list(key(*row)), value=value, settings=settings, details=details)


# ---- the report ----


def spread(values):
    if not values:
        return "-"
    digits = 0 if statistics.median(values) >= 100 else 1
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} .. {max(values):.{digits}f})"


def floor(runs, row):
    """Tokens a second that the best rates measured in any run allow for this row, and what holds them."""
    ours = [r["details"] for r in runs.of("qwen", row)]
    same = [r["details"] for r in runs.all if r["side"] == "qwen" and r["row"][1] == row[1]]
    if not ours:
        return None
    work = ours[0]["rows"][0]
    bandwidth = max(r["details"]["bandwidth"] for r in runs.all if r["side"] == "qwen")
    move = work["bytes"] / bandwidth
    compute = (work["linear_operations"] / max(d["linear_rate"] for d in same)
               + work["attention_operations"] / max(d["attention_rate"] for d in same))
    tokens = work["sequences"] * (work["generated"] or work["prompt"])
    return tokens / max(move, compute), "bandwidth" if move >= compute else "products"


def bar_of(runs, row):
    kernels = {r["details"]["kernels"] for r in runs.of("qwen", row)}
    if "amx" not in kernels:
        return BAR_WITHOUT_AMX
    return next((bar for (work, form), bar in BARS.items()
                 if row[0] == "Qwen3-0.6B" and (form, work.name) == tuple(row[1:])), None)


def table_line(runs, row):
    ours = runs.values("qwen", row)
    peers = {side: runs.values(side, row) for side in runs.sides(row) if side != "qwen"}
    best = max(peers, key=lambda side: statistics.median(peers[side]), default=None)
    limit = floor(runs, row)
    cells = [row[0], row[2], row[1], spread(ours)]
    if best and ours:
        settings = runs.of(best, row)[-1]["settings"]
        ratio = statistics.median(ours) / statistics.median(peers[best])
        bar = bar_of(runs, row)
        verdict = f"{bar:g}: {'yes' if ratio >= bar else '**no**'}" if bar else "-"
        cells += [f"{spread(peers[best])} {best} {settings}", f"{ratio:.2f}", verdict]
    else:
        cells += ["-", "-", "-"]
    if limit:
        cells += [f"{limit[0]:.0f}, {limit[1]}", f"{100 * statistics.median(ours) / limit[0]:.0f} %"]
    else:
        cells += ["-", "-"]
    return "| " + " | ".join(cells) + " |"


def print_table(runs, rows):
    print("Tokens a second: median (lowest .. highest). The floor is what the best bandwidth and rates of\n"
          "products allow that were measured in these runs; beside it what holds it.\n")
    print("| model | work | format | qwen | best peer | ratio | bar | floor | of floor |")
    print("|---|---|---|---|---|---|---|---|---|")
    for model, form, work in rows:
        if runs.sides(key(model, form, work)):
            print(table_line(runs, key(model, form, work)))
    print()


def print_loading(runs, engine):
    """Loading against copying the same files out of the page cache with as many threads. The best of each counts: on a
    virtual machine, memory that it has to get from its host first costs several times as much.
    """
    print("| loading | seconds, best (median) | copying its file from the page cache, best | copy / load |")
    print("|---|---|---|---|")
    for model in MODELS:
        copied = None
        for form in FORMATS:
            seconds = [r["details"]["load_seconds"] for r in runs.all
                       if r["side"] == "qwen" and r["row"][:2] == [model, form]]
            if not seconds:
                continue
            copied = copied or float(run([*engine.under, sys.executable, HERE / "gauges.py", engine.cache / model]))
            print(f"| {model} {form} | {min(seconds):.2f} ({statistics.median(seconds):.2f}) | {copied:.2f} | "
                  f"{copied / min(seconds):.2f} |")
    print()


def machine(engine):
    cpu = re.search(r"^model name\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True,
                            check=False).stdout.strip() or "unknown"
    print(f"\n## The processor alone, {time.strftime('%F', time.gmtime())}\n")
    print(f"{cpu.group(1) if cpu else 'unknown processor'}, {len(os.sched_getaffinity(0))} cores, commit {commit}, "
          f"load {os.getloadavg()[0]:.1f} before, `python3 test/bench/cpu.py {' '.join(sys.argv[1:])}`.\n")
    print(f"```\n{run([*engine.under, engine.program, 'probe'])}```\n", flush=True)


def report(runs, rows, engine, args):
    print_table(runs, rows)
    print_loading(runs, engine)
    if not args.no_idle:
        share = gauges.idle_share(engine.program, ROOT)
        print(f"Idle engine, 20 s after an answer: {100 * share:.3f} % of a core (bar: < 0.1 %).\n")
    if args.plot:
        plots.draw(args.plot, runs, [key(*row) for row in rows])


# ---- the command ----


def parse_arguments():
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "qwen-bench"
    parser = argparse.ArgumentParser(description="measures the engine on the processor, beside other programs")
    parser.add_argument("--engine", type=pathlib.Path, default=ROOT / "qwen-engine")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--peer", default=os.environ.get("PEER", ""), help="folders, separated by colons")
    parser.add_argument("--cache", type=pathlib.Path, default=cache, help="models, settings and runs; several GB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=25, help="after which no run begins any more")
    parser.add_argument("--only", nargs="*", default=[], help="rows that have all these words")
    parser.add_argument("--continue", action="store_true", dest="go_on", help="keep the runs of the last time")
    parser.add_argument("--report", action="store_true", help="of the runs of the last time, without new ones")
    parser.add_argument("--no-idle", action="store_true", help="leave out the 20 s of an idle engine")
    parser.add_argument("--under", default="", help="a command that runs each measured one: 'chrt -f 1'")
    parser.add_argument("--plot", type=pathlib.Path)
    return parser.parse_args()


def interrupted(*_):
    raise KeyboardInterrupt


def main():
    args = parse_arguments()
    deadline = time.monotonic() + 60 * args.minutes
    signal.signal(signal.SIGTERM, interrupted)
    args.cache.mkdir(parents=True, exist_ok=True)
    under = args.under.split()
    engine = Engine(args.engine.resolve(), args.kernels, args.cache, under)
    rows = [(model, form, work) for model, works in MODELS.items() for work in works for form in FORMATS]
    rows = [row for row in rows if all(word in " ".join(key(*row)) for word in args.only)]
    runs = Runs(args.cache / "runs.jsonl", args.go_on or args.report)
    machine(engine)
    if not args.report:
        peers = [Peer(folder, args.cache, under) for folder in args.peer.split(":") if folder]
        try:
            sides = plan(engine, peers, Tuning(args.cache / "settings.json"), rows)
            measure(runs, rows, sides, args.rounds, deadline)
        except KeyboardInterrupt:
            progress("interrupted: reporting what there is")
    report(runs, rows, engine, args)


if __name__ == "__main__":
    main()
