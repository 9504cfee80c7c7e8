"""Python runs this first in every process of an attempt: the harness alone puts this folder on its path."""

import os

if "VDMINI_CHAOS" in os.environ:
    import chaos_points

    chaos_points.install()
