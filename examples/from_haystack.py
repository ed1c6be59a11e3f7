"""Haystack: a saved model in its embedders, with its own store and retriever."""

import tempfile

from haystack import Document, Pipeline
from haystack.components.retrievers import InMemoryEmbeddingRetriever
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack_integrations.components.embedders import sentence_transformers as embedders

import valuembed

NOTES = [
    "The dentist moved the appointment to Thursday morning.",
    "Fry the onions slowly before you add the tomatoes.",
    "The train to the coast was two hours late.",
    "The new printer jams whenever the paper is damp.",
]

with tempfile.TemporaryDirectory() as folder:
    valuembed.load("bundled").save_pretrained(folder)
    # The module class comes from your own installation of valuembed; the folder holds no code.
    options = {"model": folder, "trust_remote_code": True, "progress_bar": False}
    # Each role has its template and its instruction: what encode_document and encode_query would do.
    roles = {role: {"task": role, "prompt_name": role} for role in ("document", "query")}
    documents = embedders.SentenceTransformersDocumentEmbedder(**options, encode_kwargs=roles["document"])
    questions = embedders.SentenceTransformersTextEmbedder(**options, encode_kwargs=roles["query"])
    documents.warm_up()
    questions.warm_up()
store = InMemoryDocumentStore(embedding_similarity_function="cosine")
store.write_documents(documents.run([Document(content=note) for note in NOTES])["documents"])
pipeline = Pipeline()
pipeline.add_component("embedder", questions)
pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=1))
pipeline.connect("embedder.embedding", "retriever.query_embedding")
for question in ("Was the train delayed?", "How do I cook the vegetables?"):
    (found,) = pipeline.run({"embedder": {"text": question}})["retriever"]["documents"]
    print(f"{found.score:.2f}  {question}  ->  {found.content}")
