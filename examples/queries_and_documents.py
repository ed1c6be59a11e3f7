"""Queries and documents read differently: a template for each role, and an instruction for the queries."""

import tempfile

import numpy as np

import valuembed

model = valuembed.load(
    "bundled",
    template={
        "query": '{prompt}This question : "{text}" means in one word:"',
        "document": "prompt_eol",
    },
    prompts={"query": "Find the text that answers the question. "},
)
question = "Who repaired the bridge?"
as_query = model.encode_query(question)
print("as a query   ", model.report.tokens, "tokens")
as_document = model.encode_document(question)
print("as a document", model.report.tokens, "tokens")
print(f"their cosine {float(as_query @ as_document):.2f}: two readings of one text")

# Templates and instructions travel with the model.
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    again = valuembed.load(folder)
    print("after loading", float(np.abs(again.encode_query(question) - as_query).max()))
