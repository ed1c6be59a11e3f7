from .adapter_base import (
    ADAPTER_FILE as ADAPTER_FILE,
    base_of as base_of,
    holds_adapter as holds_adapter,
    read_adapter_config as read_adapter_config,
)
from .calibration_record import (
    CALIBRATION_FILE as CALIBRATION_FILE,
    CALIBRATION_TYPE as CALIBRATION_TYPE,
    EARLY_CALIBRATION_TYPE as EARLY_CALIBRATION_TYPE,
    CalibrationRecord as CalibrationRecord,
    check_recipe as check_recipe,
    read_record as read_record,
)
from .config import cut_config as cut_config, read_config as read_config
from .gguf_config import (
    GGUF_EMBEDDINGS as GGUF_EMBEDDINGS,
    GGUF_HEAD as GGUF_HEAD,
    describe_gguf as describe_gguf,
    read_gguf_config as read_gguf_config,
)
from .gguf_file import GgufFile as GgufFile, GgufStrings as GgufStrings, GgufTensor as GgufTensor
from .gguf_types import gguf_type_name as gguf_type_name, is_gguf_type as is_gguf_type
from .hub_options import HubKwargs as HubKwargs, HubOptions as HubOptions
from .location import (
    ADAPTER_CONFIG as ADAPTER_CONFIG,
    BUNDLED as BUNDLED,
    Checkpoint as Checkpoint,
    LoadedFrom as LoadedFrom,
    locate as locate,
)
from .quantized import (
    check_quantization as check_quantization,
    describe_quantization as describe_quantization,
    is_dequantized as is_dequantized,
    quantization_method as quantization_method,
)
from .saved_record import (
    CONFIG_FILE as CONFIG_FILE,
    EARLY_TRANSFORMER_TYPE as EARLY_TRANSFORMER_TYPE,
    TRANSFORMER_TYPE as TRANSFORMER_TYPE,
    Origin as Origin,
    check_held_layers as check_held_layers,
    find_origin as find_origin,
    saved_config as saved_config,
)
from .sentence_transformers_folder import SavedSettings as SavedSettings, saved_settings as saved_settings
from .weight_files import (
    TEXT_DECODER_KEYS as TEXT_DECODER_KEYS,
    find_weights as find_weights,
    index_folder as index_folder,
    is_needed as is_needed,
    read_head as read_head,
    read_weights as read_weights,
    remove_saved as remove_saved,
    remove_weights as remove_weights,
)
