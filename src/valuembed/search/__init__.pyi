from .exact import (
    check_options as check_options,
    check_query as check_query,
    load_for as load_for,
    open_embeddings as open_embeddings,
    search as search,
    similarity_matrix as similarity_matrix,
)
from .index import Index as Index, IndexSummary as IndexSummary, build_index as build_index
from .live_index import LiveIndex as LiveIndex
from .live_map import LiveMap as LiveMap
from .map_job import make_map as make_map
from .passage_index import PassageIndex as PassageIndex, documents_folders as documents_folders
from .results import Hit as Hit
from .words import matched_words as matched_words
