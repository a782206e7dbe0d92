"""Names of features: phrases that fit them, and how well they do on images that were not used to find them."""
