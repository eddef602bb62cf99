"""Give a language model eyes by transfer: port a trained VPG to a new, frozen LLM."""

__all__ = ["__version__"]
__version__ = "0.1.0"
