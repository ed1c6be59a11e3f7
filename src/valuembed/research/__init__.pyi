from .cost import measure_cost as measure_cost
from .experiments import BUNDLED as BUNDLED, BUNDLED_LIKE as BUNDLED_LIKE, backbones as backbones
from .next_token_probe import probe_next_token as probe_next_token
from .reproduction import plan as plan, reproduce as reproduce
from .segment_probe import LayerProbe as LayerProbe, probe_segments as probe_segments
