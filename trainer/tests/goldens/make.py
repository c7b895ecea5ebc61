"""Makes the golden cases beside this file with the reference implementation (transformers and PEFT on the CPU, f32).

    python make.py [CASE…]    # needs torch, transformers 5.23, peft 0.21.2

Each case is a directory:
    base/                 a tiny random model as `save_pretrained` writes it
    adapter/              a random adapter (B is not zero) as PEFT writes it
    case.json             sequences, their supervised tokens, and the settings of the run
    expected.safetensors  logits [all tokens, vocabulary] of every sequence, one after another;
                          loss [1] and grad.<tensor> of the first batch; run.loss, run.lr, run.norm of 20 AdamW steps
    full.safetensors      of some: loss [1] and the gradient of every weight of the base, without an adapter
Sequences of a batch are padded here; the tests lay them flat. Where the rotary positions of a padded batch would depend on its
longest sequence (dynamic, longrope), sequences are passed one by one instead, each to the positions of a fresh model. A step's loss is the sum over its supervised tokens, of all its
micro-batches, divided by their number. A step takes the next `batch` sequences, beginning again at the end of the list.
"""

import json
import os
import sys
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig
from transformers import Phi3Config, Phi3ForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers import get_cosine_schedule_with_warmup

STEPS = 20
SHAPE = dict(
    vocab_size=80, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.25, rms_norm_eps=1e-5,
)
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    # all seven modules, a head of its own, two shards of f32
    "untied_all_f32": dict(
        seed=1, model=(LlamaConfig, LlamaForCausalLM, dict(tie_word_embeddings=False)), dtype=torch.float32, shard="60KB",
        lora=dict(r=4, lora_alpha=16, target_modules=SEVEN), lengths=[9, 17, 5, 12, 3, 20],
        run=dict(batch=3, accumulate=1, lr=1e-2, warmup=3, weight_decay=0.0, max_grad_norm=0.3),
    ),
    # q and v only, tied head, llama3 scaling past its original length, bf16, accumulation
    "tied_qv_llama3_bf16": dict(
        seed=2,
        model=(LlamaConfig, LlamaForCausalLM, dict(tie_word_embeddings=True, rope_parameters=dict(
            rope_type="llama3", rope_theta=10000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=16))),
        dtype=torch.bfloat16, shard="1GB",
        lora=dict(r=2, lora_alpha=3, target_modules=["q_proj", "v_proj"]), lengths=[40, 23, 31, 7, 18, 36],
        run=dict(batch=6, accumulate=2, lr=2e-2, warmup=2, weight_decay=0.1, max_grad_norm=0.2),
    ),
    # Mistral, linear scaling, a head width of its own, f16, a pattern that leaves layer 0 to MLP adapters only, rsLoRA
    "mistral_pattern_linear_f16": dict(
        seed=3,
        model=(MistralConfig, MistralForCausalLM, dict(tie_word_embeddings=False, sliding_window=None, head_dim=12,
            rope_parameters=dict(rope_type="linear", rope_theta=5000.0, factor=2.0))),
        dtype=torch.float16, shard="1GB",
        lora=dict(r=3, lora_alpha=6, use_rslora=True, target_modules=r"model\.layers\.(1\..*_proj|0\.mlp\.(up|down)_proj)"),
        lengths=[11, 6, 14], run=dict(batch=3, accumulate=1, lr=5e-3, warmup=4, weight_decay=0.0, max_grad_norm=2.5),
    ),
}
# the families: short windows, short first training lengths, low caps, so that sequences of a few dozen tokens pass them
RUN = dict(batch=3, accumulate=1, lr=1e-2, warmup=3, weight_decay=0.0, max_grad_norm=0.3)
SMALL = dict(SHAPE, vocab_size=48, hidden_size=24, intermediate_size=32, num_attention_heads=3, num_key_value_heads=1,
             head_dim=8, max_position_embeddings=16)
SEVEN_OF_RANK_2 = dict(r=2, lora_alpha=4, target_modules=SEVEN)


def family(seed, config, model, extra, lengths=(25, 9, 18), lora=SEVEN_OF_RANK_2, **more):
    """A case whose gains and biases are random too."""
    return dict(seed=seed, model=(config, model, extra), shape=SMALL, dtype=torch.bfloat16, shard="1GB", lora=lora,
                lengths=list(lengths), run=RUN, shake=True) | more


