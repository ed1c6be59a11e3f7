from .listing import check_documents as check_documents, has_vectors as has_vectors, holds_documents as holds_documents
from .passage_folder import PassageFolder as PassageFolder
from .summary import DocumentsSummary as DocumentsSummary
from .update import PASSAGE_TOKENS as PASSAGE_TOKENS, update_documents as update_documents
