"""Whole optimizer steps on one GPU, ours beside PEFT's, on bases of random numbers: the table of docs/gpu.md.

    python beside_peft.py ./lorikeet-gpu FOLDER [--shapes llama_8b,qwen_05b,smollm2_135m,llama_8b_nf4] [--seconds 540]
        [--rows beside_peft.jsonl] [--commit ID] [--ours-only] [--device cpu]

Needs torch and transformers to make the bases (17 GB on FOLDER's disk), peft and bitsandbytes for the other side: what is absent or fails is a row that
says so. Ours and theirs take turns on the card, never at once: same base, same number of tokens, sequences of full length, rank 16 on every
linear layer, AdamW, clipped at 1. PEFT has bf16 weights, sdpa attention and fused AdamW, and the best of: adapters in bf16 (autocast_adapter_dtype=False),
adapters in f32 under autocast; with and without gradient checkpointing; several batch sizes. Ours has the best of a few sequences at a time.
Tokens per second are the middle of five steps after two; memory is the most that was in use. Whoever runs out of memory at a size is out of larger
ones only; who is plainly behind his own best after a step is not measured to the end.

Every number is a line of the rows' file the moment it is there, and the table is printed whatever happened. Time is divided among the shapes; where
it gets short no further size is begun. `--device cpu` with `--shapes tiny,tiny_nf4` shows that the script runs, and nothing about speed.
"""

import argparse
import contextlib
import datetime
import gc
import importlib.metadata
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

GIB = 2**30
WARM_UP, COUNTED = 2, 5
SIZES = (1, 2, 4, 8, 16, 32)
# after a step that is so much slower than the best the rest of an attempt would only cost time
BEHIND = 1.15
# what is kept back for the table
RESERVE = 5.0

LLAMA_8B = dict(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
    vocab_size=128256, max_position_embeddings=8192, rope_theta=500000.0, rms_norm_eps=1e-5, tie_word_embeddings=False,
)
QWEN_05B = dict(
    hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
    vocab_size=151936, max_position_embeddings=8192, rope_theta=1000000.0, rms_norm_eps=1e-6, tie_word_embeddings=True,
)
SMOLLM2_135M = dict(
    hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
    vocab_size=49152, max_position_embeddings=8192, rope_theta=100000.0, rms_norm_eps=1e-5, tie_word_embeddings=True,
)
TINY = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=300, max_position_embeddings=256, rope_theta=10000.0, rms_norm_eps=1e-5, tie_word_embeddings=True,
)


def shape(base, config, length, sequences, weight, tokens=None, ratio=None, memory=None, nf4=False):
    """A row of the table: `weight` is its part of the time, `tokens`, `ratio` and `memory` the goals."""
    return dict(
        base=base, config=config, length=length, sequences=sequences, weight=weight, nf4=nf4,
        goals=dict(tokens=tokens, ratio=ratio, memory=memory),
    )


SHAPES = dict(
    llama_8b=shape("llama", LLAMA_8B, 4096, 4, 5, 13_500, 1.5, 0.7),
    qwen_05b=shape("qwen2", QWEN_05B, 2048, 16, 3, 150_000, 3.0, 0.6),
    smollm2_135m=shape("llama", SMOLLM2_135M, 2048, 32, 3, 350_000, 4.0, 0.6),
    # its goals hang on ours in bf16 at the same length: 0.9 of the speed, and 12 GiB beside the same activations
    llama_8b_nf4=shape("llama", LLAMA_8B, 2048, 8, 4, None, 2.0, None, nf4=True),
    tiny=shape("llama", TINY, 32, 4, 1, 1, 1.0, 1.0),
    tiny_nf4=shape("llama", TINY, 32, 4, 1, None, 1.0, None, nf4=True),
)
NF4_SPEED, NF4_BYTES = 0.9, 12 * GIB


