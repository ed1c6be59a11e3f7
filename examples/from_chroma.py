"""Chroma: a saved model as a collection's embedding function."""

import tempfile

import chromadb
from chromadb.utils.embedding_functions import SentenceTransformerEmbeddingFunction

import valuembed

NOTES = [
    "The dentist moved the appointment to Thursday morning.",
    "Fry the onions slowly before you add the tomatoes.",
    "The train to the coast was two hours late.",
    "The new printer jams whenever the paper is damp.",
]

with tempfile.TemporaryDirectory() as folder:
    valuembed.load("bundled").save_pretrained(folder)
    function = SentenceTransformerEmbeddingFunction(
        model_name=folder,
        # Theirs is the CPU, also where there is a GPU.
        device="cpu",
        # The module class comes from your own installation of valuembed; the folder holds no code.
        trust_remote_code=True,
    )
notes = chromadb.EphemeralClient().create_collection(
    "notes", embedding_function=function, configuration={"hnsw": {"space": "cosine"}}
)
notes.add(ids=[str(number) for number in range(len(NOTES))], documents=NOTES)

for question in ("Was the train delayed?", "How do I cook the vegetables?"):
    found = notes.query(query_texts=[question], n_results=1)
    print(f"{1 - found['distances'][0][0]:.2f}  {question}  ->  {found['documents'][0][0]}")
