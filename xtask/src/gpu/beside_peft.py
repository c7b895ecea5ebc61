"""Whole optimizer steps on one GPU, ours beside PEFT's, on bases of random numbers: the table of docs/gpu.md.

    python beside_peft.py ./lorikeet-gpu FOLDER [--shapes llama_8b,qwen_05b,smollm2_135m] [--nf4]

Needs torch, transformers and peft, and FOLDER on a disk with 17 GB free. Ours and theirs take turns on the card, never at once: same base, same
number of tokens, sequences of full length, rank 16 on every linear layer, AdamW, clipped at 1. PEFT has bf16 weights, sdpa attention, and the
best of several batch sizes with and without gradient checkpointing; ours the best of a few sequences at a time. Tokens per second are the middle of five
steps; memory is the most that was in use. Whoever runs out of memory at a batch size is out of that one only.
"""

import argparse
import gc
import json
import shutil
import statistics
import subprocess
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

WARM_UP, COUNTED = 2, 5
LLAMA_8B = LlamaConfig(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
    vocab_size=128256, max_position_embeddings=8192, rope_theta=500000.0, rms_norm_eps=1e-5, tie_word_embeddings=False,
)
QWEN_05B = Qwen2Config(
    hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
    vocab_size=151936, max_position_embeddings=8192, rope_theta=1000000.0, rms_norm_eps=1e-6, tie_word_embeddings=True,
)
SMOLLM2_135M = LlamaConfig(
    hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
    vocab_size=49152, max_position_embeddings=8192, rope_theta=100000.0, rms_norm_eps=1e-5, tie_word_embeddings=True,
)
# config, length of a sequence, sequences of a step
SHAPES = dict(llama_8b=(LLAMA_8B, 4096, 4), qwen_05b=(QWEN_05B, 2048, 16), smollm2_135m=(SMOLLM2_135M, 2048, 32))


def write_base(config, folder):
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    del model
    free()


def free():
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def ours(program, folder, length, sequences, more=()):
    best = None
    for together in (1, 2, 4, 8, 16):
        if together > sequences:
            break
        line = [program, "step", folder, "--length", length, "--sequences", sequences, "--together", together, *more]
        done = subprocess.run([str(word) for word in line], capture_output=True, text=True)
        if done.returncode != 0:
            print(f"  ours, {together} together: {done.stderr.strip().splitlines()[-1]}", flush=True)
            break
        answer = dict(json.loads(done.stdout), together=together)
        print(f"  ours, {together} together: {answer['tokens_per_second']:,.0f} tokens/s, {answer['peak_bytes'] / 2**30:.1f} GiB", flush=True)
        if best and answer["tokens_per_second"] < best["tokens_per_second"]:
            break
        best = answer
    return best


def peft(folder, length, sequences, quantised=False):
    best = None
    for checkpointing in (False, True):
        for together in (1, 2, 4, 8, 16):
            if together > sequences:
                break
            try:
                speed, peak = peft_steps(folder, length, sequences, together, checkpointing, quantised)
            except torch.cuda.OutOfMemoryError:
                print(f"  PEFT, {together} together, checkpointing {checkpointing}: out of memory", flush=True)
                free()
                break
            print(f"  PEFT, {together} together, checkpointing {checkpointing}: {speed:,.0f} tokens/s, {peak / 2**30:.1f} GiB", flush=True)
            if best is None or speed > best["tokens_per_second"]:
                best = dict(tokens_per_second=speed, peak_bytes=peak, together=together, checkpointing=checkpointing)
    return best


def peft_steps(folder, length, sequences, together, checkpointing, quantised):
    more = {}
    if quantised:
        from transformers import BitsAndBytesConfig

        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="sdpa", device_map={"": 0}, **more
    )
    model.config.use_cache = False
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
        model.enable_input_require_grads()
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=True)
    ids = torch.randint(0, model.config.vocab_size, (sequences, length), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(WARM_UP + COUNTED):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for first in range(0, sequences, together):
            some = ids[first : first + together]
            (model(input_ids=some, labels=some).loss * len(some) / sequences).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated()
    del model, optimizer, trained, ids
    free()
    return sequences * length / statistics.median(seconds[WARM_UP:]), peak


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("program", type=Path)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--shapes", default=",".join(SHAPES))
    arguments.add_argument("--nf4", action="store_true")
    arguments.add_argument("--ours-only", action="store_true")
    flags = arguments.parse_args()
    rows = []
    for name in flags.shapes.split(","):
        config, length, sequences = SHAPES[name]
        folder = flags.folder / name
        print(f"{name}, {sequences} sequences of {length}", flush=True)
        write_base(config, folder)
        for few_bits in (False, True) if flags.nf4 else (False,):
            label = f"{name}{' nf4' if few_bits else ''}, {length}"
            mine = ours(flags.program, folder, length, sequences, ["--nf4"] if few_bits else [])
            theirs = None if flags.ours_only else peft(folder, length, sequences, few_bits)
            rows.append((label, mine, theirs))
            if mine:
                line = [flags.program, "step", folder, "--length", length, "--sequences", sequences, "--together", mine["together"], "--profile"]
                profile = subprocess.run([str(word) for word in line], capture_output=True, text=True)
                print("  where a step goes, every operation waited for:", json.loads(profile.stdout)["milliseconds"], flush=True)
        shutil.rmtree(folder)
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    print("| shape, sequence | ours, tokens/s | PEFT's best | ratio | our memory | PEFT's | ratio |\n|---|---|---|---|---|---|---|")
    for label, mine, theirs in rows:
        cell = lambda of, key, unit, form: format(of[key] / unit, form) if of else "-"
        ratio = lambda key: f"{mine[key] / theirs[key]:.2f}" if mine and theirs else "-"
        print(
            f"| {label} | {cell(mine, 'tokens_per_second', 1, ',.0f')} | {cell(theirs, 'tokens_per_second', 1, ',.0f')} | {ratio('tokens_per_second')} "
            f"| {cell(mine, 'peak_bytes', 2**30, '.1f')} GiB | {cell(theirs, 'peak_bytes', 2**30, '.1f')} GiB | {ratio('peak_bytes')} |"
        )


main()
