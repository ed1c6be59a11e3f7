from .listing import check_documents as check_documents, holds_documents as holds_documents
from .passage_folder import PassageFolder as PassageFolder
from .update import DocumentsSummary as DocumentsSummary, update_documents as update_documents