class Clock:
    """The time that is left, of all and of a row."""

    def __init__(self, seconds):
        self.end = time.monotonic() + seconds - RESERVE

    def left(self):
        return self.end - time.monotonic()

    def share(self, weight, of_all):
        """The clock of what has `weight` of `of_all` that is still to come."""
        return Clock(max(0.0, self.left()) * weight / of_all + RESERVE)


class Rows:
    """Lines of JSON, on the disk as they come: a run that is cut off has given what it measured."""

    def __init__(self, path):
        self.file = open(path, "a", encoding="utf-8")

    def add(self, **row):
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        return row


def say(text):
    print(text, flush=True)


def in_words(error):
    """The first line of an exception, with its kind."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


# ---- ours ------------------------------------------------------------------------------------------------------------------
def sizes(sequences, best=None):
    """Sequences in one pass: all that divide the step; once there is a best, from half of it on."""
    return [size for size in SIZES if size <= sequences and (best is None or 2 * size >= best)]


def ours(flags, folder, row, clock, together=None, nf4=None):
    """The best line of `lorikeet-gpu step`, which tries all sizes on one load of the base; else why there is none."""
    few_bits = row["nf4"] if nf4 is None else nf4
    line = [flags.program, "step", folder, "--length", row["length"], "--sequences", row["sequences"]]
    line += ["--together", ",".join(str(size) for size in together or sizes(row["sequences"]))]
    line += ["--seconds", max(1, int(clock.left())), "--profile", *(["--nf4"] if few_bits else [])]
    line += ["--tiny"] if row["config"] is TINY else []
    answers, ceilings, last = [], {}, ""
    try:
        child = subprocess.Popen([str(word) for word in line], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        return None, in_words(error)
    # its own limit ends it in order; this one where it hangs
    killer = threading.Timer(max(30.0, 1.5 * clock.left()), child.kill)
    killer.start()
    try:
        for text in child.stdout:
            answer = as_answer(text)
            if answer is None:
                # an error is said before the usage is
                last = last if last.startswith("error") else text.rstrip() or last
                say(f"    {text.rstrip()}")
            elif "ceilings" in answer:
                ceilings = answer["ceilings"]
            else:
                answers.append(answer)
                flags.rows.add(row=row["name"], who="ours", nf4=few_bits, **answer)
                said = answer.get("error") or f"{answer['tokens_per_second']:,.0f} tokens/s, {answer['peak_bytes'] / GIB:.1f} GiB"
                say(f"  ours, {answer.get('together')} together: {said}")
        code = child.wait()
    finally:
        killer.cancel()
        child.kill()
    flags.rows.add(row=row["name"], who="ours", nf4=few_bits, ended=code, ceilings=ceilings, last=last)
    measured = [answer for answer in answers if "tokens_per_second" in answer]
    if not measured:
        errors = [answer["error"] for answer in answers if "error" in answer]
        return None, (errors or [f"lorikeet-gpu ended with {code}: {last or 'it said nothing'}"])[-1]
    best = max(measured, key=lambda answer: answer["tokens_per_second"])
    shares = {key: best[key] / most for key, most in ceilings.items()}
    return dict(best, shares=shares, at_one=peak_at_one(measured)), ""


def as_answer(text):
    """A line of JSON; none for what is there for people."""
    try:
        return json.loads(text) if text.startswith("{") else None
    except ValueError:
        return None


def peak_at_one(answers):
    """The most memory with one sequence at a time and nothing computed twice, where that was measured."""
    peaks = [answer["peak_bytes"] for answer in answers if answer["together"] == 1 and not answer.get("checkpointing")]
    return min(peaks) if peaks else None


# ---- theirs ----------------------------------------------------------------------------------------------------------------
class Card:
    """What is asked of torch about the device; a processor has no counters."""

    def __init__(self, device):
        self.device = device

    def wait(self):
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()

    def free(self):
        """Only outside of an `except`: the traceback holds all that the failed attempt had."""
        import torch

        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self):
        import torch

        return torch.cuda.max_memory_allocated() if self.device == "cuda" else 1


def write_base(card, row, folder):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(card.device):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(row["base"], **row["config"]), dtype=torch.bfloat16)
    model.save_pretrained(folder)


def load_peft(card, row, folder):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    more = {}
    if row["nf4"]:
        import bitsandbytes  # noqa: F401  absent it is named here, and not somewhere inside
        from transformers import BitsAndBytesConfig

        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="sdpa", device_map={"": 0 if card.device == "cuda" else "cpu"}, **more
    )
    model.config.use_cache = False
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora, autocast_adapter_dtype=False)
    model.train()
    return model


def precision(card, model, adapters):
    """What a forward pass of adapters in this precision stands under."""
    import torch

    if adapters == "bf16":
        return contextlib.nullcontext()
    stack = contextlib.ExitStack()
    with contextlib.suppress(ImportError):
        from peft.helpers import disable_input_dtype_casting

        # else PEFT makes f32 of an input that autocast makes bf16 again
        stack.enter_context(disable_input_dtype_casting(model))
    stack.enter_context(torch.autocast(card.device, dtype=torch.bfloat16))
    return stack


def peft_steps(card, model, row, together, adapters, checkpointing, best_seconds):
    """Seconds of a step, the most memory, and whether all steps were taken."""
    import torch

    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
    else:
        model.gradient_checkpointing_disable()
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.grad, p.data = None, p.data.to(torch.bfloat16 if adapters == "bf16" else torch.float32)
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=True)
    sequences = row["sequences"]
    ids = torch.randint(0, row["config"]["vocab_size"], (sequences, row["length"]), device=card.device)
    card.free()
    seconds = []
    for step in range(WARM_UP + COUNTED):
        card.wait()
        start = time.perf_counter()
        for first in range(0, sequences, together):
            some = ids[first : first + together]
            with precision(card, model, adapters):
                loss = model(input_ids=some, labels=some).loss
            (loss * len(some) / sequences).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        card.wait()
        seconds.append(time.perf_counter() - start)
        if step == WARM_UP and best_seconds and seconds[-1] > BEHIND * best_seconds:
            break
    return statistics.median(seconds[WARM_UP:]), card.peak(), len(seconds) == WARM_UP + COUNTED


def attempts(sequences, best):
    """Adapters, checkpointing and sizes in the order in which they are worth their time; `best()` is the size of the best so far."""
    for checkpointing in (False, True):
        for adapters in ("bf16", "f32"):
            yield adapters, checkpointing, sizes(sequences, best())


def theirs(flags, card, folder, row, clock):
    """PEFT's best; else why there is none."""
    try:
        model = load_peft(card, row, folder)
        reason = ""
    except Exception as error:
        model, reason = None, in_words(error)
    if model is None:
        card.free()
        flags.rows.add(row=row["name"], who="peft", error=reason)
        say(f"  PEFT: {reason}")
        return None, reason
    measured = []
    fastest = lambda: max(measured, key=lambda answer: answer["tokens_per_second"], default=None)
    longest = 0.0
    for adapters, checkpointing, tried in attempts(row["sequences"], lambda: (fastest() or {}).get("together")):
        before = 0.0
        for together in tried:
            if clock.left() < 1.2 * longest:
                say("  PEFT: no time for more")
                return dict(fastest(), at_one=peak_at_one(measured)) if measured else None, "no time"
            began = time.monotonic()
            answer = dict(together=together, adapters=adapters, checkpointing=checkpointing)
            try:
                best = fastest()
                seconds, peak, whole = peft_steps(card, model, row, together, adapters, checkpointing, best and best["seconds"])
                speed = row["sequences"] * row["length"] / seconds
                answer.update(seconds=seconds, tokens_per_second=speed, peak_bytes=peak, whole=whole)
                said = f"{speed:,.0f} tokens/s, {peak / GIB:.1f} GiB{'' if whole else ', given up'}"
            except Exception as error:
                reason = said = answer["error"] = in_words(error)
            card.free()
            longest = max(longest, time.monotonic() - began)
            flags.rows.add(row=row["name"], who="peft", **answer)
            say(f"  PEFT, {together} together, adapters in {adapters}{', checkpointing' if checkpointing else ''}: {said}")
            if "error" in answer or answer["tokens_per_second"] < before:
                break
            before = answer["tokens_per_second"]
            measured.append(answer)
    if not measured:
        return None, reason
    return dict(fastest(), at_one=peak_at_one(measured)), ""


