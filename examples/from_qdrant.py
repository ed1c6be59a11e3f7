"""Qdrant: vectors of a model in a collection, here in memory; a server takes the same calls."""

from qdrant_client import QdrantClient
from qdrant_client.models import Distance, FieldCondition, Filter, MatchValue, PointStruct, VectorParams

import valuembed

NOTES = {
    "The dentist moved the appointment to Thursday morning.": "home",
    "Fry the onions slowly before you add the tomatoes.": "home",
    "The train to the coast was two hours late.": "travel",
    "The new printer jams whenever the paper is damp.": "work",
}

model = valuembed.load("bundled")
client = QdrantClient(":memory:")
# For vectors that were cut or stored otherwise, the width is theirs.
width = model.get_embedding_dimension()
client.create_collection("notes", vectors_config=VectorParams(size=width, distance=Distance.COSINE))
vectors = model.encode_document(list(NOTES))
points = [
    PointStruct(id=number, vector=vector.tolist(), payload={"text": text, "topic": topic})
    for number, ((text, topic), vector) in enumerate(zip(NOTES.items(), vectors, strict=True))
]
client.upsert("notes", points)

at_home = Filter(must=[FieldCondition(key="topic", match=MatchValue(value="home"))])
for question, condition in (("Was the train delayed?", None), ("When is my appointment in the morning?", at_home)):
    query = model.encode_query(question).tolist()
    (found,) = client.query_points("notes", query=query, query_filter=condition, limit=1).points
    print(f"{found.score:.2f}  {question}  ->  {found.payload['text']}")
client.close()
