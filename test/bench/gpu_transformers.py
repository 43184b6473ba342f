"""gpu_transformers.py: tokens a second that transformers decodes, for gpu.py.

    python3 test/bench/gpu_transformers.py MODEL PROMPT GENERATED SEQUENCES...

Loads the checkpoint in its own type on the first GPU and decodes greedily, so many sequences at a time, each with a
prompt of random ids. The time of the prompts is taken off: they are run once with one token to generate, and once with
all. Prints a JSON array, a figure for each number of sequences; null where there was no memory for it.
"""
import json
import sys
import time

import torch
import transformers


def seconds(model, ids, generated):
    torch.cuda.synchronize()
    begin = time.perf_counter()
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=generated, min_new_tokens=generated,
                   do_sample=False, pad_token_id=0)
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def rate(model, prompt, generated, sequences):
    ids = torch.randint(1000, 100000, (sequences, prompt), device="cuda")
    try:
        seconds(model, ids, 8)  # warms up
        first, whole = seconds(model, ids, 1), seconds(model, ids, generated)
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None
    return sequences * (generated - 1) / (whole - first)


def main():
    folder, (prompt, generated, *counts) = sys.argv[1], map(int, sys.argv[2:])
    torch.manual_seed(1)
    with torch.inference_mode():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to("cuda").eval()
        print(json.dumps([rate(model, prompt, generated, n) for n in counts]))


if __name__ == "__main__":
    main()
