"""Features changed by splicing into the whole tower, one after the other: what effects are held against."""

import numpy as np
import torch
from random_towers import D_SAE, NoisePictures
from thresher.analysis.naming.effects import Changes, mean_effects
from thresher.harvest.continuation import embed_images
from thresher.harvest.sites import capture
from thresher.harvest.splice import splice


def activations(tower, sae, site, images):
    """`(n, T, d_sae)`: what the SAE makes of the images' vectors."""
    x = capture(tower, images, [site])[site]
    x = x if x.ndim == 3 else x[:, None]
    return sae.encode(x.flatten(0, 1)).view(*x.shape[:2], -1)


def every_change(f):
    """Every feature that fires anywhere, on every image where it does: lines are features."""
    row, feature = torch.nonzero((f > 0).any(dim=1), as_tuple=True)
    amounts = f[row, :, feature]
    return Changes(feature.numpy(), feature.numpy(), row.numpy(), amounts.numpy())


def by_splicing(tower, sae, site, images, changes, kind, target=None):
    """The same by the whole tower, one feature at a time, float64 sums."""
    original = embed_images(tower, images).double()
    found = np.full((D_SAE, original.shape[1]), np.nan)
    for feature in np.unique(changes.feature):
        its = changes.feature == feature

        def edit(f, feature=int(feature), its=its):
            new = f.clone()
            if kind == "ablate":
                new[..., feature] = 0
            else:
                amount = torch.zeros(len(images), *changes.activation.shape[1:])
                amount[changes.row[its]] = torch.from_numpy(changes.activation[its])
                new[..., feature] += amount[:, 0] if new.ndim == 2 else amount
            return new

        edited = embed_images(tower, images, splice(tower, sae, site, target=target, keep_error=True, edit=edit))
        rows = changes.row[its]
        difference = original[rows] - edited.double()[rows]
        found[feature] = (difference if kind == "ablate" else -difference).mean(dim=0).numpy()
    return found


def compare(tower, sae, site, kind="ablate", target=None, least=1e-3, tolerance=2e-6):
    pictures = NoisePictures(tower)
    images = tower.normalise(pictures.all)
    changes = every_change(activations(tower, sae, site, images))
    found = mean_effects(tower, sae, site, pictures, changes, kind, n=D_SAE, target=target)
    expected = by_splicing(tower, sae, site, images, changes, kind, target)
    assert found.dtype == np.float32
    assert np.nanmax(np.abs(expected)) > least
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
