"""Optimizer steps of PEFT, one for every line on standard input: the other side of `cargo xtask bench train`.

    python train_peft.py DIR BATCHES f32|bf16 DROPOUT padded|packed    # needs torch, transformers, peft

As a user of both would have it: sdpa attention, rank 16 on every linear layer, adapter weights in f32 whatever the base (PEFT's
default), AdamW, clipped at 1. `padded` pads a batch to its longest sequence; `packed` lays sequences into rows of 1,024 tokens, longest first,
with position ids that begin again at each, as TRL does. Each answer is one line of JSON; tokens are those of the sequences,
without padding. The peak is that of the process once its libraries are loaded and the steps have run.
"""

import json
import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

ROW = 1024


def padded(sequences):
    longest = max(map(len, sequences))
    rows = lambda of, fill: torch.tensor([of(s) + [fill] * (longest - len(s)) for s in sequences])
    batch = dict(input_ids=rows(list, 0), labels=rows(list, -100))
    if any(len(s) < longest for s in sequences):
        batch["attention_mask"] = rows(lambda s: [1] * len(s), 0)
    return batch


def packed(sequences):
    bins = []
    for sequence in sorted(sequences, key=len, reverse=True):
        fits = [b for b in bins if sum(map(len, b)) + len(sequence) <= ROW]
        (min(fits, key=lambda b: ROW - sum(map(len, b))) if fits else bins.append([]) or bins[-1]).append(sequence)
    longest = max(sum(map(len, b)) for b in bins)
    rows = lambda of, fill: torch.tensor([(r := sum(map(of, b), [])) + [fill] * (longest - len(r)) for b in bins])
    return dict(
        input_ids=rows(list, 0), labels=rows(lambda s: [-100] + s[1:], -100),
        position_ids=rows(lambda s: list(range(len(s))), 0),
    )


def peak_bytes():
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main(folder, batches, dtype, dropout, layout):
    dtype = dict(f32=torch.float32, bf16=torch.bfloat16)[dtype]
    lay = dict(padded=padded, packed=packed)[layout]
    batches = json.load(open(batches))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    config = LoraConfig(r=16, lora_alpha=32, lora_dropout=float(dropout), target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    model.config.use_cache = False
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    for step, _ in enumerate(sys.stdin):
        sequences = batches[step % len(batches)]
        start = time.perf_counter()
        loss = model(**lay(sequences)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - start
        answer = dict(seconds=seconds, tokens=sum(map(len, sequences)), loss=loss.item(), peak_bytes=peak_bytes())
        print(json.dumps(answer), flush=True)


main(*sys.argv[1:])
