"""Pictures of features: made by optimisation, then checked against what real images do."""