# ---- the table -------------------------------------------------------------------------------------------------------------
def goals_of(row, beside):
    """Tokens/s, ratio and memory that are wanted: memory as a ratio to PEFT's, or in bytes."""
    goals = dict(row["goals"], bytes=None)
    if row["nf4"] and beside:
        goals["tokens"] = NF4_SPEED * beside["tokens_per_second"]
        goals["bytes"] = NF4_BYTES + beside["peak_bytes"] - beside["weights_bytes"]
    return goals


def judged(text, holds, goal):
    return text if goal is None else f"{text} (goal {goal}: {'met' if holds else 'MISSED'})"


def cells(found):
    """One line of the table. Whatever was not measured is said in its place."""
    row, mine, theirs_best, reasons = found["row"], found["ours"], found["theirs"], found["reasons"]
    goals = goals_of(row, found["beside"])
    label = f"{row['name']}, {row['length']}"
    speed = lambda who: f"{who['tokens_per_second']:,.0f}"
    if mine:
        wanted = goals["tokens"]
        ours_speed = judged(speed(mine), wanted and mine["tokens_per_second"] >= wanted, wanted and f"{wanted:,.0f}")
        memory = f"{mine['peak_bytes'] / GIB:.1f} GiB"
        if goals["bytes"]:
            memory = judged(memory, mine["peak_bytes"] <= goals["bytes"], f"{goals['bytes'] / GIB:.1f} GiB")
    else:
        ours_speed, memory = reasons[0] or "-", "-"
    shares = mine["shares"] if mine else {}
    share = ", ".join(f"{100 * shares[key]:.0f} %" for key in ("teraflops", "gigabytes_per_second") if key in shares) or "-"
    if theirs_best:
        how = f"{theirs_best['together']} together, adapters in {theirs_best['adapters']}"
        how += ", checkpointing" if theirs_best["checkpointing"] else ""
        their_speed, their_memory = f"{speed(theirs_best)} ({how})", f"{theirs_best['peak_bytes'] / GIB:.1f} GiB"
    else:
        their_speed, their_memory = reasons[1] or "-", "-"
    ratio = memory_ratio = at_one = "-"
    if mine and theirs_best:
        faster = mine["tokens_per_second"] / theirs_best["tokens_per_second"]
        ratio = judged(f"{faster:.2f}", goals["ratio"] and faster >= goals["ratio"], goals["ratio"])
        smaller = mine["peak_bytes"] / theirs_best["peak_bytes"]
        memory_ratio = judged(f"{smaller:.2f}", goals["memory"] and smaller <= goals["memory"], goals["memory"])
        if mine.get("at_one") and theirs_best.get("at_one"):
            at_one = f"{mine['at_one'] / theirs_best['at_one']:.2f}"
    return [label, ours_speed, share, their_speed, ratio, memory, their_memory, memory_ratio, at_one]