CASES |= {
    # every linear layer has a bias; the base grows with each sequence longer than 16
    "llama_dynamic_bias": family(4, LlamaConfig, LlamaForCausalLM, dict(
        attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0)), alone=True, full=True),
    "llama_yarn": family(5, LlamaConfig, LlamaForCausalLM, dict(
        rope_parameters=dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=8,
            beta_fast=2.0, beta_slow=0.5))),
    "mistral_window": family(6, MistralConfig, MistralForCausalLM, dict(sliding_window=5)),
    # a window in the upper layer only
    "qwen2": family(7, Qwen2Config, Qwen2ForCausalLM, dict(
        use_sliding_window=True, sliding_window=6, max_window_layers=1, tie_word_embeddings=True)),
    "qwen3": family(8, Qwen3Config, Qwen3ForCausalLM, dict(attention_bias=True), full=True),
    "gemma2": family(9, Gemma2Config, Gemma2ForCausalLM, dict(
        sliding_window=5, query_pre_attn_scalar=12, attn_logit_softcapping=1.5, final_logit_softcapping=2.0),
        full=True),
    # five layers with a window, the sixth without and with a stretched rope
    "gemma3": family(10, Gemma3TextConfig, Gemma3ForCausalLM, dict(
        num_hidden_layers=6, sliding_window=4, query_pre_attn_scalar=12, rope_parameters=dict(
            full_attention=dict(rope_type="linear", rope_theta=1000000.0, factor=8.0),
            sliding_attention=dict(rope_type="default", rope_theta=10000.0))), lengths=(25, 9)),
    # three quarters of each head turn; two of the three sequences are longer than the first training length
    "phi3": family(11, Phi3Config, Phi3ForCausalLM, dict(
        num_attention_heads=3, original_max_position_embeddings=12, max_position_embeddings=48, sliding_window=7,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
        rope_parameters=dict(rope_type="longrope", rope_theta=10000.0, partial_rotary_factor=0.75,
            short_factor=[1.0, 1.1, 1.3], long_factor=[1.2, 2.5, 4.0])), alone=True, full=True,
        lora=dict(r=2, lora_alpha=4, target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"])),
}

CASES |= {
    # DoRA over biases and on the head
    "dora": family(12, Qwen2Config, Qwen2ForCausalLM, dict(),
        lora=dict(r=2, lora_alpha=4, use_dora=True, target_modules=["q_proj", "v_proj", "o_proj", "up_proj", "lm_head"])),
    # every rule for choosing modules, and ranks and alphas of their own
    "patterns_rslora": family(13, LlamaConfig, LlamaForCausalLM, dict(num_hidden_layers=3), lora=dict(
        r=3, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "v_proj", "mlp.up_proj", "model.layers.2.mlp.down_proj"],
        exclude_modules=r".*\.0\.self_attn\.v_proj", layers_to_transform=[0, 1],
        rank_pattern={"up_proj": 1, r"layers\.1\.self_attn\.q_proj": 2}, alpha_pattern={"self_attn.q_proj": 5})),
    # LoRA+, on embedding and head too, where the embedding has a factor and the logits a cap
    "plus_ends": family(14, Gemma2Config, Gemma2ForCausalLM, dict(
        tie_word_embeddings=False, pad_token_id=None, sliding_window=8, query_pre_attn_scalar=8, attn_logit_softcapping=None,
        final_logit_softcapping=4.0),
        lora=dict(r=2, lora_alpha=4, target_modules=["embed_tokens", "q_proj", "down_proj", "lm_head"]),
        run=dict(RUN, plus_ratio=8.0, weight_decay=0.1)),
    # the run alone is compared: the sign of a singular vector is nobody's choice
    "pissa": family(15, LlamaConfig, LlamaForCausalLM, dict(), pissa=True,
        lora=dict(r=2, lora_alpha=3, init_lora_weights="pissa", target_modules=["q_proj", "o_proj", "down_proj"])),
}


def make(name, case):
    out = Path(name)
    shutil.rmtree(out, ignore_errors=True)
    torch.manual_seed(case["seed"])
    config_class, model_class, extra = case["model"]
    model = model_class(config_class(**case.get("shape", SHAPE) | extra))
    if case.get("shake"):
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data += 0.3 * torch.randn_like(parameter)
    model.to(case["dtype"]).save_pretrained(out / "base", max_shard_size=case["shard"])
    base = AutoModelForCausalLM.from_pretrained(out / "base", dtype=torch.float32, attn_implementation="eager")
    peft = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **case["lora"]))
    if not case.get("pissa"):
        for key, parameter in trained(peft).items():
            if "magnitude" in key:
                parameter.data *= 1 + 0.3 * torch.randn_like(parameter)
            else:
                torch.nn.init.normal_(parameter, std=0.15)
    peft.save_pretrained(out / "adapter", save_embedding_layers=False)
    vocabulary = case.get("shape", SHAPE)["vocab_size"]
    sequences = [sequence(i, length, vocabulary) for i, length in enumerate(case["lengths"])]
    if case.get("alone"):
        forget_lengths(base)
    expected = {"logits": torch.cat([peft(torch.tensor([s["tokens"]])).logits[0] for s in sequences]).detach()}
    run = dict(case["run"], batch=min(case["run"]["batch"], len(sequences)))
    alone = case.get("alone", False)
    first = sequences[: run["batch"]]
    loss = batch_loss(peft, first, alone) / supervised(first)
    loss.backward()
    expected["loss"] = loss.detach().reshape(1)
    if not case.get("pissa"):
        expected |= {f"grad.{key}": p.grad.clone() for key, p in trained(peft).items()}
    expected |= train(peft, sequences, run, alone)
    if case.get("pissa"):
        expected["logits.after"] = peft(torch.tensor([sequences[0]["tokens"]])).logits[0].detach()
        (out / "adapter/adapter_model.safetensors").unlink()
    save_file({key: value.contiguous() for key, value in expected.items()}, out / "expected.safetensors")
    (out / "case.json").write_text(json.dumps(dict(sequences=sequences, run=run, steps=STEPS)) + "\n")
    if case.get("full"):
        save_file(full_gradients(out / "base", first, alone), out / "full.safetensors")
    for extra_file in ["base/generation_config.json", "adapter/README.md"]:
        (out / extra_file).unlink(missing_ok=True)
    for file in out.rglob("*.safetensors"):
        file.chmod(0o644)


