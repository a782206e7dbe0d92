"""From a trained autoencoder to numbers, figures, pictures."""
