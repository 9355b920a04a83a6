"""The node's log: what libraries warn of, which may be a patient's, gets nowhere."""

from __future__ import annotations

import logging
import warnings

import pytest

from veilray.clinic.config import LogConfig
from veilray.clinic.journal import LOG_NAME, start_log, stop_log


def test_warnings_get_nowhere_even_where_a_thread_lets_them_through(capsys: pytest.CaptureFixture[str]) -> None:
    start_log(LogConfig())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("Doe^Jane has an odd birthday", stacklevel=1)
        logging.getLogger(LOG_NAME).info("image 0123456789ab: denoised")
    finally:
        stop_log()
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.warns(UserWarning, match="heard again"):
        warnings.warn("heard again", stacklevel=1)


def test_a_log_that_was_stopped_leaves_its_lines_to_the_process(caplog: pytest.LogCaptureFixture) -> None:
    start_log(LogConfig())
    stop_log()
    with caplog.at_level(logging.INFO, LOG_NAME):
        logging.getLogger(LOG_NAME).info("image 0123456789ab: denoised")
    assert [record.getMessage() for record in caplog.records] == ["image 0123456789ab: denoised"]
