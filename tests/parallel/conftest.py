"""What a failed test leaves running is ended."""

from tests.distributed.harness import _no_rank_outlives_its_test

__all__ = ["_no_rank_outlives_its_test"]
