"""LlamaIndex: a saved model through HuggingFaceEmbedding, in an index of theirs."""

import tempfile

from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.embeddings.huggingface import HuggingFaceEmbedding

import valuembed

NOTES = [
    "The dentist moved the appointment to Thursday morning.",
    "Fry the onions slowly before you add the tomatoes.",
    "The train to the coast was two hours late.",
    "The new printer jams whenever the paper is damp.",
]

with tempfile.TemporaryDirectory() as folder:
    valuembed.load("bundled").save_pretrained(folder)
    model = HuggingFaceEmbedding(
        model_name=folder,
        # The module class comes from your own installation of valuembed; the folder holds no code.
        trust_remote_code=True,
        # Ten texts at a time is their default, too few to keep a model busy.
        embed_batch_size=512,
        # Theirs replaces the instruction that a model was saved with, so name it again.
        query_instruction="",
    )
index = VectorStoreIndex([TextNode(text=note) for note in NOTES], embed_model=model)

retriever = index.as_retriever(similarity_top_k=1)
for question in ("Was the train delayed?", "How do I cook the vegetables?"):
    (found,) = retriever.retrieve(question)
    print(f"{found.score:.2f}  {question}  ->  {found.text}")
