from .calibration_fit import calibrate as calibrate
from .calibration_report import (
    PARTS as PARTS,
    CalibrationReport as CalibrationReport,
    report_calibration as report_calibration,
)
from .layer_selection import select_layers as select_layers
from .layer_sweep import sweep as sweep
from .segments import SEGMENTS as SEGMENTS, TOKENS as TOKENS, Documents as Documents, cut as cut, match as match
from .token_signals import (
    AT_TOKEN as AT_TOKEN,
    OF_PREFIX as OF_PREFIX,
    TokenSignal as TokenSignal,
    read_tokens as read_tokens,
)
