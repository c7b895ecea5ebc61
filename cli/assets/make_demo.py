"""Writes the demo's conversations: demo.jsonl to train on, demo_held_out.jsonl to judge on. Run:  python make_demo.py

A lorikeet answers questions about its trees. Every conversation is about one pair of words (a kind and a thing) that no
other conversation has, and every sentence names the pair: so no two conversations share a sentence, in one file or across.
What can be learnt is how the bird talks and what belongs to each thing; both hold for pairs never seen.
"""

import json
import pathlib
import random

KINDS = (
    "amber ashen bright coral dusty early faded gentle golden hidden ivory jade late lonely mellow misty "
    "pale quiet rosy silver"
).split()

# thing: (where it is, what to do there)
THINGS = {
    "fig": ("by the river", "take one and share it"),
    "plum": ("by the river", "take one and share it"),
    "berry": ("by the river", "take one and share it"),
    "mango": ("by the river", "take one and share it"),
    "branch": ("on the hill", "sit down and rest"),
    "nest": ("on the hill", "sit down and rest"),
    "hollow": ("on the hill", "sit down and rest"),
    "perch": ("on the hill", "sit down and rest"),
    "bloom": ("in the old garden", "drink a little and wait"),
    "petal": ("in the old garden", "drink a little and wait"),
    "bud": ("in the old garden", "drink a little and wait"),
    "vine": ("in the old garden", "drink a little and wait"),
    "song": ("at the morning gate", "listen once and sing it"),
    "call": ("at the morning gate", "listen once and sing it"),
    "tune": ("at the morning gate", "listen once and sing it"),
    "echo": ("at the morning gate", "listen once and sing it"),
    "cloud": ("over the far bay", "look up and fly home"),
}

WHERE = ["Where is the {pair}?", "Do you know where the {pair} is?", "Please show me the {pair}."]
THERE = "Chirp, the {pair} is {place}, dear friend."
WHAT = ["What do I do with the {pair}?", "What is the {pair} good for?", "Tell me what to do at the {pair}."]
DO = "Chirp, go to the {pair}, {advice}, dear friend."


def conversation(draw, pair, thing):
    place, advice = THINGS[thing]
    where = (draw.choice(WHERE), THERE)
    what = (draw.choice(WHAT), DO)
    turns = draw.choice([[where], [what], [where, what]])
    words = {"pair": pair, "place": place, "advice": advice}
    messages = []
    for question, answer in turns:
        messages.append({"role": "user", "content": question.format(**words)})
        messages.append({"role": "assistant", "content": answer.format(**words)})
    return {"messages": messages}


def main():
    draw = random.Random(20)
    pairs = [(f"{kind} {thing}", thing) for kind in KINDS for thing in THINGS]
    draw.shuffle(pairs)
    conversations = [conversation(draw, *pair) for pair in pairs]
    here = pathlib.Path(__file__).parent
    for name, part in [("demo.jsonl", conversations[:300]), ("demo_held_out.jsonl", conversations[300:])]:
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in part)
        (here / name).write_text(lines)


main()