HEAD = [
    "shape, tokens of a sequence", "ours, tokens/s", "of the card's product and of its copy", "PEFT's best, tokens/s", "ratio",
    "our memory", "PEFT's", "ratio", "ratio at one sequence a pass, nothing computed twice",
]


def table(lines):
    return "\n".join("| " + " | ".join(line) + " |" for line in [HEAD, ["---"] * len(HEAD), *lines])


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def versions(flags):
    """Everything that a number depends on."""
    packages = {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}
    try:
        line = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        card = subprocess.run(line, capture_output=True, text=True, timeout=20).stdout.strip() or "nvidia-smi says nothing"
    except (OSError, subprocess.SubprocessError) as error:
        card = in_words(error)
    try:
        import torch

        cuda = torch.version.cuda
    except Exception as error:
        cuda = in_words(error)
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return dict(card=card, cuda=cuda, commit=flags.commit, date=date, **packages)


def measure(flags, card, found, folder, clock):
    """Fills a line of the table, piece by piece: what is there when a run is cut off is in it."""
    row = found["row"]
    say(f"\n{row['name']}, {row['sequences']} sequences of {row['length']}, {clock.left():.0f} s for it")
    if not folder.exists():
        write_base(card, row, folder)
        card.free()
    # two fifths are ours: it is these numbers that the run is for
    found["ours"], found["reasons"][0] = ours(flags, folder, row, clock.share(2, 5))
    if found["ours"] and row["nf4"]:
        together = [found["ours"]["together"]]
        found["beside"], _ = ours(flags, folder, row, clock.share(1, 4), together, nf4=False)
    if flags.ours_only:
        found["reasons"][1] = "not asked for"
    else:
        found["theirs"], found["reasons"][1] = theirs(flags, card, folder, row, clock)


