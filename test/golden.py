"""Runs qwen-engine over the reference's answers in test/data and reports in TAP.

    python3 test/golden.py [--engine ./qwen-engine] [WORD]

With WORD only the checks whose name contains it run. What is compared, and how closely:

logits      ref within 1e-3 standard deviations of the reference's fp32 logits; the threaded sets, which round as the
            checkpoint's type rounds, within one and a half times the distance that the reference itself shows between
            that type and fp32.
greedy      token for token, up to the first place where the reference's own margin is too small to tell: 1e-2 for ref,
            0.25 for the others.
split       over 2, 3 and 4 devices, by even and uneven maps: the bits of one device. Over 2 and 4 shards of each layer,
            and both combined: logits and tokens as close to the reference as on one device.
cuda        all that again, in small, on the CUDA devices that the engine finds, over several devices on one GPU, over two
            GPUs where there are two, together with the processor, and when the driver does not answer. All other checks
            run on the processor, whatever there is.
refused     architectures that are not supported are refused, and named; so is a file that is cut short.
tokens      text to ids and ids to text, every line.
chats       conversations rendered by the chat formats, text and ids, every line.
demo model  the recorded answers of the bundled model; and an answer does not depend on what else is in the batch.
quality     what quantised weights and an int8 cache cost: the Kullback-Leibler divergence of the distributions of the
            next token from those of the checkpoint's own type, in nats, mean and 99th percentile over all positions of
            the recorded conversations and of the golden models' texts; how often the most likely token is the same one;
            and how many of the recorded answers are the same.
"""

import argparse
import array
import functools
import json
import math
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile

DATA = pathlib.Path(__file__).resolve().parent / "data"
KERNELS = ("ref", "portable", "avx2", "avx512", "avx512bf16", "amx")
REFUSED = ("qwen2_moe", "qwen3_moe", "qwen3_next", "qwen3_5", "qwen3_5_moe")


class Refused(Exception):
    """The engine ended with an error; the text is what it said."""


class Wrong(Exception):
    """A check failed; the text says how."""


class Skipped(Exception):
    """A check cannot run on this machine; the text says why."""


