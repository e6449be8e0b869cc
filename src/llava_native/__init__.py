"""Native LLaVA in your process."""
