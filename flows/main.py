"""``python -m bytewax.run flows.main``: the pipeline that ``WAXLAKE_SPEC`` (or the nearest ``waxlake.yml``) names."""

from waxlake.pipeline.deploy import flow

__all__ = ["flow"]
