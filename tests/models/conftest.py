import vlm  # noqa: F401  before timm, which imports torchvision