def read_lines(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def read_tensors(path):
    """A safetensors file as name -> array; only the types that the golden files use."""
    blob = path.read_bytes()
    (size,) = struct.unpack_from("<Q", blob)
    header = json.loads(blob[8:8 + size])
    tensors = {}
    for name, info in header.items():
        if name != "__metadata__":
            start, end = info["data_offsets"]
            tensors[name] = array.array({"F32": "f", "I64": "q"}[info["dtype"]], blob[8 + size + start:8 + size + end])
    return tensors


def skipped_or(refusal):
    """Kernels that this processor cannot run are no failure."""
    text = str(refusal)
    lacking = any(what in text for what in ("processor lacks", "does not save", "does not grant"))
    return Skipped(text.splitlines()[0]) if lacking else refusal


# What hides all GPUs: real ones, and those of test/gpu/emulated, whose driver is broken then.
NO_GPUS = {"CUDA_VISIBLE_DEVICES": "", "QWEN_EMULATED_GPU_BROKEN": "1"}


class Engine:
    def __init__(self, program, workdir, env=NO_GPUS):
        self.program = str(pathlib.Path(program).resolve())
        self.workdir = workdir
        self.env = os.environ | env
        self.log = ""  # standard error of the last command

    def command(self, command, model, stdin, *options):
        done = subprocess.run([self.program, command, "-m", str(model), *options], input=stdin, capture_output=True,
                              encoding="utf-8", env=self.env)
        self.log = done.stderr.strip()
        if done.returncode != 0:
            raise Refused(self.log or f"exit status {done.returncode}")
        return done

    def run(self, command, model, lines, *options):
        done = self.command(command, model, "".join(json.dumps(line) + "\n" for line in lines), *options)
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        if len(answers) != len(lines):
            raise Wrong(f"{len(answers)} lines came back for {len(lines)}")
        return answers

    def logits(self, model, kernels, ids, *options):
        out = self.workdir / "logits.safetensors"
        try:
            self.run("logits", model, [{"ids": ids}], "--kernels", kernels, "-o", str(out), *options)
        except Refused as e:
            raise skipped_or(e) from e
        return read_tensors(out)["logits"]


def distance(a, b):
    """Largest difference of two arrays; NaN counts as infinite."""
    worst = max(map(lambda x, y: abs(x - y), a, b))
    return math.inf if math.isnan(sum(a)) else worst


def spread(a):
    mean = math.fsum(a) / len(a)
    return math.sqrt(math.fsum((x - mean) ** 2 for x in a) / len(a))


def bounds(kernels, golden, unit):
    """How far logits may be off, in units of their spread, and how small a margin excuses another token."""
    if kernels == "ref":
        return 1e-3, 1e-2
    stored = golden.get("logits_stored_dtype")
    noise = distance(stored, golden["logits"]) / unit if stored else 1e-3
    return 1.5 * noise + 2e-3, 0.25


def compare_tokens(got, want, margins, tie):
    """Where two greedy answers part, which is fine only at a near tie: what follows then is another text."""
    for i, margin in enumerate(margins):
        if i >= len(got) or got[i] != want[i]:
            if margin > tie:
                raise Wrong(f"token {i} is {got[i] if i < len(got) else 'missing'}, not {want[i]} (margin {margin})")
            return


def check_model(engine, name, kernels, *options):
    folder = DATA / "golden" / name
    golden = read_tensors(folder / "golden.safetensors")
    unit = spread(golden["logits"])
    bound, tie = bounds(kernels, golden, unit)

    logits = engine.logits(folder, kernels, list(golden["input_ids"]), *options)
    if len(logits) != len(golden["logits"]):
        raise Wrong(f"{len(logits)} logits instead of {len(golden['logits'])}")
    off = distance(logits, golden["logits"]) / unit
    if not off <= bound:
        raise Wrong(f"logits are off by {off:.2e} standard deviations, allowed {bound:.2e}")

    runs = json.loads((folder / "golden.json").read_text())["greedy"]
    requests = [{"ids": run["prompt"], "max_tokens": len(run["output"]), "ignore_eos": True} for run in runs]
    for run, answer in zip(runs, engine.run("generate", folder, requests, "--kernels", kernels, *options)):
        if "error" in answer:
            raise Wrong(answer["error"])
        compare_tokens(answer["ids"], run["output"], run["margin"], tie)
    return f"logits within {off:.1e} of {bound:.1e}, {len(runs)} greedy runs"


def explicit_map(embed, layers, head):
    """A device map; layers: "0-1": device, and so on, or where all three of them go."""
    return json.dumps({"embed": embed, "layers": layers if isinstance(layers, dict) else {"0-2": layers}, "head": head})


# Where the three layers of a golden model go, over how many shards; on as many processors as the limits name.
SPLITS = (
    ("two devices", 2, "balanced", 1),
    ("three devices", 3, "balanced", 1),
    ("four devices", 4, explicit_map("cpu:0", {"0": "cpu:1", "1-2": "cpu:2"}, "cpu:3"), 1),
    ("two uneven devices", 2, explicit_map("cpu:1", {"0-1": "cpu:0", "2": "cpu:1"}, "cpu:0"), 1),
    ("two shards", 2, "balanced", 2),
    ("four shards", 4, "balanced", 4),
    ("two stages of two shards", 4, explicit_map(["cpu:0", "cpu:1"], {"0": ["cpu:0", "cpu:1"], "1-2": ["cpu:2", "cpu:3"]},
                                                 ["cpu:2", "cpu:3"]), 2),
)


def split_options(devices, device_map, shards):
    limits = ",".join(f"cpu:{i}=256MiB" for i in range(devices))
    return "--max-memory", limits, "--device-map", device_map, "--tensor-parallel", str(shards), "--max-sequences", "16"


@functools.lru_cache
def run_golden(engine, name, options):
    """Logits and greedy answers of a golden model."""
    folder = DATA / "golden" / name
    ids = list(read_tensors(folder / "golden.safetensors")["input_ids"])
    runs = json.loads((folder / "golden.json").read_text())["greedy"]
    requests = [{"ids": run["prompt"], "max_tokens": len(run["output"]), "ignore_eos": True} for run in runs]
    return engine.logits(folder, "auto", ids, *options), engine.run("generate", folder, requests, *options)


def check_split(engine, name, options, shards, on_one=()):
    """Layers on several devices give the bits of one, on_one; sums over shards are rounded in other places."""
    if shards > 1:
        return check_model(engine, name, "auto", *options)
    if run_golden(engine, name, options) != run_golden(engine, name, on_one):
        raise Wrong("logits or answers are others than on one device")
    return "the bits of one device"


def check_truncated(engine, name):
    """A checkpoint whose last file is cut short: the message names the file and where it ends."""
    folder = engine.workdir / "truncated"
    shutil.copytree(DATA / "golden" / name, folder)
    last = sorted(folder.glob("model-*.safetensors"))[-1]
    size = last.stat().st_size - 1000
    os.truncate(last, size)
    try:
        engine.run("logits", folder, [{"ids": [1]}], "-o", str(engine.workdir / "logits.safetensors"))
    except Refused as e:
        if last.name not in str(e) or f"ends at byte {size}" not in str(e):
            raise Wrong(f"the message does not name file and byte: {e}") from e
        return str(e).splitlines()[0]
    raise Wrong("it was loaded")


def check_refused(engine, name):
    folder = DATA / "golden" / name
    model_type = json.loads((folder / "config.json").read_text())["model_type"]
    try:
        engine.run("logits", folder, [{"ids": [1]}], "-o", str(engine.workdir / "logits.safetensors"))
    except Refused as e:
        if model_type not in str(e):
            raise Wrong(f"the message does not name \"{model_type}\": {e}") from e
        return str(e).splitlines()[0]
    raise Wrong("it was loaded")


def tokenizer(engine, name):
    """The folder of a tokenizer with the reference's answers; stored compressed, it is unpacked once."""
    folder = engine.workdir / name
    if not folder.exists():
        with tarfile.open(DATA / "tokenizers" / f"{name}.tar.xz") as archive:
            archive.extractall(folder)
    return folder


def check_tokens(engine, name):
    folder = tokenizer(engine, name)
    rows = read_lines(folder / "tokens.jsonl")
    encoded = engine.run("tokenize", folder, [{"text": row["text"]} for row in rows])
    decoded = engine.run("detokenize", folder, [{"ids": row["ids"]} for row in rows])
    for row, ids, text in zip(rows, encoded, decoded):
        if ids.get("ids") != row["ids"]:
            raise Wrong(f"{row['text'][:60]!r}: ids {ids}")
        if text.get("text") != row["decoded"]:
            raise Wrong(f"{row['ids'][:20]}: text {text}")
    return f"{len(rows)} texts both ways"


def check_chats(engine, name):
    folder = tokenizer(engine, name)
    rows = read_lines(folder / "chats.jsonl")
    answers = engine.run("render", folder,
                         [{key: row[key] for key in ("messages", "tools", "options") if key in row} for row in rows])
    for row, answer in zip(rows, answers):
        if "error" in row:
            if "error" not in answer:
                raise Wrong(f"{json.dumps(row['messages'])[:100]}: accepted")
        elif answer.get("text") != row["text"] or answer.get("ids") != row["ids"]:
            raise Wrong(f"{json.dumps(row['messages'])[:100]}: {json.dumps(answer)[:200]}")
    return f"{len(rows)} conversations"


def answers_of(engine, requests, kernels, *options):
    """The demo model's answers."""
    try:
        return engine.run("generate", DATA / "demo-model", requests, "--kernels", kernels, *options)
    except Refused as e:
        raise skipped_or(e) from e


def recorded_answers():
    """The demo model's recorded answers, and the requests that they answer."""
    rows = read_lines(DATA / "demo-model" / "answers.jsonl")
    keys = ("prompt", "system", "thinking", "max_tokens")
    return rows, [{key: row[key] for key in keys if key in row} for row in rows]


def check_answers(engine, kernels, every=1, options=()):
    """Of every so many of the rows."""
    rows, requests = (part[::every] for part in recorded_answers())
    answers = answers_of(engine, requests, kernels, *options)
    for row, answer in zip(rows, answers):
        if answer.get("ids") != row["ids"] and row["margin"] > 0.25:
            raise Wrong(f"{row['prompt'][:60]!r}: {answer.get('text', answer)!r}, not {row['text']!r}")
    return f"{len(rows)} answers"


def check_alone(engine, kernels):
    """A request gives the same tokens alone and among sixteen others; sampled almost evenly, every bit shows."""
    folder = DATA / "demo-model"
    one = {"prompt": "Describe these countries: France, Japan.", "max_tokens": 200, "ignore_eos": True}
    for options in ({}, {"temperature": 100, "seed": 5}):
        others = [{"prompt": row["prompt"]} for row in read_lines(folder / "answers.jsonl")[:16]]
        alone = answers_of(engine, [one | options], kernels)[0]["ids"]
        among = answers_of(engine, others[:9] + [one | options] + others[9:], kernels)[9]["ids"]
        if alone != among:
            raise Wrong(f"they part after {len([1 for a, b in zip(alone, among) if a == b])} of {len(alone)} tokens")
    return "greedy and sampled"


def divergence(p, q):
    """KL(p || q) in nats and whether the most likely token is the same one, of two rows of logits."""
    best_p, best_q = max(p), max(q)
    weights = [math.exp(x - best_p) for x in p]
    log_z_p = math.log(math.fsum(weights))
    log_z_q = math.log(math.fsum(map(math.exp, (x - best_q for x in q))))
    apart = math.fsum(w * (x - y) for w, x, y in zip(weights, p, q)) / math.exp(log_z_p)
    return apart - best_p + best_q - log_z_p + log_z_q, p.index(best_p) == q.index(best_q)


class Distance:
    """Divergences over many positions."""

    def __init__(self):
        self.nats = []
        self.same = 0

    def add(self, base, other, vocab):
        for at in range(0, len(base), vocab):
            nats, same = divergence(base[at:at + vocab], other[at:at + vocab])
            self.nats.append(nats)
            self.same += same

    def mean(self):
        return math.fsum(self.nats) / len(self.nats)

    def agreement(self):
        return self.same / len(self.nats)

    def __str__(self):
        p99 = sorted(self.nats)[len(self.nats) * 99 // 100]
        return f"KL {self.mean():.2e}, 99 % {p99:.2e}, top-1 {100 * self.agreement():.1f} % of {len(self.nats)}"

    def require(self, nats, agreement):
        if not self.mean() <= nats or self.agreement() < agreement:
            raise Wrong(f"{self}; allowed {nats:.1e} and {100 * agreement:.1f} %")


def conversations():
    """Model and token ids: a quarter of the recorded conversations, each with its answer."""
    for row in read_lines(DATA / "demo-model" / "answers.jsonl")[::4]:
        yield DATA / "demo-model", row["prompt_ids"] + row["ids"]


def golden_texts():
    """The same of the golden models."""
    for folder in sorted((DATA / "golden").iterdir()):
        if folder.is_dir() and folder.name not in REFUSED:
            yield folder, list(read_tensors(folder / "golden.safetensors")["input_ids"])


def check_distance(engine, texts, options, nats, agreement, base_options=()):
    off = Distance()
    for model, ids in texts():
        base = engine.logits(model, "auto", ids, *base_options)
        off.add(base, engine.logits(model, "auto", ids, *options), len(base) // len(ids))
    off.require(nats, agreement)
    return str(off)


def check_same_answers(engine, options, least):
    rows, requests = recorded_answers()
    answers = answers_of(engine, requests, "auto", *options)
    same = sum(answer.get("ids") == row["ids"] for row, answer in zip(rows, answers))
    if same < least:
        raise Wrong(f"{same} of {len(rows)} answers are the same, at least {least} must be")
    return f"{same} of {len(rows)} answers are the same"


# What is narrowed, and the bounds: mean KL and top-1 agreement over the conversations and over the golden models' texts,
# answers that must be the same. About twice what was measured; the golden models are random, hence their large figures.
QUALITY = (
    ("int8", ("--quantization", "int8"), (2.5e-3, 0.97), (3e-2, 0.90), 144),
    ("int4", ("--quantization", "int4"), (8e-2, 0.86), (1.5, 0.50), 140),
    ("int8 cache", ("--kv-dtype", "int8"), (3e-4, 0.98), (3e-3, 0.96), 145),
)


# ---- CUDA devices ----

# Small, as all memory of emulated devices is touched.
ON_CUDA = ("--device-map", "cuda:0", "--max-sequences", "16", "--kv-memory", "16MiB")

# As SPLITS; GPUs that must be there, and shards.
CUDA_SPLITS = (
    ("two devices on a GPU", 1, explicit_map("cuda:0.0", {"0": "cuda:0.0", "1-2": "cuda:0.1"}, "cuda:0.1"), 1),
    ("four devices on a GPU", 1, explicit_map("cuda:0.0", {"0": "cuda:0.1", "1-2": "cuda:0.2"}, "cuda:0.3"), 1),
    ("two shards on a GPU", 1, explicit_map(*[["cuda:0.0", "cuda:0.1"]] * 3), 2),
    ("four shards on a GPU", 1, explicit_map(*[[f"cuda:0.{i}" for i in range(4)]] * 3), 4),
    ("two GPUs", 2, "balanced", 1),
    ("two uneven GPUs", 2, explicit_map("cuda:1", {"0-1": "cuda:0", "2": "cuda:1"}, "cuda:0"), 1),
    ("two shards on two GPUs", 2, explicit_map(*[["cuda:0", "cuda:1"]] * 3), 2),
    ("two stages of two shards on two GPUs", 2,
     explicit_map(["cuda:0.0", "cuda:1.0"], {"0": ["cuda:0.0", "cuda:1.0"], "1-2": ["cuda:0.1", "cuda:1.1"]},
                  ["cuda:0.1", "cuda:1.1"]), 2),
)

# What else may change on a CUDA device.
CUDA_OPTIONS = (
    ("in float32", ("--dtype", "float32")),
    ("in float16", ("--dtype", "float16")),
    ("before a processor", ("--device-map", explicit_map("cuda:0", {"0-1": "cuda:0", "2": "cpu"}, "cpu"))),
    ("behind a processor", ("--device-map", explicit_map("cpu", {"0": "cpu", "1-2": "cuda:0"}, "cuda:0"))),
)


def plan_of(engine, model, *options):
    return json.loads(engine.command("plan", model, "", "--json", *options).stdout)


def check_offload(engine, name):
    """A GPU that lacks room for one layer: with qwen.offload the processor takes what it cannot hold."""
    folder = DATA / "golden" / name
    gpus = {d["name"]: d for d in plan_of(engine, folder, *ON_CUDA)["devices"] if d["kind"] == "cuda"}
    device = gpus.pop("cuda:0")
    needed = sum(device[term] for term in ("weights", "kv", "workspace", "overhead", "margin"))
    elsewhere = device["layers"] // 4 + (device["embed"] if device["head"] > device["embed"] else 0)
    limits = [f"cuda:0={needed - elsewhere}"] + [f"{name}=1MiB" for name in gpus]
    options = ("--device-map", "auto", *ON_CUDA[2:], "--max-memory", ",".join(limits))
    try:
        engine.logits(folder, "auto", [1], *options)
        raise Wrong("it fits without offload")
    except Refused as e:
        if "does not fit: device cuda:0 lacks" not in str(e):
            raise
    places = plan_of(engine, folder, *options, "--offload", "cpu")["layers"]
    if set(places) != {"cpu", "cuda:0"}:
        raise Wrong(f"the layers are on {places}")
    return check_model(engine, name, "auto", *options, "--offload", "cpu") + f"; {places.count('cpu')} layers on cpu"


def check_no_gpus(engine):
    """Without a driver that answers, a map that names a GPU is refused with the reason, and auto serves."""
    request = [{"ids": [1, 2, 3], "max_tokens": 1}]
    broken = Engine(engine.program, engine.workdir)
    try:
        broken.run("generate", DATA / "demo-model", request, "--device-map", "cuda:0")
        raise Wrong("cuda:0 was not refused")
    except Refused as e:
        if "no CUDA devices" not in str(e) or "The reason: " not in str(e) or "qwen.device_map" not in str(e):
            raise Wrong(f"the message lacks something: {e}") from e
        refusal = str(e).splitlines()[1]
    broken.run("generate", DATA / "demo-model", request, "--device-map", "auto")
    if "no GPU is used: no CUDA devices: " not in broken.log:
        raise Wrong(f"the log does not say so: {broken.log}")
    broken.run("generate", DATA / "demo-model", request, "--device-map", "cpu")
    if broken.log:
        raise Wrong(f"GPUs were looked for: {broken.log}")
    return refusal


def no_cuda(engine):
    raise Skipped("the engine finds no CUDA device")


def cuda_checks(engine):
    """With an engine that sees the machine's GPUs."""
    found = [d["name"] for d in plan_of(engine, DATA / "demo-model")["devices"] if d["kind"] == "cuda"]
    if not found:
        yield "cuda", no_cuda, ()
        return
    for folder, _ in golden_texts():
        yield f"cuda {folder.name}", check_model, (folder.name, "auto", *ON_CUDA)
    for name in ("qwen2", "qwen3"):
        for what, options in CUDA_OPTIONS:
            yield f"cuda {name} {what}", check_model, (name, "auto", *ON_CUDA, *options)
        for split, gpus, device_map, shards in CUDA_SPLITS:
            if gpus <= len(found):
                options = (*ON_CUDA, "--device-map", device_map, "--tensor-parallel", str(shards))
                yield f"cuda {name} {split}", check_split, (name, options, shards, ON_CUDA)
        yield f"cuda {name} offloaded", check_offload, (name,)
    for name, options, _, golden, _ in QUALITY:
        yield f"cuda quality {name}", check_distance, (golden_texts, (*ON_CUDA, *options), *golden, ON_CUDA)
    yield "cuda demo model", check_answers, ("auto", 8, ON_CUDA)
    yield "cuda without a driver", check_no_gpus, ()


def all_checks():
    for folder in sorted((DATA / "golden").iterdir()):
        if not folder.is_dir():
            continue
        if folder.name in REFUSED:
            yield f"{folder.name} refused", check_refused, (folder.name,)
        else:
            for kernels in KERNELS:
                yield f"{folder.name} {kernels}", check_model, (folder.name, kernels)
            for split, devices, device_map, shards in SPLITS:
                yield (f"split {folder.name} {split}", check_split,
                       (folder.name, split_options(devices, device_map, shards), shards))
    yield "truncated last file refused", check_truncated, ("qwen2_sharded",)
    for name in ("qwen2.5", "qwen3"):
        yield f"tokens {name}", check_tokens, (name,)
        yield f"chats {name}", check_chats, (name,)
    for kernels in KERNELS:
        yield f"demo model {kernels}", check_answers, (kernels,)
        yield f"alone or among others {kernels}", check_alone, (kernels,)
    for name, options, demo, golden, answers in QUALITY:
        yield f"quality {name}, conversations", check_distance, (conversations, options, *demo)
        yield f"quality {name}, golden models", check_distance, (golden_texts, options, *golden)
        yield f"quality {name}, answers", check_same_answers, (options, answers)


def main():
    parser = argparse.ArgumentParser(description="compare qwen-engine with the reference")
    parser.add_argument("--engine", default="./qwen-engine")
    parser.add_argument("word", nargs="?", default="")
    args = parser.parse_args()
    failed = 0
    number = 0
    with tempfile.TemporaryDirectory(prefix="qwen-") as workdir:
        engine = Engine(args.engine, pathlib.Path(workdir))
        with_gpus = Engine(args.engine, pathlib.Path(workdir), {})
        checks = [(engine, *check) for check in all_checks()] + [(with_gpus, *check) for check in cuda_checks(with_gpus)]
        for on, name, check, arguments in checks:
            if args.word not in name:
                continue
            number += 1
            try:
                print(f"ok {number} - {name}: {check(on, *arguments)}", flush=True)
            except Skipped as e:
                print(f"ok {number} - {name} # SKIP {e}", flush=True)
            except (Refused, Wrong) as e:
                failed += 1
                print(f"not ok {number} - {name}: {' | '.join(str(e).splitlines())}", flush=True)
    print(f"1..{number}")
    sys.exit(1 if failed or not number else 0)


if __name__ == "__main__":
    main()
