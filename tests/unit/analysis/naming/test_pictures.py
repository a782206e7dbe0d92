"""Images of rows as pixels and embeddings, each made once, against the tower itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from planted_clip import Planted, make_planted_run
from thresher.analysis.naming.options import NameOptions
from thresher.analysis.naming.pictures import RowPictures
from thresher.analysis.naming.setting import open_setting


@pytest.mark.parametrize("layer", [1, 2])
def test_embeddings_are_the_towers_own_and_are_made_once(tmp_path: Path, layer: int) -> None:
    planted = make_planted_run(tmp_path, layer=layer, n_images=30, with_stats=False)
    rows = np.array([7, 3, 21, 3])
    with open_setting(planted.path, NameOptions(device="cpu", workers=0)) as setting:
        pictures, tower = setting.pictures, setting.tower
        # of the class token after the last block the stored vectors are all that an embedding is made of
        assert (pictures.stored is not None) == (layer == 2)
        keys = setting.store.keys(rows)
        expected = _embedded(planted, keys, tower)
        np.testing.assert_allclose(pictures.embeddings(rows), expected, atol=2e-6)
        shown = {
            int(place): pixels
            for places, batch in pictures.pixels(rows)
            for place, pixels in zip(places, batch, strict=True)
        }
        for place, key in enumerate(keys):
            picture = Image.open(planted.pictures / key).convert("RGB")
            np.testing.assert_array_equal(shown[place].numpy(), tower.pixels(picture))
        pictures._embed = None  # type: ignore[assignment, method-assign]  # whoever embeds again fails
        np.testing.assert_array_equal(pictures.embeddings(rows[::-1]), pictures.embeddings(rows)[::-1])
        again = RowPictures(planted.path, setting.store, tower, stored=pictures.stored)
        again._embed = None  # type: ignore[assignment, method-assign]
        np.testing.assert_allclose(again.embeddings(rows), expected, atol=2e-6)


def _embedded(planted: Planted, keys: list[str], tower) -> np.ndarray:  # type: ignore[no-untyped-def]
    images = torch.stack([tower.preprocess(Image.open(planted.pictures / key).convert("RGB")) for key in keys])
    with torch.no_grad():
        found = tower.visual(images).double().numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)
