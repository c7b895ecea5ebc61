"""Makes `quantised/` beside this file with bitsandbytes, transformers and PEFT on the CPU.

    python quantised.py       # needs torch, transformers 5.24, peft 0.21.2, bitsandbytes 0.50.2, accelerate

    tensors.safetensors   one bf16 weight whose last block is not whole, as bitsandbytes quantises it and takes it apart again:
                          nf4.{codes,absmax,nested_absmax,nested_quant_map,offset,weight}, int8.{codes,scales,weight}
    nf4/, int8/           a tiny random Llama in bf16 as transformers saves it with that quantization_config
    adapter/              a random adapter (B is not zero)
    expected.safetensors  of the nf4 model with the adapter: logits, loss, loss.bitsandbytes, grad.<tensor>;
                          nf4.<module>, int8.<module>: one weight taken apart
    case.json             the sequence and what of it is supervised
"""

import json
import shutil
from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent / "quantised"
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TOKENS = [(i * 7 + 3) % 64 for i in range(24)]


def main():
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    save_file(one_weight(), HERE / "tensors.safetensors")
    torch.manual_seed(5)
    shape = dict(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, tie_word_embeddings=True,
    )
    base = HERE / "base"
    LlamaForCausalLM(LlamaConfig(**shape)).to(torch.bfloat16).save_pretrained(base)
    nf4 = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32)
    expected = {}
    for name, settings in dict(nf4=nf4, int8=dict(load_in_8bit=True)).items():
        model = AutoModelForCausalLM.from_pretrained(
            base, quantization_config=BitsAndBytesConfig(**settings), dtype=torch.bfloat16, device_map="cpu"
        )
        model.save_pretrained(HERE / name)
        for module in ["self_attn.k_proj"]:
            weight = model.get_submodule(f"model.layers.0.{module}").weight
            expected[f"{name}.{module}"] = (
                bnb.dequantize_4bit(weight.data, weight.quant_state) if name == "nf4"
                else bnb.int8_vectorwise_dequant(weight.data, weight.SCB)
            ).contiguous()
    shutil.rmtree(base)
    for name in ["nf4", "int8"]:
        (HERE / name / "generation_config.json").unlink()
    expected |= reference()
    save_file(expected, HERE / "expected.safetensors")


def one_weight():
    torch.manual_seed(3)
    weight = (torch.randn(40, 420) * torch.linspace(0.01, 0.3, 40).unsqueeze(1)).to(torch.bfloat16)
    codes, state = bnb.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    eight, scales, _ = bnb.int8_vectorwise_quant(weight[:8].to(torch.float16))
    return {
        "weight": weight,
        "nf4.codes": codes.flatten().contiguous(),
        "nf4.absmax": state.absmax,
        "nf4.nested_absmax": state.state2.absmax,
        "nf4.nested_quant_map": state.state2.code,
        "nf4.offset": state.offset.reshape(1),
        "nf4.weight": bnb.dequantize_4bit(codes, state),
        "int8.codes": eight,
        "int8.scales": scales,
    }


def reference():
    """The nf4 model beside an adapter. bitsandbytes' product on a CPU rounds more than the weights, so that only its loss is kept;
    logits and gradients are of the weights as it takes them apart, in f32."""
    model = AutoModelForCausalLM.from_pretrained(HERE / "nf4", device_map="cpu", dtype=torch.float32)
    plain = {
        name: bnb.dequantize_4bit(p.data, p.quant_state).float() if getattr(p, "quant_state", None) else p.data
        for name, p in model.named_parameters()
    }
    config = json.loads((HERE / "nf4" / "config.json").read_text())
    del config["quantization_config"]
    dequantised = LlamaForCausalLM(LlamaConfig(**config)).float()
    dequantised.load_state_dict(plain, strict=False)
    torch.manual_seed(11)
    peft = get_peft_model(dequantised, LoraConfig(r=2, lora_alpha=4, target_modules=SEVEN, task_type="CAUSAL_LM"))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    peft.save_pretrained(HERE / "adapter")
    (HERE / "adapter" / "README.md").unlink()
    tokens = torch.tensor([TOKENS])
    labels = tokens.clone()
    labels[0, :4] = -100
    out = peft(input_ids=tokens, labels=labels)
    out.loss.backward()
    grads = {
        f"grad.{name.replace('.default', '')}": parameter.grad.float().contiguous()
        for name, parameter in peft.named_parameters() if parameter.grad is not None
    }
    (HERE / "case.json").write_text(json.dumps({"tokens": TOKENS, "first_target": 4}) + "\n")
    quantised = PeftModel.from_pretrained(model, HERE / "adapter")(input_ids=tokens, labels=labels).loss
    return grads | {
        "logits": out.logits[0].float().contiguous(),
        "loss": out.loss.detach().float().reshape(1),
        "loss.bitsandbytes": quantised.detach().float().reshape(1),
    }


main()
