"""From stored activations to a sparse autoencoder."""