def measure_or_say(flags, card, found, folder, clock):
    """The same, and whatever goes wrong is said in the line."""
    name, reason = found["row"]["name"], ""
    try:
        measure(flags, card, found, folder, clock)
    except Exception as error:
        reason = in_words(error)
    if reason:
        found["reasons"] = [known or reason for known in found["reasons"]]
        say(f"  {reason}")
    with contextlib.suppress(Exception):
        card.free()
    flags.rows.add(row=name, cells=cells(found))


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("program", type=Path)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--shapes", default="llama_8b,qwen_05b,smollm2_135m,llama_8b_nf4")
    arguments.add_argument("--seconds", type=float, default=540)
    arguments.add_argument("--rows", type=Path, default=Path("beside_peft.jsonl"))
    arguments.add_argument("--commit", default="not said")
    arguments.add_argument("--ours-only", action="store_true")
    arguments.add_argument("--device", default="cuda")
    flags = arguments.parse_args()
    # whoever ends this at a time limit gets the table all the same
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    flags.program = flags.program.resolve()
    names = flags.shapes.split(",")
    unknown = [name for name in names if name not in SHAPES]
    if unknown:
        arguments.error(f"{unknown[0]} is no shape; there are {', '.join(SHAPES)}")
    clock, card = Clock(flags.seconds), Card(flags.device)
    flags.rows = Rows(flags.rows)
    stand = flags.rows.add(versions=versions(flags))["versions"]
    say(", ".join(f"{name} {value}" for name, value in stand.items()))
    flags.folder.mkdir(parents=True, exist_ok=True)
    lines = []
    try:
        for place, name in enumerate(names):
            row = dict(SHAPES[name], name=name)
            found = dict(row=row, ours=None, theirs=None, beside=None, reasons=["", ""])
            lines.append(found)
            to_come = [SHAPES[other] for other in names[place:]]
            share = clock.share(row["weight"], sum(other["weight"] for other in to_come))
            folder = flags.folder / base_name(row)
            measure_or_say(flags, card, found, folder, share)
            if base_name(row) not in [base_name(other) for other in to_come[1:]]:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        say("\n" + ", ".join(f"{name} {value}" for name, value in stand.items()))
        say(table([cells(found) for found in lines]))


def base_name(row):
    """One folder for all rows that have one base."""
    return f"{row['base']}-{row['config']['hidden_size']}x{row['config']['num_hidden_layers']}"


if __name__ == "__main__":
    main()
