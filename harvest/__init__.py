"""From images to stored activations."""
