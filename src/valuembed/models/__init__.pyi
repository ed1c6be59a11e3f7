from .calibration import (
    CALIBRATIONS as CALIBRATIONS,
    DEFAULT_SHRINKAGE as DEFAULT_SHRINKAGE,
    FILTER as FILTER,
    Calibration as Calibration,
    Projection as Projection,
    check_choices as check_choices,
    find_calibration as find_calibration,
    fit as fit,
    fit_filter as fit_filter,
    is_of_the_stream as is_of_the_stream,
    project as project,
)
from .centring import centre_reader as centre_reader, general_sentences as general_sentences
from .checks import described as described, not_finite as not_finite, warn_truncated as warn_truncated
from .encoder import ValueEncoder as ValueEncoder
from .explanation import Explanation as Explanation, Token as Token, TokenWeights as TokenWeights, explain as explain
from .inspection import CheckpointView as CheckpointView, inspect_checkpoint as inspect_checkpoint
from .loading import load as load
from .method_choice import choose_recipes as choose_recipes
from .model_info import ModelInfo as ModelInfo, check_load as check_load, info as info
from .multi_readout import SIGNALS as SIGNALS, MultiReadout as MultiReadout, every_layer as every_layer
from .pair_windows import read_pair_windows as read_pair_windows
from .reader_loading import check_prompts as check_prompts
from .recipe_choice import (
    DEFAULT_METHOD as DEFAULT_METHOD,
    calibration_of as calibration_of,
    method_for as method_for,
    resolve_for as resolve_for,
)
from .saving import check_model_folder as check_model_folder, save_model as save_model
from .text_encoder import (
    PROMPT_NAMES as PROMPT_NAMES,
    TextEncoder as TextEncoder,
    load_text_encoder as load_text_encoder,
)
from .value_reader import TextParts as TextParts, ValueReader as ValueReader
from .value_transformer import ValueTransformer as ValueTransformer
