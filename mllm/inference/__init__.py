"""Answers from a tuned model: one by one or in batches, with views of the image averaged or a prompt tuned for each."""

from mllm.inference.answer import Answer, Answerer
from mllm.inference.subject import Subject, load_adapter_folder, load_plain

__all__ = ["Answer", "Answerer", "Subject", "load_adapter_folder", "load_plain"]
