"""speechkd: distil large teachers into speech LLMs. Import the rooms you need; this file imports nothing heavy."""

__version__ = "0.1.0"
