"""Find the sentences of a list that are closest to a question: exact search in memory."""

import valuembed

NOTES = [
    "The dentist moved the appointment to Thursday morning.",
    "Fry the onions slowly before you add the tomatoes.",
    "The train to the coast was two hours late.",
    "Our team lost the final after extra time.",
    "Water the young trees every evening in summer.",
    "The new printer jams whenever the paper is damp.",
    "Bake the bread until the crust is dark.",
    "The bus stops running at midnight.",
]
QUESTIONS = ["How do I cook the vegetables?", "Which match was lost?", "Was the bus late again?"]

model = valuembed.load("bundled")
notes = model.encode_document(NOTES)
scores = model.similarity(model.encode_query(QUESTIONS), notes)

for question, row in zip(QUESTIONS, scores, strict=True):
    print(question)
    best = row.topk(2)
    for score, note in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        print(f"  {score:.2f}  {NOTES[note]}")
