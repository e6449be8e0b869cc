"""Train, export and evaluate the small LLaVA that ships inside ``llava_native``."""
