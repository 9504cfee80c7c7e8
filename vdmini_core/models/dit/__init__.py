"""Video transformers of diffusers: one table of classes, and units, surgery and features for all of them."""
