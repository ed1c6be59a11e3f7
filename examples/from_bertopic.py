"""BERTopic: topics in the sample sentences. It takes a backend; a model alone it would not know for one."""

from pathlib import Path

from bertopic import BERTopic
from bertopic.backend import BaseEmbedder
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import CountVectorizer

import valuembed

SENTENCES = (Path(__file__).parent / "sentences.txt").read_text(encoding="utf-8").splitlines()


class Values(BaseEmbedder):
    """Handed a model of another package's class, BERTopic would download and use one of its own instead."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def embed(self, documents, verbose=False):
        return self.model.encode(list(documents), show_progress_bar=verbose)


# Few sentences: a plain projection and a fixed number of topics, where thousands are left to UMAP and HDBSCAN.
topics = BERTopic(
    embedding_model=Values(valuembed.load("bundled")),
    umap_model=PCA(n_components=5),
    hdbscan_model=KMeans(n_clusters=6, n_init=3, random_state=0),
    vectorizer_model=CountVectorizer(stop_words="english"),
)
topics.fit(SENTENCES)

for number, words in topics.get_topics().items():
    print(number, ", ".join(word for word, _ in words[:6]))
(number,), _ = topics.transform(["The train was late."])
print("The train was late. -> topic", number)
