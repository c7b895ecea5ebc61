"""Renders conversations through chat templates with transformers and writes templates.json beside this file.

Run with any Python that has transformers 5 (and jinja2, tokenizers):  python make.py
The templates lie in templates/, each with its origin in the first line.
"""

import datetime
import json
import pathlib

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

HERE = pathlib.Path(__file__).parent

CHATML = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
LLAMA3 = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
SENTENCE = {"bos_token": "<s>", "eos_token": "</s>"}
GEMMA = {"bos_token": "<bos>", "eos_token": "<eos>"}
PHI = {"bos_token": "<s>", "eos_token": "<|endoftext|>"}

# name: (tokens that templates may print, further special tokens)
FAMILIES = {
    "llama2": (SENTENCE, []),
    "llama3": (LLAMA3, ["<|start_header_id|>", "<|end_header_id|>"]),
    "llama3_1": (LLAMA3, ["<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|python_tag|>"]),
    "llama3_2": (LLAMA3, ["<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|python_tag|>"]),
    "mistral": (SENTENCE, []),
    "mistral_v3": (SENTENCE, ["[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[TOOL_RESULTS]"]),
    "smollm2": (CHATML, ["<|im_start|>"]),
    "qwen2_5": (CHATML, ["<|im_start|>"]),
    "qwen3": (CHATML, ["<|im_start|>"]),
    "qwen3_training": (CHATML, ["<|im_start|>"]),
    "gemma2": (GEMMA, ["<start_of_turn>", "<end_of_turn>"]),
    "gemma3": (GEMMA, ["<start_of_turn>", "<end_of_turn>"]),
    "phi3": (PHI, ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]),
    "phi3_5": (PHI, ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]),
    "phi4": (CHATML, ["<|im_start|>", "<|im_sep|>"]),
    "phi4_mini": (PHI, ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]),
    "pythonic": (PHI, ["<|end|>"]),
}

SYSTEM = {"role": "system", "content": " Be kind, & brief.\nÜber <alles>. "}
USER = {"role": "user", "content": "  What is 2 < 3?\nTell \"me\".  "}
ANSWER = {"role": "assistant", "content": " It is true. 🙂 "}
AGAIN = {"role": "user", "content": "# thanks"}
LAST = {"role": "assistant", "content": "You're welcome\n"}
ASK = {"role": "user", "content": "How warm is it in Köln and in \"Bonn\"?"}


def call(number, arguments):
    function = {"name": "temperature", "arguments": arguments}
    return {"id": f"abcdefgh{number}", "type": "function", "function": function}


KOELN = call(1, {"place": "Köln <Dom>", "days": 2, "above": 1.0, "below": 1e-7, "exact": True, "unit": None})
BONN = call(2, {"place": "it's \"Bonn\"", "nested": {"z": [1, 2.5, {"a": []}], "a": "\n"}})
CALL = {"role": "assistant", "content": None, "tool_calls": [KOELN]}
CALLS = {"role": "assistant", "content": None, "tool_calls": [KOELN, BONN]}
SAID = {"role": "tool", "content": "{\"celsius\": 21.5}", "name": "temperature", "tool_call_id": "abcdefgh1"}
SAID_TOO = {"role": "tool", "content": "unknown", "name": "temperature", "tool_call_id": "abcdefgh2"}
WARM = {"role": "assistant", "content": "It is 21.5 °C."}
THOUGHT = {"role": "assistant", "content": "Because.", "reasoning_content": "\nLet me see.\n"}
TAGGED = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYes."}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "temperature",
            "description": "How warm it is, in °C; \"<now>\" if no day is given & known.",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string", "description": "A town"}, "days": {"type": "integer"}},
                "required": ["place"],
            },
        },
    },
    {"type": "function", "function": {"name": "noon", "description": "", "parameters": {"type": "object"}}},
]

# messages, tools, add_generation_prompt
CONVERSATIONS = [
    ([USER], None, True),
    ([SYSTEM, USER], None, True),
    ([SYSTEM, USER, ANSWER], None, False),
    ([USER, ANSWER, AGAIN, LAST], None, False),
    ([SYSTEM, USER, ANSWER, AGAIN], None, True),
    ([USER, AGAIN], None, True),
    ([ASK, CALL, SAID, WARM], TOOLS, False),
    ([SYSTEM, ASK, CALLS, SAID, SAID_TOO], TOOLS, True),
    ([SYSTEM, ASK, CALLS, SAID, SAID_TOO, WARM, AGAIN, LAST], TOOLS, False),
    ([USER, THOUGHT, AGAIN, TAGGED], None, False),
]


class FixedDay(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26)


def rendered(tokenizer, messages, tools, prompt):
    try:
        text = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=prompt, tokenize=False)
        return {"text": text}
    except Exception as error:  # the template's own words
        return {"error": str(error)}


def main():
    chat_template_utils.datetime = FixedDay
    families = []
    for name, (tokens, special) in FAMILIES.items():
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **tokens)
        tokenizer.chat_template = (HERE / "templates" / f"{name}.jinja").read_text()
        results = [rendered(tokenizer, *conversation) for conversation in CONVERSATIONS]
        families.append({"name": name, "tokens": tokens, "special": special, "results": results})
    names = ("messages", "tools", "add_generation_prompt")
    conversations = [dict(zip(names, conversation)) for conversation in CONVERSATIONS]
    goldens = {"conversations": conversations, "families": families}
    (HERE / "templates.json").write_text(json.dumps(goldens, indent=1, ensure_ascii=False) + "\n")


main()
