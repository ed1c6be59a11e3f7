from .local_tasks import parse_task as parse_task
from .metrics import spearman as spearman
from .results import (
    Evaluation as Evaluation,
    best_of as best_of,
    check_finite as check_finite,
    percent as percent,
    scoring_versions as scoring_versions,
)
from .runner import evaluate as evaluate
