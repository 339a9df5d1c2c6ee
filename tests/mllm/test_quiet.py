import logging

from transformers.utils import logging as transformers_logging

from mllm.quiet import no_progress_bars, quiet


def test_levels_and_bars_are_put_back():
    logger = logging.getLogger("bitsandbytes")
    logger.setLevel(logging.INFO)
    with quiet():
        assert logger.getEffectiveLevel() == logging.ERROR
    assert logger.level == logging.INFO
    for shown in (True, False):
        (transformers_logging.enable_progress_bar if shown else transformers_logging.disable_progress_bar)()
        with no_progress_bars():
            assert not transformers_logging.is_progress_bar_enabled()
        assert transformers_logging.is_progress_bar_enabled() == shown
    transformers_logging.enable_progress_bar()
