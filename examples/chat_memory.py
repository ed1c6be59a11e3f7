"""A chat with a memory: each turn's vector is read while the model answers, for no extra pass.

A model that can chat: --model HuggingFaceTB/SmolLM2-135M-Instruct; the bundled one only continues texts.
"""

import argparse
from importlib.resources import files

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import valuembed

SAID = ["My train to Lisbon leaves on Friday.", "I want to grow tomatoes on the balcony."]
SAID += ["My sister broke her arm while skiing.", "We need a new printer for the office."]
SAID += ["When does my train leave?", "What did I want to grow?", "Who broke her arm?"]

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--model", default=str(files("valuembed") / "backbone" / "bundled"))
name = parser.parse_known_args()[0].model
model, tokenizer = AutoModelForCausalLM.from_pretrained(name, dtype="float32"), AutoTokenizer.from_pretrained(name)
memory: dict[str, torch.Tensor] = {}

for said in SAID:
    prompt = said
    if tokenizer.chat_template:
        message = {"role": "user", "content": said}
        prompt = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    fed = tokenizer(prompt, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)
    with valuembed.watching(model, method="aligned_va") as seen:
        ids = model.generate(**fed, max_new_tokens=24, do_sample=False, use_cache=True)
    print(f"> {said}\n{tokenizer.decode(ids[0, fed['input_ids'].shape[1] :], skip_special_tokens=True).strip()}")
    if memory and said.endswith("?"):
        closeness = {turn: float(vector @ seen.prompt[0]) for turn, vector in memory.items()}
        best = max(closeness, key=closeness.__getitem__)
        print(f"  remembered ({closeness[best]:.2f}): {best}")
    else:
        memory[said] = seen.prompt[0]
