"""Put a LoRA adapter on the value projections, save only the adapter, load it again: the same vectors.

Needs peft: pip install -c constraints.txt ".[train]"
"""

import tempfile
from pathlib import Path

import numpy as np
from peft import LoraConfig

import valuembed

TEXTS = ["A storm is coming.", "The sky turns dark.", "Prices fell in March."]

model = valuembed.load("bundled", method="va")
plain = model.encode(TEXTS)

# An adapter starts out as no change at all; random weights stand in for a training run here.
model.add_adapter(LoraConfig(r=4, target_modules=["v_proj"], init_lora_weights=False))
adapted = model.encode(TEXTS)
print(f"the adapter changes the vectors by up to {np.abs(adapted - plain).max():.3f}")

with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    size = Path(folder, "adapter_model.safetensors").stat().st_size
    print(f"saved adapter: {size / 1000:.0f} kB; the base is named, not copied")
    again = valuembed.load(folder).encode(TEXTS)
    print("difference after loading:", float(np.abs(again - adapted).max()))
