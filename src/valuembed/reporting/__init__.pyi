from . import markdown as markdown, plots as plots
from .outputs import check_picture as check_picture, results_folder as results_folder
