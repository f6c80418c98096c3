import vlm  # noqa: F401  before transformers, which imports torchvision
