from . import plots as plots
from .outputs import (
    check_model_folder as check_model_folder,
    check_picture as check_picture,
    results_folder as results_folder,
    save_model as save_model,
)
