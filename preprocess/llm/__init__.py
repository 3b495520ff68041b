"""Asking a language model about classes: the endpoint, and what is asked and accepted (preprocess/llm_texts.py)."""
