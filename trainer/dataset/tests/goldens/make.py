"""Renders conversations through chat templates with transformers and writes templates.json beside this file.

Run with any Python that has transformers 5 (and jinja2, tokenizers):  python make.py
The templates are written in the idioms of the families they are named after.
"""

import datetime
import json
import pathlib

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

TEMPLATES = {
    "chatml": {
        "tokens": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
        "template": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    },
    "llama3": {
        "tokens": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        "template": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- The system message may be absent. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    },
    "mistral": {
        "tokens": {"bos_token": "<s>", "eos_token": "</s>"},
        "template": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if not (message.tool_calls is defined and message.tool_calls is not none) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("conversation roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}

{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.first and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
""",
    },
    "pythonic": {
        "tokens": {"eos_token": "<|end|>"},
        "template": """{% for message in messages %}
    {% if message.role.upper() == 'SYSTEM' %}
{{ {'system': message.content.strip().split('\\n'), 'n': loop.index0, 'ok': true} | tojson }}
    {% elif message['content'].startswith('#') %}
        {% continue %}
    {% else %}
{% generation %}<|{{ message.get('role', 'x').title() }}|>{{ message['content'].replace('\\n', ' / ').rstrip() }}{% endgeneration %}{{ eos_token }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt and messages | selectattr('role', 'equalto', 'user') | list | length > 0 %}<|Assistant|>{% endif %}""",
    },
}

SYSTEM = {"role": "system", "content": " Be kind, & brief.\nÜber <alles>. "}
USER = {"role": "user", "content": "  What is 2 < 3?\nTell \"me\".  "}
ANSWER = {"role": "assistant", "content": " It is true. 🙂 "}
AGAIN = {"role": "user", "content": "# thanks"}
LAST = {"role": "assistant", "content": "You're welcome\n"}

CONVERSATIONS = [
    ([USER], True),
    ([SYSTEM, USER], True),
    ([SYSTEM, USER, ANSWER], False),
    ([USER, ANSWER, AGAIN, LAST], False),
    ([SYSTEM, USER, ANSWER, AGAIN], True),
    ([USER, AGAIN], True),
]


class FixedDay(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26)


def rendered(tokenizer, messages, prompt):
    try:
        return {"text": tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)}
    except Exception as error:  # the template's own words
        return {"error": str(error)}


def main():
    chat_template_utils.datetime = FixedDay
    goldens = []
    for name, family in TEMPLATES.items():
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **family["tokens"])
        tokenizer.chat_template = family["template"]
        cases = [
            {"messages": messages, "add_generation_prompt": prompt, **rendered(tokenizer, messages, prompt)}
            for messages, prompt in CONVERSATIONS
        ]
        goldens.append({"name": name, **family, "cases": cases})
    path = pathlib.Path(__file__).with_name("templates.json")
    path.write_text(json.dumps(goldens, indent=1, ensure_ascii=False) + "\n")


main()
