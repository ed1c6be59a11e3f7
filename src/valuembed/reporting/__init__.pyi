from . import markdown as markdown, plots as plots
from .outputs import (
    check_not_around as check_not_around,
    check_picture as check_picture,
    replace_text as replace_text,
    replacing as replacing,
    results_folder as results_folder,
)
