"""From a network's output tensors to instances. NumPy only: Triton's Python models import it, too."""