def full_gradients(base, sequences, alone):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    if alone:
        forget_lengths(model)
    loss = batch_loss(model, sequences, alone) / supervised(sequences)
    loss.backward()
    gradients = {key: parameter.grad.contiguous() for key, parameter in model.named_parameters()}
    return gradients | {"loss": loss.detach().reshape(1)}


def trained(peft):
    return {saved_name(key): p for key, p in peft.named_parameters() if p.requires_grad}


def saved_name(key):
    key = key.replace(".default", "")
    return key.removesuffix(".weight") if "magnitude" in key else key


def forget_lengths(model):
    """Every call begins as a fresh model would: the positions remember the longest sequence they have seen."""
    rotary = model.model.rotary_emb

    def forget(*_):
        rotary.max_seq_len_cached = rotary.original_max_seq_len
        rotary.inv_freq = rotary.original_inv_freq.clone()

    rotary.register_forward_pre_hook(forget)


def sequence(i, length, vocabulary):
    """About half of the tokens are supervised, in pieces; the first never counts and is sometimes marked."""
    generator = torch.Generator().manual_seed(100 + i)
    tokens = torch.randint(0, vocabulary, (length,), generator=generator)
    marks = [(j // 3 + i) % 2 == 0 for j in range(length)]
    marks[-1] = True
    return dict(tokens=tokens.tolist(), supervised=marks)


def supervised(sequences):
    return sum(sum(s["supervised"][1:]) for s in sequences)


def batch_loss(peft, sequences, alone):
    """Sum over supervised tokens, of one padded batch or one sequence after another."""
    if alone and len(sequences) > 1:
        return sum(batch_loss(peft, [s], alone) for s in sequences)
    longest = max(len(s["tokens"]) for s in sequences)
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for row, s in enumerate(sequences):
        n = len(s["tokens"])
        tokens = torch.tensor(s["tokens"])
        ids[row, :n] = tokens
        mask[row, :n] = 1
        labels[row, :n] = torch.where(torch.tensor(s["supervised"]), tokens, -100)
    logits = peft(ids, attention_mask=mask).logits
    flat, wanted = logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1)
    return torch.nn.functional.cross_entropy(flat, wanted, ignore_index=-100, reduction="sum")


def train(peft, sequences, run, alone):
    parameters = list(trained(peft).values())
    settings = dict(lr=run["lr"], betas=(0.9, 0.999), eps=1e-8)
    if "plus_ratio" in run:
        plus = dict(loraplus_lr_ratio=run["plus_ratio"], loraplus_weight_decay=run["weight_decay"])
        optimizer = create_loraplus_optimizer(peft, torch.optim.AdamW, **settings, **plus)
    else:
        optimizer = torch.optim.AdamW(parameters, weight_decay=run["weight_decay"], **settings)
    schedule = get_cosine_schedule_with_warmup(optimizer, run["warmup"], STEPS)
    losses, rates, norms = [], [], []
    for step in range(STEPS):
        start = step * run["batch"]
        chosen = [sequences[(start + i) % len(sequences)] for i in range(run["batch"])]
        size = run["batch"] // run["accumulate"]
        optimizer.zero_grad()
        total = 0.0
        for micro in [chosen[i : i + size] for i in range(0, run["batch"], size)]:
            loss = batch_loss(peft, micro, alone) / supervised(chosen)
            loss.backward()
            total += loss.item()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, run["max_grad_norm"]).item())
        rates.append(schedule.get_last_lr()[0])
        losses.append(total)
        optimizer.step()
        schedule.step()
    assert sum(norm > run["max_grad_norm"] for norm in norms) > 5, "clipping must act"
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, norms {min(norms):.3f} to {max(norms):.3f}")
    doubles = dict(loss=losses, lr=rates, norm=norms)
    return {f"run.{key}": torch.tensor(value, dtype=torch.float64) for key, value in doubles.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.chdir(Path(__file__).parent)  # so that no path of this machine enters a file
    for name in sys.argv[1:] or CASES:
        case = CASES[name]
        print(name)
        make(name, case)
