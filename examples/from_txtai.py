"""txtai: a model as the function that makes the vectors of an index of theirs."""

from txtai import Embeddings

import valuembed

NOTES = [
    "The dentist moved the appointment to Thursday morning.",
    "Fry the onions slowly before you add the tomatoes.",
    "The train to the coast was two hours late.",
    "The new printer jams whenever the paper is damp.",
]

model = valuembed.load("bundled")


def vectors(texts):
    """One function for texts and queries: theirs knows no roles."""
    return model.encode(list(texts))


index = Embeddings(method="external", transform=vectors, content=True)
index.index(NOTES)

for question in ("Was the train delayed?", "How do I cook the vegetables?"):
    (found,) = index.search(question, 1)
    print(f"{found['score']:.2f}  {question}  ->  {found['text']}")

(found,) = index.search("SELECT text, score FROM txtai WHERE similar('A machine at the office is jammed.') LIMIT 1")
print(found["text"])
