"""Embed a few sentences and compare each with each. Runs offline, with the bundled demonstration model."""

import valuembed

SENTENCES = [
    "The doctor examined the patient.",
    "The nurse cared for a sick man.",
    "The team scored in the last minute.",
]

model = valuembed.load("bundled")  # a real one: valuembed.load("Qwen/Qwen3-0.6B")
embeddings = model.encode(SENTENCES)
similarities = model.similarity(embeddings, embeddings)

print(f"{len(embeddings)} vectors of width {embeddings.shape[1]}, {embeddings.dtype}")
for sentence, row in zip(SENTENCES, similarities.tolist(), strict=True):
    print("  ".join(f"{value:.2f}" for value in row), sentence)
print(model.report)
