"""One thin adapter per stage: typed params in, outputs and manifest out, MLflow, Ray and S3 at the rim."""
