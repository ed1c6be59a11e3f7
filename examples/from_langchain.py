"""LangChain: a saved model through HuggingFaceEmbeddings, in a vector store and a retriever of theirs."""

import tempfile

from langchain_core.vectorstores import InMemoryVectorStore
from langchain_huggingface import HuggingFaceEmbeddings

import valuembed

NOTES = [
    "The dentist moved the appointment to Thursday morning.",
    "Fry the onions slowly before you add the tomatoes.",
    "The train to the coast was two hours late.",
    "The new printer jams whenever the paper is damp.",
]

with tempfile.TemporaryDirectory() as folder:
    valuembed.load("bundled").save_pretrained(folder)
    embeddings = HuggingFaceEmbeddings(
        model_name=folder,
        # The module class comes from your own installation of valuembed; the folder holds no code.
        model_kwargs={"trust_remote_code": True},
        # What encode_document and encode_query would do: each role has its template and its instruction.
        encode_kwargs={"task": "document", "prompt_name": "document"},
        query_encode_kwargs={"task": "query", "prompt_name": "query"},
    )
store = InMemoryVectorStore(embeddings)
store.add_texts(NOTES)

for question in ("Was the train delayed?", "How do I cook the vegetables?"):
    ((document, score),) = store.similarity_search_with_score(question, k=1)
    print(f"{score:.2f}  {question}  ->  {document.page_content}")

retriever = store.as_retriever(search_kwargs={"k": 2})
print([document.page_content for document in retriever.invoke("My office machine is broken.")])
